"""Every chunk in one task, with others of its holders, and not too many."""

from __future__ import annotations

from itertools import groupby

from hypothesis import given
from hypothesis import strategies as st

from gpuflow.execution.groups import MOST_CHUNKS, MOST_NBYTES, group_chunks

rows = st.dictionaries(
    st.integers(0, 500),
    st.tuples(st.sampled_from("abc"), st.sampled_from([0, 10, MOST_NBYTES // 3, MOST_NBYTES, 2 * MOST_NBYTES])),
)


@given(rows, st.dictionaries(st.sampled_from("abc"), st.integers(0, 4)), st.integers(0, 8), st.randoms())
def test_groups(table: dict[int, tuple[str, int]], slots: dict[str, int], threads: int, random: object) -> None:
    chunks = list(table)
    random.shuffle(chunks)  # type: ignore[attr-defined]
    groups = group_chunks(chunks, [table[c][0] for c in chunks], [table[c][1] for c in chunks], slots, threads)
    assert sorted(chunk for _, part in groups for chunk in part) == sorted(table)
    for key, part in groups:
        assert part
        assert {table[chunk][0] for chunk in part} == {key}
        assert part == sorted(part)
        assert len(part) <= MOST_CHUNKS
        assert len(part) == 1 or sum(table[chunk][1] for chunk in part) <= MOST_NBYTES
    for key in "abc":  # a key's groups come in the order of the chunks
        mine = [part for name, part in groups if name == key]
        assert [chunk for part in mine for chunk in part] == sorted(chunk for part in mine for chunk in part)
    ordered = sorted(table)
    assert groups == group_chunks(ordered, [table[c][0] for c in ordered], [table[c][1] for c in ordered], slots, threads)


def test_nodes_take_turns() -> None:
    count = 300
    groups = group_chunks(range(count), ["ab"[i >= 100] for i in range(count)], [1] * count, {"a": 1, "b": 1}, 2)
    keys = [key for key, _ in groups]
    alternating = 2 * keys.count("a")
    assert keys[:alternating] == ["a", "b"] * keys.count("a")
    assert set(keys[alternating:]) <= {"b"}


def test_a_worker_gets_several_tasks() -> None:
    few = group_chunks(range(40), ["a"] * 40, [1] * 40, {"a": 4}, 4)
    assert len(few) == 40
    many = group_chunks(range(10_000), ["a"] * 10_000, [1] * 10_000, {"a": 4}, 4)
    assert {len(part) for _, part in many[:-1]} == {MOST_CHUNKS}


def test_a_hot_key_is_cut_for_all_who_will_help() -> None:
    count = 320
    alone = group_chunks(range(count), ["a"] * count, [1] * count, {"a": 1}, 1)
    shared = group_chunks(range(count), ["a"] * count, [1] * count, {"a": 1}, 8)
    assert len(alone) < len(shared)
    assert len(shared) >= 8 * 8


def test_a_key_without_live_threads_is_cut_too() -> None:
    assert sum(len(part) for _, part in group_chunks(range(9), [frozenset[str]()] * 9, [1] * 9, {}, 0)) == 9
    assert group_chunks([], [], [], {}, 4) == []


def test_neighbours_stay_together() -> None:
    groups = group_chunks(range(64), ["ab"[i // 32] for i in range(64)], [1] * 64, {"a": 1, "b": 1}, 2)
    for _, part in groups:
        assert len([1 for _ in groupby(chunk - i for i, chunk in enumerate(part))]) == 1
