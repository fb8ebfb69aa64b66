"""The compact columns say the same as a dict would, whatever the order of the reports."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from gpuflow.cluster import inventory as module
from gpuflow.cluster.inventory import Inventory
from gpuflow.cluster.messages import packed_column, unpacked_column

ARRAYS = [("a", "x"), ("a", "y"), ("b", "x")]
LIVE = frozenset(f"n{number}" for number in range(10))
Report = tuple[str, tuple[str, str], dict[int, int]]

reports = st.lists(
    st.tuples(
        st.sampled_from(["n0", "n1", "n2"]),
        st.sampled_from(ARRAYS),
        st.dictionaries(st.integers(0, 40), st.integers(1, 4), max_size=12),
    ),
    max_size=12,
)


def tell(inventory: Inventory, report: Report) -> None:
    node, array, generations = report
    chunks = np.array(list(generations), np.uint32)
    inventory.report(node, array, chunks, np.array(list(generations.values()), np.uint32))


def expected(told: list[Report], array: tuple[str, str], chunk: int) -> frozenset[str]:
    known = {(node, rows[chunk]) for node, name, rows in told if name == array and chunk in rows}
    newest = max((generation for _, generation in known), default=0)
    return frozenset(node for node, generation in known if generation == newest)


@given(reports, st.randoms())
def test_any_order_of_repeated_reports_gives_the_newest(told: list[Report], random: object) -> None:
    shuffled = [*told, *told[::2]]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    inventory = Inventory()
    for report in shuffled:
        tell(inventory, report)
    for array in ARRAYS:
        want = [expected(told, array, chunk) for chunk in range(50)]
        assert inventory.holders(array, range(50)) == want
        for pick in ([3], [0, 1], [40, 3, 3]):
            common = frozenset.intersection(*(want[chunk] for chunk in pick))
            assert inventory.local_to(array, pick, common) == common


def test_chunks_and_arrays_that_nobody_reported() -> None:
    inventory = Inventory()
    assert inventory.holders(("a", "x"), [0, 7]) == [frozenset(), frozenset()]
    assert inventory.local_to(("a", "x"), [0], LIVE) == frozenset()
    tell(inventory, ("n0", ("a", "x"), {2: 1}))
    assert inventory.holders(("a", "x"), [-1, 0, 2, 3, 10**9]) == [
        frozenset(),
        frozenset(),
        frozenset({"n0"}),
        frozenset(),
        frozenset(),
    ]
    assert inventory.local_to(("a", "x"), [], LIVE) == frozenset()


@pytest.mark.parametrize(
    ("live", "want"),
    [
        ({"n0", "n1", "n2"}, {"n0"}),  # has all
        ({"n1", "n2"}, {"n1"}),  # of the live ones the one that has the most
        ({"n0"}, {"n0"}),
        ({"n1"}, {"n0"}),  # n2's chunk cannot be had: wait for n0
        (set(), {"n0"}),
    ],
)
def test_a_task_is_local_to_those_that_have_all_of_it_else_the_most(live: set[str], want: set[str]) -> None:
    inventory = Inventory()
    tell(inventory, ("n0", ("a", "x"), {0: 1, 1: 1, 2: 1}))
    tell(inventory, ("n1", ("a", "x"), {0: 1, 1: 1}))
    tell(inventory, ("n2", ("a", "x"), {2: 1}))
    assert inventory.local_to(("a", "x"), [0, 1, 2], live) == want


def test_chunks_that_lie_apart_are_local_to_whoever_has_the_most() -> None:
    inventory = Inventory()
    for node, rows in {"n0": [0, 1], "n1": [2, 3], "n2": [4]}.items():
        tell(inventory, (node, ("a", "x"), dict.fromkeys(rows, 1)))
    assert inventory.local_to(("a", "x"), range(5), LIVE) == {"n0", "n1"}
    assert inventory.local_to(("a", "x"), range(6), LIVE) == frozenset(), "nobody has the last one"


def test_a_node_that_is_forgotten_may_report_anew() -> None:
    inventory = Inventory()
    tell(inventory, ("n0", ("a", "x"), {0: 2, 1: 1}))
    tell(inventory, ("n1", ("b", "x"), {0: 1}))
    tell(inventory, ("n0", ("b", "x"), {0: 1}))
    inventory.forget("n0")
    inventory.forget("never seen")
    assert inventory.holders(("a", "x"), [0, 1]) == [frozenset(), frozenset()]
    assert inventory.holders(("b", "x"), [0]) == [{"n1"}]
    tell(inventory, ("n0", ("a", "x"), {0: 1, 1: 1}))
    assert inventory.holders(("a", "x"), [0, 1]) == [{"n0"}, {"n0"}], "what was restored is older, and the newest there is"


def test_an_empty_report_changes_nothing() -> None:
    inventory = Inventory()
    tell(inventory, ("n0", ("a", "x"), {}))
    assert inventory.holders(("a", "x"), [0]) == [frozenset()]


def test_eight_bytes_a_chunk() -> None:
    count = 100_000
    inventory = Inventory()
    chunks = np.arange(count, dtype=np.uint32)
    for node in ("n0", "n1"):
        inventory.report(node, ("a", "x"), chunks, np.ones(count, np.uint32))
    assert sum(column.nbytes for column in inventory._columns["a", "x"]) == 8 * count
    assert len(inventory._sets) == 4  # of none, of each, of both


@pytest.mark.parametrize("count", [1, 1000])
def test_growing_chunk_by_chunk_takes_at_most_twice_the_room(count: int) -> None:
    inventory = Inventory()
    for chunk in range(count):
        tell(inventory, ("n0", ("a", "x"), {chunk: 1}))
    assert sum(column.nbytes for column in inventory._columns["a", "x"]) <= 16 * count
    assert inventory.local_to(("a", "x"), range(count), LIVE) == {"n0"}


def test_a_large_report_is_merged_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ROWS_AT_ONCE", 7)
    inventory = Inventory()
    tell(inventory, ("n0", ("a", "x"), {chunk: 1 + chunk % 3 for chunk in range(50)}))
    tell(inventory, ("n1", ("a", "x"), dict.fromkeys(range(0, 50, 2), 2)))
    for chunk, holders in enumerate(inventory.holders(("a", "x"), range(50))):
        told = {"n0": 1 + chunk % 3, **({"n1": 2} if chunk % 2 == 0 else {})}
        assert holders == {node for node, generation in told.items() if generation == max(told.values())}


def test_a_thousand_nodes_take_no_more_room_than_one() -> None:
    inventory = Inventory()
    for number in range(1000):
        tell(inventory, (f"n{number}", ("a", "x"), dict.fromkeys(range(number, 10000, 1000), 1)))
    assert sum(column.nbytes for column in inventory._columns["a", "x"]) <= 10 * 10_000
    assert inventory.local_to(("a", "x"), [7, 1007, 9007], LIVE) == {"n7"}


@pytest.mark.parametrize("chunk", [2**31, 2**32 - 1])
def test_numbers_beyond_signed_integers(chunk: int) -> None:
    assert Inventory().holders(("a", "x"), [chunk]) == [frozenset()]


class Columns(RuleBasedStateMachine):
    """The inventory against a dict: (array, chunk) -> (newest generation, holders)."""

    def __init__(self) -> None:
        super().__init__()
        self.inventory = Inventory()
        self.known: dict[tuple[tuple[str, str], int], tuple[int, frozenset[str]]] = {}

    nodes = st.sampled_from(["n0", "n1", "n2"])
    arrays = st.sampled_from(ARRAYS)

    @rule(node=nodes, array=arrays, rows=st.dictionaries(st.integers(0, 20), st.integers(1, 3)))
    def report(self, node: str, array: tuple[str, str], rows: dict[int, int]) -> None:
        tell(self.inventory, (node, array, rows))
        for chunk, generation in rows.items():
            newest, holders = self.known.get((array, chunk), (0, frozenset()))
            if generation >= newest:
                joined = holders | {node} if generation == newest else frozenset({node})
                self.known[array, chunk] = (generation, joined)

    @rule(node=nodes, array=arrays, chunks=st.lists(st.integers(-1, 60), max_size=5))
    def withdraw(self, node: str, array: tuple[str, str], chunks: list[int]) -> None:
        self.inventory.withdraw(node, array, chunks)
        for chunk in chunks:
            newest, holders = self.known.get((array, chunk), (0, frozenset()))
            self.known[array, chunk] = (newest, holders - {node})

    @rule(dataset=st.sampled_from(["a", "b"]))
    def drop(self, dataset: str) -> None:
        self.inventory.drop(dataset)
        self.known = {key: value for key, value in self.known.items() if key[0][0] != dataset}

    @invariant()
    def says_the_same(self) -> None:
        for array in ARRAYS:
            want = [self.known.get((array, chunk), (0, frozenset()))[1] for chunk in range(25)]
            assert self.inventory.holders(array, range(25)) == want


TestColumns = Columns.TestCase
TestColumns.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


@given(reports)
def test_columns_say_the_same_in_another_form(told: list[Report]) -> None:
    inventory = Inventory()
    for report in told:
        tell(inventory, report)
    for array in ARRAYS:
        generations, holders, sets = inventory.columns(array, 50)
        assert [sets[number] for number in holders.tolist()] == inventory.holders(array, range(50))
        newest = [max((rows.get(chunk, 0) for _, name, rows in told if name == array), default=0) for chunk in range(50)]
        assert generations.tolist() == newest
        assert unpacked_column(packed_column(generations)).tolist() == newest
