"""zarr's contract of a store, and zarr arrays, over a real cluster: from its client, from another machine, and in tasks."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.core.buffer import Buffer, cpu
from zarr.testing.store import StoreTests

from gpuflow.cluster.connection import Connection
from gpuflow.cluster.locating import ClientLocator, reads_of
from gpuflow.datasets import catalog
from gpuflow.errors import ClusterError
from gpuflow.storage.cluster_store import ClusterStore
from gpuflow.storage.record import DatasetRecord

_numbers = itertools.count()


@pytest.fixture(scope="module")
def locator(three_nodes: Connection) -> Iterator[ClientLocator]:
    found = ClientLocator(three_nodes)
    yield found
    found.close()


class TestContract(StoreTests[ClusterStore, cpu.Buffer]):
    """Over three nodes, whose stores the client reads itself."""

    store_cls = ClusterStore
    buffer_cls = cpu.Buffer

    @pytest.fixture
    def store_kwargs(self, locator: ClientLocator) -> dict[str, Any]:
        return {"locator": locator, "name": f"contract{next(_numbers)}"}

    async def set(self, store: ClusterStore, key: str, value: Buffer) -> None:
        known = catalog.newest(store.locator).get(store.name) or DatasetRecord(store.name, 0, "ready")
        objects = {**known.objects, key: base64.b64encode(value.to_bytes()).decode()}
        assert catalog.publish(store.locator, known.next(objects=objects))

    async def get(self, store: ClusterStore, key: str) -> Buffer:
        roots = [node.root for node in store.locator._here.values()]
        found = {(root / "datasets" / store.name / key).read_bytes() for root in roots}
        assert (len(found), len(roots)) == (1, 3), "every node has it"
        return self.buffer_cls.from_bytes(found.pop())

    def test_store_repr(self, store: ClusterStore) -> None:
        assert repr(store) == f"ClusterStore('gpuflow://{store.name}')"

    def test_store_supports_writes(self, store: ClusterStore) -> None:
        assert store.supports_writes

    def test_store_supports_listing(self, store: ClusterStore) -> None:
        assert store.supports_listing


VALUES = np.arange(12 * 5, dtype="int32").reshape(12, 5)


def _write_rows(array: zarr.Array[Any], start: int) -> None:
    array[start : start + 2] = VALUES[start : start + 2]


def _read_rows(array: zarr.Array[Any], start: int) -> int:
    return int(array[start : start + 2].sum())


@pytest.mark.parametrize("elsewhere", [False, True], ids=["on a node's machine", "elsewhere"])
def test_tasks_and_clients_write_and_read_one_dataset(three_nodes: Connection, elsewhere: bool) -> None:
    locator, name = ClientLocator(three_nodes), f"written-{elsewhere}"
    if elsewhere:
        locator._here = {}
    array = zarr.create_array(ClusterStore(locator, name), name="x", shape=(12, 5), chunks=(2, 5), dtype="int32", fill_value=-1)
    assert (array[...] == -1).all()
    three_nodes.client.gather(three_nodes.client.map(_write_rows, [array] * 4, [0, 2, 4, 6], pure=False))
    array[8:] = VALUES[8:]
    three_nodes.ask("gf_sync")
    reader = zarr.open_array(ClusterStore(locator, name, read_only=True), path="x", mode="r")
    assert np.array_equal(reader[...], VALUES)
    starts = list(range(0, 12, 2))
    sums = three_nodes.client.gather(three_nodes.client.map(_read_rows, [reader] * 6, starts, pure=False))
    assert sums == [int(VALUES[start : start + 2].sum()) for start in starts]
    reads = three_nodes.client.run(reads_of).values()
    assert sum(read.get("local", 0) + read.get("peer", 0) for read in reads) >= 6
    table = catalog.chunk_table(three_nodes, name, "x", 6)
    assert (table.rows["generation"].tolist(), set(table.chunks_by_node().values())) == ([2] * 6, {2})
    locator.close()


def _create(locator: Any) -> None:
    zarr.create_array(ClusterStore(locator, "made-in-a-task"), name="x", shape=(2,), dtype="int8")


def test_a_task_cannot_make_arrays(three_nodes: Connection, locator: ClientLocator) -> None:
    with pytest.raises(ClusterError, match="a task can read and write chunks, and not make or change arrays"):
        three_nodes.client.submit(_create, locator, pure=False).result()
