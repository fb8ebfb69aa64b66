"""Chunks that somebody writes outside of a run: what is done to a node's store.

The next generation of a chunk is committed on a node that has the newest, whose manifest puts writers in an order; the others take a copy
of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from gpuflow.errors import ChunkLost, NameTaken, StaleChunk
from gpuflow.storage import leases
from gpuflow.storage.disk import digest
from gpuflow.storage.manifest import Replica
from gpuflow.storage.node import EMPTY, NodeStore
from gpuflow.storage.record import DatasetRecord

_TRIES = 20  # of two that write one chunk at the same moment, the slower comes after the other
_GROUP_CHUNKS = 4096


def check_free(store: NodeStore, dataset: str) -> None:
    """NameTaken while a run changes the dataset in place: what is written beside it would be taken for its input, or lost."""
    run = leases.holder(store, dataset)
    if run is not None:
        what = "appended to" if run.startswith(leases.ADDING) else "changed in place"
        raise NameTaken(
            dataset,
            f"is being {what} by run {run.removeprefix(leases.ADDING)}; write to it when that has ended, or to another name",
        )


def write_chunk(store: NodeStore, dataset: str, array: str, chunk: int, data: bytes | memoryview[int]) -> Replica:
    """Commit `data` (none of it: fill value) as the next generation of a chunk that this node has.

    ChunkLost when it has none; NameTaken while a run has the dataset."""
    check_free(store, dataset)
    name = store.record(dataset).chunk_name(array, chunk)
    for left in reversed(range(_TRIES)):
        here = store.manifest.replica(dataset, array, chunk)
        if here is None:
            raise ChunkLost(name, [store.node_id])
        replica = written(dataset, array, chunk, here.generation + 1, data)
        staged = (
            store.stage(replica, data, replaces=here.generation)
            if len(data)
            else store.stage_empty(replica, replaces=here.generation)
        )
        try:
            store.commit([staged])
            return replica
        except StaleChunk:
            if not left:
                raise
    raise AssertionError(name)


def written(dataset: str, array: str, chunk: int, generation: int, data: bytes | memoryview[int]) -> Replica:
    """The replica of a chunk that somebody wrote: no pipeline made it."""
    content = digest(data) if len(data) else EMPTY
    return Replica(dataset, array, chunk, generation, len(data), content, written_recipe(content), EMPTY)


def written_recipe(content: bytes) -> bytes:
    """The recipe of bytes with the digest `content` that somebody wrote."""
    return digest(b"written" + content)


def lay_empty(store: NodeStore, record: DatasetRecord, array: str, chunks: Sequence[int]) -> None:
    """Have chunks of a new array here, all fill value: so that one which nobody has written is not taken for a lost one."""
    store.put_record(record)
    check_free(store, record.name)
    here = store.manifest.replicas(record.name, array)
    known = set(here["chunk"].tolist())
    for group in _groups([chunk for chunk in chunks if chunk not in known]):
        store.commit([store.stage_empty(written(record.name, array, chunk, 1, b"")) for chunk in group])


def _groups(chunks: Sequence[int]) -> Iterator[list[int]]:
    rest = iter(chunks)
    while group := list(islice(rest, _GROUP_CHUNKS)):
        yield group
