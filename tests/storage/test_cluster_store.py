"""zarr's own contract of a store, and what zarr arrays do over nodes: chunks where they belong, one generation, no silent fill value."""

from __future__ import annotations

import asyncio
import base64
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.core.buffer import Buffer, cpu, default_buffer_prototype
from zarr.testing.store import StoreTests

from gpuflow.datasets import catalog
from gpuflow.datasets.here import NodesHere
from gpuflow.datasets.snapshots import roll_back, take_snapshot
from gpuflow.errors import ChunkCorrupt, ChunkLost, ConfigError, NameTaken, StaleChunk
from gpuflow.storage import disk, leases
from gpuflow.storage.cluster_store import ClusterStore
from gpuflow.storage.node import NodeStore
from gpuflow.storage.record import DatasetRecord
from gpuflow.storage.roots import node_roots
from tests.helpers import read_embedded


def two_nodes(root: Path) -> NodesHere:
    for number, node in enumerate(node_roots(root, 2)):
        NodeStore(node, name=f"n{number}").close()
    return NodesHere.below(root)


class TestContract(StoreTests[ClusterStore, cpu.Buffer]):
    """Over two nodes of this machine."""

    store_cls = ClusterStore
    buffer_cls = cpu.Buffer

    @pytest.fixture
    def store_kwargs(self, tmp_path: Path) -> Iterator[dict[str, Any]]:
        locator = two_nodes(tmp_path)
        yield {"locator": locator, "name": "d"}
        locator.close()

    async def set(self, store: ClusterStore, key: str, value: Buffer) -> None:
        known = catalog.newest(store.locator).get("d") or DatasetRecord("d", 0, "ready")
        objects = {**known.objects, key: base64.b64encode(value.to_bytes()).decode()}
        assert catalog.publish(store.locator, known.next(objects=objects))

    async def get(self, store: ClusterStore, key: str) -> Buffer:
        found = {(node / "datasets" / "d" / key).read_bytes() for node in store.locator._roots}
        assert len(found) == 1, "every node has it"
        return self.buffer_cls.from_bytes(found.pop())

    def test_store_repr(self, store: ClusterStore) -> None:
        assert repr(store) == "ClusterStore('gpuflow://d')"

    def test_store_supports_writes(self, store: ClusterStore) -> None:
        assert store.supports_writes

    def test_store_supports_listing(self, store: ClusterStore) -> None:
        assert store.supports_listing


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[NodesHere]:
    found = two_nodes(tmp_path)
    yield found
    found.close()


VALUES = np.random.default_rng(3).normal(size=(10, 7)).astype("float32")


def new_array(nodes: NodesHere, **options: Any) -> zarr.Array[Any]:
    group = zarr.open_group(ClusterStore(nodes, "d"), mode="a", attributes={"title": "a field"})
    array = group.create_array("a/t", shape=(10, 7), chunks=(4, 4), dtype="float32", fill_value=-1, **options)
    array[...] = VALUES
    return array


def opened(nodes: NodesHere, **options: Any) -> zarr.Array[Any]:
    return zarr.open_group(ClusterStore(nodes, "d", **options), mode="r" if options else "r+")["a/t"]


def test_an_array_written_with_zarr_lies_on_the_nodes_and_is_read_back(nodes: NodesHere, tmp_path: Path) -> None:
    new_array(nodes, dimension_names=["y", "x"])
    assert np.array_equal(opened(nodes, read_only=True)[...], VALUES)
    assert np.array_equal(read_embedded(tmp_path, "d", "a/t"), VALUES), "and by plain zarr from the nodes' folders"
    table = catalog.chunk_table(nodes, "d", "a/t", 6)
    assert table.chunks_by_node() == dict.fromkeys(nodes.stores, 3)
    assert set(table.rows["generation"].tolist()) == {2}
    group = zarr.open_group(ClusterStore(nodes, "d", read_only=True), mode="r")
    assert (dict(group.attrs), group["a/t"].metadata.dimension_names) == ({"title": "a field"}, ("y", "x"))
    assert sorted(group["a"].keys()) == ["t"]
    for store in nodes.stores.values():
        assert not store.manifest.intents()


