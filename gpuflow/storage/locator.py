"""Where the newest generation of each chunk is, and how to have its bytes.

What reads chunks outside of a run (a Zarr store, a loader) reads them through a `Locator`: from a node's store on this machine where that
holds the newest generation, else from a peer. Bytes are returned when they have their digest. A chunk that should exist and is nowhere is
an error, never fill value."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gpuflow.errors import ChunkCorrupt, ChunkLost, NotFound, StaleChunk, StoreError
from gpuflow.storage.byte_codecs import Bytes
from gpuflow.storage.lent import Lent
from gpuflow.storage.manifest import Replica
from gpuflow.storage.node import NodeStore
from gpuflow.storage.opened import Range
from gpuflow.storage.record import DatasetRecord

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Whereabouts:
    """Of the chunks of one array, by linear index, as they were when it was asked.

    generations: (chunks,), the newest of each; 0 where no node that answered has the chunk. holders: (chunks,) numbers of `sets`, which
    are sets of node ids."""

    generations: NDArray[np.uint32]
    holders: NDArray[np.uint32]
    sets: Sequence[frozenset[str]]

    def holders_of(self, chunk: int) -> frozenset[str]:
        """Nodes that hold the newest generation of a chunk."""
        return self.sets[int(self.holders[chunk])]


@dataclass(frozen=True, slots=True)
class Found:
    """A chunk's verified bytes, none when it is EMPTY (all fill value, without a file). node: the one that they came from, by its id where
    that is known, else by address. local: whether that is on this machine."""

    replica: Replica
    data: bytes | memoryview[int]
    node: str
    local: bool


class Locator(Protocol):
    """A way to the nodes' chunks. Thread-safe.

    reads: what was read through it: chunks "local" and "peer", and their encoded bytes "local_nbytes" and "peer_nbytes"."""

    reads: Counter[str]

    def records(self) -> Mapping[str, DatasetRecord]:
        """The newest record of every dataset that is there, by name."""
        ...

    def record(self, dataset: str) -> DatasetRecord:
        """Of one dataset. NotFound offers the nearest names."""
        ...

    def whereabouts(self, dataset: str, array: str, count: int) -> Whereabouts:
        """What lies where of an array of `count` chunks, now. Asked once before many reads, since it may take a question to the cluster,
        and a second for 10^6 chunks."""
        ...

    def generations(self, dataset: str, array: str, count: int) -> NDArray[np.uint32]:
        """(count,): the newest generation of each chunk, now. A chunk that no node has may seem to have that of the others: reading it
        tells."""
        ...

    def local(self, dataset: str, array: str, chunk: int) -> tuple[NodeStore, Replica] | None:
        """The store on this machine with the newest generation that there is here, and that replica. No network."""
        ...

    def local_many(self, dataset: str, array: str, chunks: Sequence[int]) -> dict[int, tuple[NodeStore, Replica]]:
        """The same for those of `chunks` that are here, in a fraction of the time."""
        ...

    def fetch(self, dataset: str, array: str, chunk: int, least: int, but: Set[str] = frozenset()) -> Found:
        """A chunk from another node, at generation `least` or newer, verified. but: ids of nodes not to ask.

        ChunkLost, with the nodes that were asked, when none has it whole; ChunkCorrupt when one has it damaged."""
        ...

    def sizes(self, dataset: str, array: str, count: int) -> NDArray[np.uint64]:
        """(count,): encoded bytes of each chunk; 0 for one that is all fill value, or on no node."""
        ...

    def changed_by(self, record: DatasetRecord) -> str:
        """Why chunks of the dataset may be of two states, half before and half after an in-place pipeline; "" when they are not."""
        ...

    def close(self) -> None:
        """Give back what it holds open. Twice is harmless."""
        ...


@dataclass(frozen=True, slots=True)
class Parts:
    """A way to parts of one stored object. node: who has it; read: ranges of its bytes, one behind the other, not verified. OSError
    when the node does not give them, or has another object by now."""

    node: str
    read: Callable[[Sequence[Range]], Bytes]


class PartLocator(Locator, Protocol):
    """A locator through which stored objects are read in parts, too."""

    def parts(self, replica: Replica, but: Set[str] = frozenset()) -> Parts | None:
        """Of just this replica, on another node. but: ids of nodes not to ask. None when no other is known to have it."""
        ...


class Placer(Locator, Protocol):
    """A locator through which datasets are written, too."""

    def publish(self, record: DatasetRecord) -> bool:
        """Give the record to every node. False when another of that version was faster."""
        ...

    def last_version(self, dataset: str) -> int:
        """Of the record that the nodes have of a name, if only of a removed dataset; 0 without one."""
        ...

    def lay(self, record: DatasetRecord, array: str, first: int = 0) -> None:
        """Have the chunks of an array from number `first` on, all fill value, on the nodes where they belong."""
        ...

    def put(self, record: DatasetRecord, array: str, chunk: int, data: bytes | memoryview[int]) -> int:
        """Commit a chunk (no bytes: fill value) on every node that has it; its generation."""
        ...

    def check_free(self, dataset: str) -> None:
        """NameTaken while a run changes the dataset in place."""
        ...

    def forget(self, dataset: str, array: str | None = None) -> None:
        """An array, or the whole dataset, was removed from the nodes."""
        ...


def nearest_first(names: Sequence[str], wanted: str) -> list[str]:
    """All `names`, those that look most like `wanted` first."""
    near = get_close_matches(wanted, names, n=3)
    return [*near, *sorted(set(names) - set(near))]


def find_record(records: Mapping[str, DatasetRecord], name: str) -> DatasetRecord:
    """Record `name` of those. NotFound offers the nearest names."""
    if name in records:
        return records[name]
    near = get_close_matches(name, records, n=1)
    hint = f"did you mean {near[0]!r}?" if near else ("" if records else "nothing has been ingested here; see `gpuflow ingest`")
    raise NotFound("dataset", name, nearest_first(list(records), name), hint)


def read_chunk(locator: Locator, record: DatasetRecord, array: str, chunk: int, generation: int) -> Found:
    """One chunk at `generation`, as `whereabouts` told it: from this machine if it is here and sound, else from another node; a damaged
    one here is then made good.

    generation 0: whichever is here, else the newest. StaleChunk when the chunk has been changed since, ChunkLost when no live node has it,
    ChunkCorrupt when those that have it have it damaged. All name the chunk and the nodes."""
    dataset, name = record.name, record.chunk_name(array, chunk)
    here, damage = locator.local(dataset, array, chunk), None
    if here is not None and here[1].generation >= generation:
        store = here[0]
        try:
            return _at(locator, _read_here(store, here[1], name), name, generation)
        except (ChunkCorrupt, ChunkLost) as error:
            damage = error
    but = {here[0].node_id} if here is not None and damage else frozenset[str]()
    try:
        found = locator.fetch(dataset, array, chunk, max(generation, 1), but)
    except ChunkLost as error:
        if isinstance(damage, ChunkCorrupt):
            raise damage from error
        raise ChunkLost(name, sorted({*error.searched, *but})) from error
    if here is not None and damage:
        _mend(here[0], found, damage)
    return _at(locator, found, name, generation)


def _read_here(store: NodeStore, replica: Replica, name: str) -> Found:
    return read_known(store, replica, name) or Found(
        *store.read(replica.dataset, replica.array, replica.chunk), store.node_id, True
    )


def read_known(store: NodeStore, replica: Replica, name: str, *, cached: bool = False) -> Found | None:
    """A chunk as `replica`, which was looked up before, says that it is; None when its file is another one by now. cached: None, too, when
    it is not in the page cache."""
    data = store.read_known(f"{store.root}/datasets/{name}", replica, Lent(), cached=cached)
    return None if data is None else Found(replica, data, store.node_id, True)


def count_read(locator: Locator, found: Found) -> None:
    """Add it to what was read through the locator."""
    where = "local" if found.local else "peer"
    locator.reads[where] += 1
    locator.reads[f"{where}_nbytes"] += len(found.data)


def _at(locator: Locator, found: Found, name: str, generation: int) -> Found:
    if generation and found.replica.generation != generation:
        raise StaleChunk(name, generation, found.replica.generation)
    count_read(locator, found)
    return found


def _mend(store: NodeStore, found: Found, damage: Exception) -> None:
    """Put the sound bytes in place of what is damaged here. That it does not work does not concern who reads."""
    replica = found.replica
    known = store.manifest.replica(replica.dataset, replica.array, replica.chunk)
    try:
        store.commit([store.stage_copy(replica, found.data, replaces=known.generation if known else 0)])
        logger.warning("%s; copied anew from %s", damage, found.node)
    except (StoreError, StaleChunk, NotFound) as error:
        logger.warning("%s; read from %s, and could not be repaired here: %s", damage, found.node, error)
