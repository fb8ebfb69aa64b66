"""Chunks served to peers: those of a group in parts of some megabytes, named by their place in the manifest, never by a path.

Memory is bounded: few parts are in hand at once, and a large one is in hand until its receiver has it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field
from typing import Any

import numpy as np
from distributed import Status
from distributed.comm import Comm
from distributed.protocol import to_serialize
from numpy.typing import NDArray

from gpuflow.errors import ChunkCorrupt, NotFound
from gpuflow.storage.blocks import Box, read_block
from gpuflow.storage.buffers import Buffer, Slot, Slots
from gpuflow.storage.disk import digest
from gpuflow.storage.manifest import Replica
from gpuflow.storage.node import NodeStore
from gpuflow.storage.opened import read_ranges
from gpuflow.storage.snapshots import Kept, read_kept

PART_NBYTES = 8 * 2**20
"""Of a part, unless one chunk has more: Dask's comms are as fast with it as with 64 MiB (2.5 GB/s on loopback)."""
PART_CHUNKS = 256
_SERVED_AT_ONCE = 4  # parts in memory for peers, so that a hot node does not fill up; two cores saturate a 10 Gbit/s link
_QUEUE_SECONDS = 1.0  # after which a peer is told that it has to wait, so that it does not take this worker for stalled
_ACKNOWLEDGED_NBYTES = 2**20  # a comm takes whatever it is given to write: only the receiver knows when it is through

_STALL_SECONDS = 4.0  # for a peer's event loop and disk: a busy worker answers within one
_SLOWEST = 10e6  # bytes/s of a link that is not taken for broken: an eighth of 1 Gbit/s


def patience_seconds(nbytes: int) -> float:
    """How long a peer may take for `nbytes` before it counts as stalled."""
    return _STALL_SECONDS + nbytes / _SLOWEST


@dataclass(slots=True)
class Part:
    """An answer to a question for chunks: about the first `count` of them. What is neither sound nor damaged is not here.

    data: of the sound ones, one behind the other: their bytes, or the boxes that were asked for, decoded; sent: how many bytes that is
    of each, and their digest. damaged: (chunk, what is wrong)."""

    count: int
    sound: list[Replica] = field(default_factory=list)
    sent: list[tuple[int, bytes]] = field(default_factory=list)
    damaged: list[tuple[int, str]] = field(default_factory=list)
    data: NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))


class _Memory(Buffer):
    """What chunks are read into, one behind the other."""

    def __init__(self, nbytes: int) -> None:
        super().__init__()
        super().bytes(nbytes + 1)  # see read_into
        self.used = 0

    def bytes(self, nbytes: int) -> NDArray[np.uint8]:
        return self._memory[self.used : self.used + nbytes]


def read_part(store: NodeStore, dataset: str, array: str, chunks: Sequence[int]) -> Part:
    """The first of `chunks`, verified, as many as make a part; at least one."""
    try:
        record = store.record(dataset)
        record.array(array)
    except NotFound:
        return Part(len(chunks))
    here = store.manifest.replicas_of(dataset, array, chunks)
    part = Part(_count(chunks, here))
    wanted = [here[chunk] for chunk in chunks[: part.count] if chunk in here]
    memory = _Memory(sum(replica.nbytes for replica in wanted))
    pieces: list[NDArray[np.uint8]] = []
    for replica in wanted:
        path = f"{store.root}/datasets/{record.chunk_name(array, replica.chunk)}"
        data: bytes | memoryview[int] | None = store.read_known(path, replica, memory)
        if data is not None:
            memory.used += len(data)
        else:  # it is EMPTY, or not what it was a moment ago
            try:
                replica, data = store.read(dataset, array, replica.chunk)
            except ChunkCorrupt as error:
                part.damaged.append((replica.chunk, error.reason))
                continue
            except LookupError:
                continue
        part.sound.append(replica)
        part.sent.append((replica.nbytes, replica.digest))
        pieces.append(np.frombuffer(data, np.uint8))
    contiguous = sum(map(len, pieces)) == memory.used
    part.data = memory._memory[: memory.used] if contiguous else np.concatenate(pieces)
    return part


def read_boxes(
    store: NodeStore, dataset: str, array: str, chunks: Sequence[int], boxes: Sequence[Sequence[Box]], slot: Slot
) -> Part:
    """Of the first of `chunks`, as many as make a part, at least one: the boxes within each, decoded, one behind the other."""
    try:
        codec = store.codec(dataset, array)
    except NotFound:
        return Part(len(chunks))
    here = store.manifest.replicas_of(dataset, array, chunks)
    part, pieces, nbytes = Part(0), list[NDArray[np.uint8]](), 0
    for chunk, wanted in zip(chunks[:PART_CHUNKS], boxes, strict=False):
        if part.count and nbytes > PART_NBYTES:
            break
        part.count += 1
        if chunk not in here:
            continue
        try:
            replica, block = read_block(store, codec, here[chunk], slot, wanted)
        except ChunkCorrupt as error:
            part.damaged.append((chunk, error.reason))
            continue
        except LookupError:
            continue
        cut = [np.ascontiguousarray(block[box]).reshape(-1).view(np.uint8) for box in wanted]
        data = np.concatenate(cut)
        part.sound.append(replica)
        part.sent.append((len(data), digest(data.data)))
        pieces.append(data)
        nbytes += len(data)
    part.data = np.concatenate(pieces) if pieces else part.data
    return part