def test_what_nobody_has_written_is_fill_value_and_what_is_lost_is_not(nodes: NodesHere) -> None:
    array = new_array(nodes)
    array[4:8, :4] = -1
    assert (opened(nodes, read_only=True)[4:8, :4] == -1).all()
    store = nodes.local("d", "a/t", 0)[0]
    store.path("d", "a/t", 0).unlink()
    with pytest.raises(ChunkCorrupt, match=rf"chunk d/a/t/c/0/0 on node {store.node_id} is damaged: its file is missing"):
        opened(nodes, read_only=True)[0, 0]


def test_all_replicas_gone_is_an_error_that_names_chunk_and_nodes(nodes: NodesHere, tmp_path: Path) -> None:
    new_array(nodes)
    first, second = nodes.stores.values()
    there = [chunk for chunk in range(6) if first.manifest.replica("d", "a/t", chunk)]
    gone = [chunk for chunk in range(6) if chunk not in there]
    with_first = NodesHere(first.root)
    array = zarr.open_group(ClusterStore(with_first, "d", read_only=True), mode="r")["a/t"]
    names = "|".join(first.record("d").chunk_name("a/t", chunk) for chunk in gone)  # they are read side by side
    with pytest.raises(ChunkLost, match=rf"no live replica of chunk ({names}) \(searched: {first.node_id}\)"):
        array[...]
    with_first.close()
    assert all(second.manifest.replica("d", "a/t", chunk) for chunk in gone)


def test_two_replicas_are_written_and_one_is_read_when_the_other_is_damaged(nodes: NodesHere) -> None:
    store = ClusterStore(nodes, "d")
    zarr.open_group(store, mode="a")
    assert catalog.publish(nodes, nodes.record("d").next(replicas={"min": 2, "max": 2}))
    array = zarr.create_array(ClusterStore(nodes, "d"), name="a", shape=(8,), chunks=(4,), dtype="int32")
    array[...] = np.arange(8)
    first, second = nodes.stores.values()
    for chunk in range(2):
        assert first.read("d", "a", chunk) == second.read("d", "a", chunk)
    first.path("d", "a", 1).write_bytes(b"other bytes")
    second.path("d", "a", 0).write_bytes(b"other bytes")
    assert zarr.open_array(ClusterStore(nodes, "d", read_only=True), path="a", mode="r")[...].tolist() == list(range(8))
    assert first.read("d", "a", 1)[1] == second.read("d", "a", 1)[1], "it was made good on the way"


def test_parts_of_a_shard_are_read_and_the_shard_verified_once(nodes: NodesHere) -> None:
    array = zarr.create_array(
        ClusterStore(nodes, "d"), name="s", shape=(8, 6), shards=(4, 6), chunks=(2, 3), dtype="float32", fill_value=0
    )
    values = np.arange(48, dtype="float32").reshape(8, 6)
    array[...] = values
    nodes.reads.clear()
    reader = zarr.open_array(ClusterStore(nodes, "d", read_only=True), path="s", mode="r")
    assert np.array_equal(reader[5:7, 1:4], values[5:7, 1:4])
    assert nodes.reads["local"] == 1
    path = nodes.local("d", "s", 0)[0].path("d", "s", 0)
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)
    with pytest.raises(ChunkCorrupt, match="d/s/c/0/0"):
        reader[3, 5]  # not the inner chunk that was hit


