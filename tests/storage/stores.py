"""A small dataset whose chunks say which generation they are, and what of it other processes do in these tests."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from gpuflow.errors import ChunkCorrupt, StaleChunk
from gpuflow.storage.disk import digest
from gpuflow.storage.manifest import REPLICA_DTYPE, Manifest, Replica
from gpuflow.storage.metadata import ArrayMetadata
from gpuflow.storage.node import EMPTY, NodeStore, Staged
from gpuflow.storage.rebuild import rebuild
from gpuflow.storage.record import DatasetRecord
from tests.storage.faults import Faults, patched

ARRAY = "a/b"
CHUNKS = 6


def new_record(name: str = "d", version: int = 1, state: str = "ready") -> DatasetRecord:
    """Six chunks of four int32 in a nested array, uncompressed; nothing of it in a tombstone."""
    if state == "removed":
        return DatasetRecord(name, version, state)
    metadata = ArrayMetadata.create((4 * CHUNKS,), (4,), np.dtype("int32"), compressor="none")
    keys = {
        "name": "default",
        "configuration": {"separator": "/"},
    }  # in a folder that is made with the first chunk, as others write it
    return DatasetRecord(
        name, version, state, {ARRAY: {**metadata.document, "chunk_key_encoding": keys}}, {"": {"title": name}, "a": {}}
    )


def content(chunk: int, generation: int) -> bytes:
    """The bytes of a chunk at a generation."""
    return np.full(4, 100 * chunk + generation, "<i4").tobytes()


def new_replica(chunk: int, generation: int, data: bytes | None = None, name: str = "d") -> Replica:
    """With no bytes (`b""`) an EMPTY one."""
    data = content(chunk, generation) if data is None else data
    recipe, checksum = digest(b"recipe" + data), digest(data) if data else EMPTY
    return Replica(name, ARRAY, chunk, generation, len(data), checksum, recipe, digest(b"inputs"))


def stage(store: NodeStore, chunk: int, generation: int, data: bytes | None = None, name: str = "d") -> Staged:
    """Generation `generation` of a chunk, to follow the one before it."""
    replica = new_replica(chunk, generation, data, name)
    if replica.digest == EMPTY:
        return store.stage_empty(replica, replaces=generation - 1)
    stored = content(chunk, generation) if data is None else data
    return store.stage(replica, stored, replaces=generation - 1)


def new_store(root: Path, chunks: Sequence[int] = (0, 1, 2)) -> NodeStore:
    """A store with dataset `d`, whose `chunks` are at generation 1."""
    store = NodeStore(root, name="n")
    store.put_record(new_record())
    store.commit([stage(store, chunk, 1) for chunk in chunks])
    return store


# -- in other processes -------------------------------------------------------------------------------------------------------


def killed_at(root: Path, scenario: str, call: int) -> int:
    """Run a scenario in a child that kills itself at the `call`-th call that changes the disk; the child's wait status."""
    from tests.storage.scenarios import SCENARIOS

    child = os.fork()
    if child == 0:
        with patched(Faults(call, kill=True)) as faults:
            SCENARIOS[scenario].run(NodeStore(root), faults)
        os._exit(0)
    return os.waitpid(child, 0)[1]


def killed_rebuild(root: Path, call: int) -> bool:
    """Rebuild in a child that kills itself at the `call`-th call that changes the disk; whether it did."""
    child = os.fork()
    if child == 0:
        with patched(Faults(call, kill=True)) as faults:
            faults.armed = True
            rebuild(root, {}, lambda dataset, array: np.empty(0, REPLICA_DTYPE))
        os._exit(0)
    return os.waitpid(child, 0)[1] != 0


def hold_store(root: Path) -> None:
    """Open the store, stage and announce a commit, then wait to be killed."""
    store = NodeStore(root)
    item = stage(store, 0, 2)
    store.manifest.announce([(item.replica, item.replaces)], store.writer.name)
    os.write(1, b"ready\n")
    time.sleep(60)


