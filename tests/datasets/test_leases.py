"""A lease is held on all nodes, kept while a run lives, and given back."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path

import pytest

from gpuflow.datasets import leases
from gpuflow.datasets.catalog import NodesOnDisk
from gpuflow.errors import NameTaken
from gpuflow.storage.node import NodeStore


@pytest.fixture
def nodes(tmp_path: Path) -> NodesOnDisk:
    roots = (tmp_path / "a", tmp_path / "b")
    for root in roots:
        NodeStore(root).close()
    return NodesOnDisk(roots)


def test_one_pipeline_at_a_time(nodes: NodesOnDisk) -> None:
    with leases.leased(nodes, "d", "one", "run-1"):
        with pytest.raises(NameTaken, match=r"dataset 'd' is being changed in place by run run-1; wait for its end"):
            leases._take(nodes, "d", "two", "run-2")
        with leases.leased(nodes, "d", "one", "run-3"):
            pass
    with leases.leased(nodes, "d", "two", "run-2"):
        pass


def test_a_node_that_refuses_is_enough_and_the_others_are_given_back(nodes: NodesOnDisk) -> None:
    second = NodesOnDisk(nodes.roots[1:])
    with leases.leased(second, "d", "one", "run-1"), pytest.raises(NameTaken), leases.leased(nodes, "d", "two", "run-2"):
        pass
    with leases.leased(NodesOnDisk(nodes.roots[:1]), "d", "three", "run-3"):
        pass


def test_it_is_prolonged(nodes: NodesOnDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpuflow.storage.leases.LEASE_SECONDS", 0.3)
    with leases.leased(nodes, "d", "one", "run-1"):
        time.sleep(0.6)
        with pytest.raises(NameTaken):
            leases._take(nodes, "d", "two", "run-2")


def test_what_died_gives_way(nodes: NodesOnDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpuflow.storage.leases.LEASE_SECONDS", 0.2)
    with closing(NodeStore(nodes.roots[0])) as store:
        leases.leases.take(store, "d", "one", "run-1")
    time.sleep(0.25)
    with leases.leased(nodes, "d", "two", "run-2"):
        pass