def test_an_array_grows_along_its_first_axis_and_no_other(nodes: NodesHere) -> None:
    array = new_array(nodes)
    array.resize((14, 7))
    array[10:] = 5
    found = opened(nodes, read_only=True)
    assert np.array_equal(found[:10], VALUES)
    assert (found[10:] == 5).all()
    with pytest.raises(ConfigError, match=r"d/a/t of shape \(14, 7\) cannot become \(14, 9\); it can grow along its first axis"):
        array.resize((14, 9))
    take_snapshot(nodes, "d", "before")
    with pytest.raises(NameTaken, match="dataset 'd' has snapshots, which are of its arrays as they are; delete them first"):
        array.resize((18, 7))
    with pytest.raises(NameTaken, match="has snapshots"):
        del zarr.open_group(ClusterStore(nodes, "d"), mode="r+")["a/t"]
    array[10:] = 6
    roll_back(nodes, "d", "before")
    assert (opened(nodes, read_only=True)[10:] == 5).all()


def test_arrays_and_datasets_are_deleted_and_made_anew(nodes: NodesHere, tmp_path: Path) -> None:
    new_array(nodes)
    group = zarr.open_group(ClusterStore(nodes, "d"), mode="r+")
    group.create_array("b", shape=(4,), chunks=(2,), dtype="int8")[...] = 1
    del group["a/t"]
    assert sorted(nodes.record("d").arrays) == ["b"]
    assert not [store for store in nodes.stores.values() if (store.root / "datasets/d/a/t").exists()]
    again = group.create_array("a/t", shape=(10, 7), chunks=(4, 4), dtype="float32", fill_value=3)
    assert (again[...] == 3).all()
    assert group["b"][...].tolist() == [1] * 4
    anew = zarr.open_group(ClusterStore(nodes, "d"), mode="w")
    assert list(anew.keys()) == []
    anew.create_array("c", shape=(3,), dtype="int16")[...] = 2
    assert sorted(nodes.record("d").arrays) == ["c"]
    assert read_embedded(tmp_path, "d", "c").tolist() == [2, 2, 2]


def test_a_view_reads_one_generation(nodes: NodesHere) -> None:
    writer = new_array(nodes)
    reader = opened(nodes, read_only=True)
    assert np.array_equal(reader[:4], VALUES[:4])
    writer[4:8, :4] = 0
    assert np.array_equal(reader[:4], VALUES[:4]), "what has not been changed"
    with pytest.raises(StaleChunk, match="chunk d/a/t/c/1/0 is at generation 3, not 2"):
        reader[4:8]
    assert (writer[4:8, :4] == 0).all()
    assert (opened(nodes, read_only=True)[4:8, :4] == 0).all()


def test_while_a_run_changes_the_dataset_nobody_else_writes_or_opens_it(nodes: NodesHere) -> None:
    array = new_array(nodes)
    reader = opened(nodes, read_only=True)
    for store in nodes.stores.values():
        assert leases.take(store, "d", "a pipeline", "run7") is None
    with pytest.raises(NameTaken, match="dataset 'd' is being changed in place by run run7; write to it when that has ended"):
        array[:4, :4] = 1
    with pytest.raises(NameTaken, match="is being changed in place by run run7"):
        zarr.open_group(ClusterStore(nodes, "d"), mode="r+").create_array("b", shape=(4,), dtype="int8")
    with pytest.raises(NameTaken, match="is being changed in place by run run7; open it when that has ended"):
        reader[0, 0]
    for store in nodes.stores.values():
        leases.release(store, "d", "run7")
    array[0, 0] = 1
    assert reader[0, 0] == 1


def test_what_a_source_made_is_not_made_again_once_somebody_wrote_to_it(nodes: NodesHere) -> None:
    new_array(nodes)
    assert catalog.publish(nodes, nodes.record("d").next(origin={"kind": "ingest", "location": "/x"}))
    opened(nodes)[0, 0] = 7
    opened(nodes)[9, 6] = 7
    assert [transform["declared"] for transform in nodes.record("d").transforms] == ["written"]


