"""A chunk of an output that a node took away with it, and that was made again meanwhile: the newer one counts when the node is back."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import numpy as np
import pytest
import zarr

import gpuflow
from gpuflow.cluster.connection import Connection
from gpuflow.datasets import catalog
from gpuflow.execution.changed import run_changed
from gpuflow.execution.run import run_pipeline
from gpuflow.pipelines.load import from_dict
from gpuflow.storage import dropping
from gpuflow.storage.manifest import Replica
from gpuflow.storage.node import NodeStore
from gpuflow.storage.record import STRIDE, is_first
from tests.execution.test_run import roots_of
from tests.helpers import read_back


def _taken_away(connection: Connection, dataset: str, chunk: int) -> tuple[Replica, bytes]:
    for root in roots_of(connection):
        with closing(NodeStore(root)) as store:
            replica = store.manifest.replica(dataset, "x", chunk)
            if replica is not None:
                data = bytes(store.read(dataset, "x", chunk)[1])
                assert dropping.drop(store, dataset, "x", {chunk: replica.generation}) == [chunk]
                return replica, data
    raise AssertionError("no node has it")


def _brought_back(connection: Connection, replica: Replica, data: bytes) -> None:
    """On a node that has not the one made meanwhile."""
    for root in roots_of(connection):
        with closing(NodeStore(root)) as store:
            if store.manifest.replica(replica.dataset, replica.array, replica.chunk) is None:
                store.commit([store.stage(replica, data)])
                return


def _generation(connection: Connection, dataset: str, chunk: int) -> int:
    return int(catalog.chunk_table(connection, dataset, "x", 4).rows["generation"][chunk])


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "changed"])
def test_what_is_made_again_outranks_what_comes_back(three_nodes: Connection, whole: bool) -> None:
    name, out = f"away-{whole}", f"away-{whole}-out"
    dataset = gpuflow.open(name, connection=three_nodes, mode="a")
    array = zarr.create_group(dataset.store).create_array("x", shape=(4, 8), chunks=(1, 8), dtype="float32")
    array[...] = 1
    spec = from_dict({"source": name, "steps": [{"map": "x * 2"}], "output": out})

    def run(chunk: int) -> None:
        receipt: Any = run_pipeline(three_nodes, spec) if whole else run_changed(three_nodes, spec, {"x": [chunk]})
        assert receipt.status == "done"
        assert receipt.outcome.tally.done == 1

    run_pipeline(three_nodes, spec)
    for value in (2, 3, 4):
        array[1] = value
        run(1)
    assert _generation(three_nodes, out, 1) == 4
    replica, data = _taken_away(three_nodes, out, 1)
    array[1] = 5
    run(1)
    assert _generation(three_nodes, out, 1) == STRIDE + 1
    assert is_first(STRIDE + 1)
    _brought_back(three_nodes, replica, data)
    np.testing.assert_array_equal(read_back(roots_of(three_nodes), out, "x")[1], 10)
    array[1] = 6
    run(1)
    assert _generation(three_nodes, out, 1) == STRIDE + 2