def _count(chunks: Sequence[int], here: dict[int, Replica]) -> int:
    nbytes = 0
    for position, chunk in enumerate(chunks[:PART_CHUNKS]):
        nbytes += here[chunk].nbytes if chunk in here else 0
        if position and nbytes > PART_NBYTES:
            return position
    return min(len(chunks), PART_CHUNKS)


class Serving:
    """A worker's side as a peer of others."""

    def __init__(self, store: NodeStore) -> None:
        self._store, self._free, self._slots = store, asyncio.Semaphore(_SERVED_AT_ONCE), Slots()
        self.sent: Counter[str] = Counter()
        """run -> chunk bytes that left this worker"""

    async def get_chunks(
        self, comm: Comm, dataset: str, array: str, chunks: Sequence[int], run: str, boxes: Sequence[Any] | None = None
    ) -> Any:
        """A part of `chunks` to a peer, or word that it has to wait. boxes: within each chunk, (start, stop) per axis: these, decoded,
        and not the chunks as they are stored."""
        try:
            async with asyncio.timeout(_QUEUE_SECONDS):
                await self._free.acquire()
        except TimeoutError:
            return {"busy": True}
        try:
            if boxes is None:
                part = await asyncio.to_thread(read_part, self._store, dataset, array, list(chunks))
            else:
                part = await asyncio.to_thread(self._read_boxes, dataset, array, list(chunks), boxes)
            await self._deliver(comm, part, run)
            return Status.dont_reply
        finally:
            self._free.release()

    async def get_ranges(self, objects: Sequence[Sequence[Any]], run: str) -> dict[str, Any]:
        """Ranges of stored objects, one behind the other, not verified, and the digest of that. objects: of each dataset, array, number of
        the chunk, its digest as it was committed, and ranges. In the answer `lacks`: why one is left out, since it is not here as it was
        committed, or has no such ranges; else nothing."""
        async with self._free:
            found = await asyncio.to_thread(lambda: [self._read_ranges(*one) for one in objects])
        data = np.concatenate([one for one in found if not isinstance(one, str)] or [np.empty(0, np.uint8)])
        self.sent[run] += len(data)
        lacks = [one if isinstance(one, str) else "" for one in found]
        return {"data": to_serialize(data), "digest": digest(data.data), "lacks": lacks}

    async def get_kept(self, dataset: str, tag: str, identity: str, array: str, chunk: int) -> dict[str, Any]:
        """A chunk of a snapshot: see `read_kept`."""
        async with self._free:
            replica, data = await asyncio.to_thread(read_kept, self._store, Kept(dataset, tag, identity), array, chunk)
        return {"replica": astuple(replica)[3:], "data": to_serialize(np.frombuffer(data, np.uint8))}

    def _read_ranges(
        self, dataset: str, array: str, chunk: int, committed: bytes, ranges: Sequence[Sequence[int]]
    ) -> NDArray[np.uint8] | str:
        """What was asked for, or why it does not come."""
        replica = self._store.manifest.replica(dataset, array, chunk)
        if replica is None or replica.digest != committed:
            return f"node {self._store.node_id} does not have it as it was committed"
        try:
            return read_ranges(self._store, replica, [(start, stop) for start, stop in ranges])
        except OSError as error:
            return str(error)

    def _read_boxes(self, dataset: str, array: str, chunks: Sequence[int], boxes: Sequence[Any]) -> Part:
        parsed = [[tuple(slice(*bounds) for bounds in box) for box in of_chunk] for of_chunk in boxes]
        with self._slots.take() as slot:
            return read_boxes(self._store, dataset, array, chunks, parsed, slot)

    async def _deliver(self, comm: Comm, part: Part, run: str) -> None:
        acknowledge = len(part.data) > _ACKNOWLEDGED_NBYTES
        rows = [
            (r.chunk, r.generation, r.nbytes, r.digest, r.recipe, r.inputs, *sent)
            for r, sent in zip(part.sound, part.sent, strict=True)
        ]
        answer = {"count": part.count, "sound": rows, "damaged": part.damaged, "node": self._store.node_id}
        try:
            await comm.write({**answer, "data": to_serialize(part.data), "acknowledge": acknowledge})
            self.sent[run] += len(part.data)
            if acknowledge:
                async with asyncio.timeout(patience_seconds(len(part.data))):
                    await comm.read()
        except OSError:  # the peer is gone, or stalls: it will ask again, or another
            comm.abort()