def test_a_store_goes_through_pickle_with_its_view(nodes: NodesHere) -> None:
    new_array(nodes)
    reader = opened(nodes, read_only=True)
    reader[0, 0]
    other = pickle.loads(pickle.dumps(reader))
    opened(nodes)[0, 0] = 9
    with pytest.raises(StaleChunk):
        other[0, 0]
    assert np.array_equal(other[4:], VALUES[4:])
    other.store.locator.close()


@pytest.mark.parametrize("key", ["../x", "a//b", "/x", "a/./b", ""])
def test_keys_that_would_lead_elsewhere(nodes: NodesHere, key: str) -> None:
    with pytest.raises(ConfigError, match="is no key of a Zarr hierarchy"):
        ClusterStore(nodes, "d").set_sync(key, cpu.Buffer.from_bytes(b"x"))


def test_what_a_dataset_cannot_hold(nodes: NodesHere) -> None:
    with pytest.raises(ConfigError, match="the root of dataset 'd' is a group; give the array a name"):
        zarr.create_array(ClusterStore(nodes, "d"), shape=(4,), dtype="int8")
    with pytest.raises(ConfigError, match="x/0 has 1048577 bytes and is no chunk of an array"):
        ClusterStore(nodes, "d").set_sync("x/0", cpu.Buffer.from_bytes(bytes(2**20 + 1)))
    zarr.open_group(ClusterStore(nodes, "e"), mode="a")
    assert catalog.publish(nodes, nodes.record("e").next(state="writing"))
    with pytest.raises(NameTaken, match="dataset 'e' is not complete"):
        zarr.create_array(ClusterStore(nodes, "e"), name="x", shape=(4,), dtype="int8")


def test_arrays_without_chunks_or_dimensions(nodes: NodesHere) -> None:
    group = zarr.open_group(ClusterStore(nodes, "d"), mode="a")
    group.create_array("empty", shape=(0, 3), chunks=(2, 3), dtype="int8")
    scalar = group.create_array("scalar", shape=(), dtype="float64")
    scalar[...] = 2.5
    text = group.create_array("names", shape=(2,), chunks=(1,), dtype="string")
    text[...] = np.array(["a", "bcd"], dtype=object)
    found = zarr.open_group(ClusterStore(nodes, "d", read_only=True), mode="r")
    assert found["empty"][...].shape == (0, 3)
    assert found["scalar"][()] == 2.5
    assert found["names"][...].tolist() == ["a", "bcd"]


@pytest.mark.parametrize("together", [1, 3])
async def test_a_large_chunk_that_is_cached_is_read_without_a_thread_when_it_is_alone(
    nodes: NodesHere, monkeypatch: pytest.MonkeyPatch, together: int
) -> None:
    values = np.random.default_rng(0).integers(0, 256, (3, 2**20), "uint8")
    zarr.create_array(ClusterStore(nodes, "d"), name="x", data=values, chunks=(1, 2**20), compressors=None)
    store = ClusterStore(nodes, "d", read_only=True)
    keys, prototype, threads = [f"x/c/{row}/0" for row in range(together)], default_buffer_prototype(), list[str]()
    await asyncio.gather(*(store.get(key, prototype) for key in keys))  # where they lie is looked up
    real = asyncio.to_thread
    monkeypatch.setattr(asyncio, "to_thread", lambda *args, **options: threads.append(args[1]) or real(*args, **options))
    found = await asyncio.gather(*(store.get(key, prototype) for key in keys))
    assert [one.to_bytes() for one in found if one] == [row.tobytes() for row in values[:together]]
    assert threads == (keys if together > 1 else [])
    if together == 1:
        file = next(root / "datasets/d" / keys[0] for root in nodes._roots if (root / "datasets/d" / keys[0]).exists())
        monkeypatch.setattr(disk.os, "RWF_NOWAIT", 2**30)  # as of a file system that cannot tell what is cached
        assert (await store.get(keys[0], prototype)) is not None
        assert threads == keys
        file.write_bytes(bytes(2**20))
        with pytest.raises(ChunkCorrupt, match="d/x/c/0/0"):
            await store.get(keys[0], prototype)
