"""What the nodes together know: the newest wins, wherever it is told."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from gpuflow.datasets.catalog import NodesOnDisk, chunk_table, find, merge, newest_of, publish, records
from gpuflow.errors import NotFound, StoreError
from gpuflow.storage.disk import digest
from gpuflow.storage.manifest import REPLICA_DTYPE, Replica
from gpuflow.storage.metadata import ArrayMetadata
from gpuflow.storage.node import NodeStore
from gpuflow.storage.record import DatasetRecord

held_rows = st.dictionaries(st.integers(0, 14), st.integers(1, 4))
told = st.dictionaries(st.sampled_from(["n2", "n0", "n1"]), held_rows)


def table_rows(generations: dict[int, int], node: str) -> NDArray[Any]:
    def mark(chunk: int, generation: int) -> bytes:
        return f"{node} {chunk} {generation}".encode().ljust(16)

    rows = [(c, g, 100 * g, mark(c, g), mark(c, -g), mark(-c, g)) for c, g in sorted(generations.items())]
    return np.array(rows, dtype=REPLICA_DTYPE)


@given(told, st.integers(0, 15))
def test_merge_is_the_newest_of_what_is_told(nodes: dict[str, dict[int, int]], count: int) -> None:
    table = merge({node: table_rows(rows, node) for node, rows in nodes.items()}, count)
    assert table.nodes == tuple(sorted(nodes))
    assert table.rows["chunk"].tolist() == list(range(count))
    for chunk in range(count):
        newest = max((rows.get(chunk, 0) for rows in nodes.values()), default=0)
        holders = frozenset(node for node, rows in nodes.items() if newest and rows.get(chunk) == newest)
        row = table.rows[chunk]
        assert row["generation"] == newest
        assert table.present[chunk] == bool(newest)
        assert table.holder_sets[chunk] == holders
        if newest:
            assert row.tobytes() in {table_rows({chunk: newest}, node).tobytes() for node in holders}
        else:
            assert row["digest"].tobytes() == bytes(16)
    for node in nodes:
        assert table.chunks_by_node()[node] == sum(node in holders for holders in table.holder_sets)


def test_merge_of_nothing() -> None:
    table = merge({}, 3)
    assert table.holder_sets == [frozenset()] * 3
    assert not table.present.any()
    assert merge({"n": table_rows({}, "n")}, 0).holder_sets == []


@dataclass
class FakeNodes:
    """Nodes that answer from memory."""

    known: dict[str, list[DatasetRecord]]

    def each_node(self, function: Callable[..., Any], *args: Any) -> dict[str, Any]:
        return dict(self.known)


def test_the_newest_record_wins_and_removed_ones_are_hidden() -> None:
    old, new = DatasetRecord("a", version=2), DatasetRecord("a", version=3, state="ready")
    gone = DatasetRecord("b", version=5, state="removed")
    for first, second in ((0, 1), (1, 0)):
        told = [[old, DatasetRecord("b", version=4, state="ready")], [new, gone, DatasetRecord("0")]]
        found = records(FakeNodes({"n0": told[first], "n1": told[second]}))
        assert list(found) == ["0", "a"]
        assert found["a"] is new


def test_of_two_records_as_new_the_one_that_most_nodes_have_wins() -> None:
    one, other = (DatasetRecord("d", version=3, state="ready", created=created) for created in ("a", "b"))
    older = DatasetRecord("d", version=2, state="ready")
    for reports in ([[one], [other], [other], [older]], [[older], [other], [other], [one]]):
        assert newest_of(reports) == {"d": other}
    assert newest_of([[one], [other]]) == newest_of([[other], [one]]), "whoever answers first"


def test_a_name_in_use_again_after_its_removal() -> None:
    again = DatasetRecord("b", version=6, state="writing")
    assert records(FakeNodes({"n0": [DatasetRecord("b", version=5, state="removed")], "n1": [again]})) == {"b": again}


def test_not_found_tells_what_there_is() -> None:
    nodes = FakeNodes({"n0": [DatasetRecord("a"), DatasetRecord("b", state="removed")]})
    assert find(nodes, "a").name == "a"
    with pytest.raises(NotFound, match="no dataset 'b'; there is: a") as caught:
        find(nodes, "b")
    assert caught.value.known == ["a"]
    with pytest.raises(NotFound, match="gpuflow ingest"):
        find(FakeNodes({}), "x")


def commit(store: NodeStore, chunk: int, generation: int) -> None:
    data = f"chunk {chunk} at {generation}".encode()
    replica = Replica("d", "x", chunk, generation, len(data), digest(data), bytes(16), bytes(16))
    store.commit([store.stage(replica, data, replaces=generation - 1)])


def test_nodes_on_disk(tmp_path: Path) -> None:
    roots = (tmp_path / "one", tmp_path / "two")
    ids = []
    for root in roots:
        with closing(NodeStore(root, name=root.name)) as store:
            ids.append(store.node_id)
    nodes = NodesOnDisk(roots)
    assert nodes.each_node(lambda store, suffix: store.root.name + suffix, "!") == {ids[0]: "one!", ids[1]: "two!"}
    metadata = ArrayMetadata.create((30,), (10,), np.dtype("u1"))
    publish(nodes, DatasetRecord("d", arrays={"x": metadata.document}))
    assert records(nodes) == records(NodesOnDisk(roots[::-1]))
    with closing(NodeStore(roots[0])) as one, closing(NodeStore(roots[1])) as two:
        commit(one, 0, 1)
        commit(two, 0, 1)
        commit(two, 2, 1)
        commit(two, 2, 2)
    table = chunk_table(nodes, "d", "x", 3)
    assert table.holder_sets == [frozenset(ids), frozenset(), frozenset(ids[1:])]
    assert table.rows["generation"].tolist() == [1, 0, 2]
    assert not chunk_table(nodes, "d", "unknown", 3).present.any()


def test_roots_that_are_none_are_not_made(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds no gpuflow store"):
        records(NodesOnDisk((tmp_path / "nothing",)))
    assert not (tmp_path / "nothing").exists()


def test_an_error_of_the_function_closes_the_store(tmp_path: Path) -> None:
    NodeStore(tmp_path).close()
    opened = []

    def fail(store: NodeStore) -> None:
        opened.append(store)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        NodesOnDisk((tmp_path,)).each_node(fail)
    with pytest.raises(StoreError, match="closed"):
        opened[0].manifest.records()
