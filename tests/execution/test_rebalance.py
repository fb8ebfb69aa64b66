"""Chunks go where there is room for them when nodes join."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ci.benchmarks.routing import ARRAY, lay
from gpuflow.cluster.connection import Connection, connect
from gpuflow.cluster.launch import node_roots
from gpuflow.datasets.catalog import chunk_table, find
from gpuflow.execution.copies import replicate
from gpuflow.execution.rebalance import rebalance
from gpuflow.objectstore.repair import scrub_dataset
from gpuflow.storage.node import NodeStore
from tests.helpers import read_embedded

CHUNKS, SIZE = 30, 256


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three nodes, of which the first two stand in one rack; datasets from before the last two joined."""
    base = tmp_path_factory.mktemp("rebalance")
    for name in ("one", "again", "racks"):
        lay(node_roots(base, 3), name, CHUNKS, 4 * SIZE, lambda chunk: [0])
    for number, path in enumerate(node_roots(base, 3)):
        NodeStore(path, rack=f"r{number // 2}").close()
    return base


@pytest.fixture(scope="module")
def nodes(root: Path) -> Iterator[Connection]:
    with connect(nodes=3, workers=1, root=root) as connection:
        yield connection


def holders(connection: Connection, name: str) -> list[set[str]]:
    return [{node.split("-")[0] for node in each} for each in chunk_table(connection, name, ARRAY, CHUNKS).holder_sets]


def check_values(root: Path, name: str) -> None:
    expected = np.repeat(280 + np.arange(CHUNKS) % 7, SIZE).astype("float32")
    np.testing.assert_array_equal(read_embedded(root, name, ARRAY), expected)


def test_what_lay_on_one_node_spreads_and_then_nothing_moves(nodes: Connection, root: Path) -> None:
    receipt = rebalance(nodes, "one").to_dict()
    assert (receipt["status"], receipt["chunks"]["done"], receipt["dropped"]) == ("done", 20, 20)
    assert Counter(node for each in holders(nodes, "one") for node in each) == {"node0": 10, "node1": 10, "node2": 10}
    assert {len(each) for each in holders(nodes, "one")} == {1}
    check_values(root, "one")
    assert scrub_dataset(nodes, "one").findings == ()
    again = rebalance(nodes, "one").to_dict()
    assert (again["chunks"]["total"], again["dropped"]) == (0, 0)


def test_one_that_was_interrupted_goes_on(nodes: Connection, root: Path) -> None:
    """Between copying and dropping: more copies than are wanted."""
    before = find(nodes, "again").replicas
    replicate(nodes, "again", 2)
    assert {len(each) for each in holders(nodes, "again")} == {2}
    assert nodes.each_node(_asked, dict(before))
    receipt = rebalance(nodes, "again").to_dict()
    assert receipt["dropped"] >= CHUNKS
    assert Counter(node for each in holders(nodes, "again") for node in each) == {"node0": 10, "node1": 10, "node2": 10}
    check_values(root, "again")


def _asked(store: NodeStore, replicas: dict[str, int]) -> bool:
    """The dataset is to have so many copies."""
    store.put_record(store.record("again").next(replicas=replicas))
    return True


def test_copies_lie_on_different_racks(nodes: Connection, root: Path) -> None:
    assert replicate(nodes, "racks", 2).status == "done"
    assert holders(nodes, "racks") == [{"node0", "node2"}] * CHUNKS, "node1 stands where node0 does"
    assert rebalance(nodes, "racks").status == "done"
    found = holders(nodes, "racks")
    assert all("node2" in each and len(each) == 2 for each in found)
    assert Counter(node for each in found for node in each) == {"node0": 20, "node1": 10, "node2": 30}
    assert replicate(nodes, "racks", 1).to_dict()["dropped"] == CHUNKS
    assert {len(each) for each in holders(nodes, "racks")} == {1}
    check_values(root, "racks")