def race_for_chunk(root: Path, last: int, mark: int) -> tuple[int, int]:
    """Commit chunk 0 up to generation `last` against others who do the same: how often this process won, and lost."""
    store = NodeStore(root)
    won = lost = 0
    while True:
        replica, data = store.read("d", ARRAY, 0)
        assert data[4:8] == replica.generation.to_bytes(4, "little"), "a torn chunk"
        if replica.generation >= last:
            store.close()
            return won, lost
        following = replica.generation + 1
        data = mark.to_bytes(4, "little") + following.to_bytes(4, "little") + bytes(8)
        try:
            store.commit([stage(store, 0, following, data)], durable=False)
            won += 1
        except StaleChunk:
            lost += 1


def read_until(root: Path, last: int) -> tuple[int, int]:
    """Read chunks 0 and 1 until both are at generation `last`: how many reads, and how many went wrong."""
    store = NodeStore(root)
    reads = wrong = 0
    reached = [0, 0]
    while min(reached) < last:
        for chunk in (0, 1):
            try:
                replica, data = store.read("d", ARRAY, chunk)
                wrong += data != content(chunk, replica.generation) or replica.generation < reached[chunk]
                reached[chunk] = replica.generation
            except ChunkCorrupt:
                wrong += 1
            reads += 1
    store.close()
    return reads, wrong


def commit_rows(path: Path, chunks: Sequence[int], writer: str) -> None:
    """Announce and finish one chunk after the other, without files."""
    manifest = Manifest(path)
    for chunk in chunks:
        replica = new_replica(chunk, 1)
        assert manifest.announce([(replica, 0)], writer) == []
        manifest.finish([replica])
    manifest.close()


def open_fresh(root: Path, start: float) -> str:
    """The node id of a root that others open at the same moment."""
    time.sleep(max(0.0, start - time.time()))
    store = NodeStore(root, name="n")
    store.manifest.put_record(new_record(f"d{os.getpid()}"))
    store.close()
    return store.node_id


def recover(root: Path, start: float) -> int:
    """How many commits this process settled."""
    store = NodeStore(root)
    time.sleep(max(0.0, start - time.time()))
    count = store.recover()
    store.close()
    return count


# -- an array that grows ------------------------------------------------------------------------------------------------------


def growing_record(version: int, rows: int, becoming: int = 0) -> DatasetRecord:
    """`rows` int32 in chunks of four, which are to become `becoming`."""
    first = new_record(version=version)
    grown = {length: {**first.arrays[ARRAY], "shape": [length]} for length in (rows, becoming)}
    growth = {"arrays": {ARRAY: grown[becoming]}} if becoming else {}
    return replace(first, arrays={ARRAY: grown[rows]}, growth=growth)


def grow(store: NodeStore, to: int = 18) -> None:
    """From ten rows, as an append does it: what is to become; the chunks, of which the one at the old end is rewritten; the new shape."""
    store.put_record(growing_record(2, 10, to))
    rows, staged = np.arange(to, dtype="<i4"), []
    for chunk in range(2, -(-to // 4)):
        here = store.manifest.replica("d", ARRAY, chunk)
        data = np.pad(rows[4 * chunk : 4 * chunk + 4], (0, max(0, 4 * chunk + 4 - to))).tobytes()
        replica = new_replica(chunk, here.generation + 1 if here else 1, data)
        if here is None or here.recipe != replica.recipe:
            staged.append(store.stage(replica, data, replaces=here.generation if here else 0))
    store.commit(staged)
    store.put_record(growing_record(3, to))


def killed_growing(root: Path, call: int) -> int:
    """`grow` in a child that kills itself at the `call`-th call that changes the disk; the child's wait status."""
    child = os.fork()
    if child == 0:
        with patched(Faults(call, kill=True)) as faults:
            store = NodeStore(root)
            _ = store.writer
            faults.armed = True
            grow(store)
        os._exit(0)
    return os.waitpid(child, 0)[1]
