"""How much memory a plan's chunks need on a worker, and whether it has that much.

Pure. Each thread of a worker passes one chunk at a time through a slot of buffers (see storage/buffers.py), each as large as the
largest chunk makes it; nothing else of a worker grows with the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

from gpuflow.datasets.sizes import StoredSizes
from gpuflow.errors import PlanTooLarge
from gpuflow.pipelines.plan import ArrayPlan
from gpuflow.pipelines.pulls import pulls_of
from gpuflow.steps.fuse import compile_steps
from gpuflow.steps.neighbours import Neighbours
from gpuflow.storage.codecs import ArrayCodec
from gpuflow.storage.framing import framing
from gpuflow.storage.metadata import ArrayMetadata

PROCESS_NBYTES = 280 * 2**20
"""Of a worker that has imported everything: 221 MiB measured with kernels from the cache, 269 MiB when it compiled them; and slack."""
_SERVED, _FETCHED = 4, 2
_PART_NBYTES = 8 * 2**20
"""Parts that a worker holds for its peers at once, and that a thread has of theirs: one under way, one in its hands. What a part may have:
see cluster/serving.py. Chunks as large as a part are kept at once; of smaller ones a part more is in the slack."""
_MOST_GATHERED_NBYTES, _GATHERED_SHARE = 2**31, 0.5
"""Of a task, and of what a thread may use: more would be read less often, but be lost with a worker, and leave fewer tasks to share out."""
_MANY, _FEW = 16, 3
_FILTERED = 4
"""Blocks that filters have at once: 2 to 3.2 were measured, of 48 MiB, with gaussian, median, minimum and rolling."""
_BOUND = 1.01
"""Compressors are given memory for their worst case, which is less than 1% above the data."""


@dataclass(frozen=True, slots=True)
class WorkerRoom:
    """A worker: nbytes that it may use, before Dask pauses it; device_nbytes: of its CUDA device's memory, for chunks under way; 0 where it
    has none. node: whose workers read each other's chunks from its disk."""

    name: str
    threads: int
    nbytes: int
    device_nbytes: int = 0
    node: str = ""


@dataclass(frozen=True, slots=True)
class Need:
    """What an array takes. chunks: their number; slot_nbytes: of the buffers that the largest passes through; moved_nbytes: of the
    largest, encoded, as peers ask for it; served_nbytes: of buffers in which parts of it are decoded for peers. device_nbytes: of a
    device's memory, for one chunk that is computed there."""

    array: str
    source: ArrayMetadata
    chunks: int
    slot_nbytes: int
    moved_nbytes: int
    served_nbytes: int = 0
    device_nbytes: int = 0


@dataclass(frozen=True, slots=True)
class Prediction:
    """Peak bytes of the worker that is nearest to its limit, and the array that takes them. cache_nbytes: of these, for decoded chunks that
    are kept. device_nbytes: of the memory of a worker's device, with as many chunks there as it has threads, or room for."""

    need: Need
    worker: WorkerRoom
    need_nbytes: int
    cache_nbytes: int = 0
    device_nbytes: int = 0

    @property
    def fits(self) -> bool:
        return self.need_nbytes <= self.worker.nbytes


@dataclass(frozen=True, slots=True)
class Caching:
    """keeps_nbytes: of decoded chunks that each worker may have in memory while the run is under way, its own and those of runs before it;
    None: as many as it has. takes, fills: whether the run itself takes some of them, and adds some: at most adds_nbytes."""

    keeps_nbytes: int | None = None
    takes: bool = False
    fills: bool = False
    adds_nbytes: int = 0

    def of(self, prediction: Prediction | None) -> Prediction | None:
        """With what the run adds."""
        if prediction is None:
            return None
        return replace(prediction, need_nbytes=prediction.need_nbytes + self.adds_nbytes, cache_nbytes=self.adds_nbytes)


def need_to_map(array: ArrayPlan, stored: StoredSizes) -> Need:
    """Reading, computing, and encoding for the target; a chunk that is carried over is only read as it is."""
    if array.carried:
        return Need(array.path, array.source, stored.chunks, stored.largest_nbytes, stored.largest_nbytes)
    computed = _computed_nbytes(array)
    slot = need_to_read(array.path, array.source, stored).slot_nbytes + computed
    # As it is stored; its frames decoded, and brought in order; what comes of it; the same cut up, encoded, and brought together.
    there = stored.largest_nbytes + 2 * array.source.chunk_nbytes + computed if array.steps else 0
    if there and framing(ArrayCodec(array.target)) is not None:
        there += 3 * array.target.chunk_nbytes
    return Need(
        array.path, array.source, stored.chunks, slot + _encoded_nbytes(array), stored.largest_nbytes, device_nbytes=there
    )


def _encoded_nbytes(array: ArrayPlan) -> int:
    """A chunk at the edge, padded, and what comes of it."""
    target, nbytes = array.target.chunk_nbytes, 0
    if any(size % chunk for size, chunk in zip(array.target.grid.shape, array.target.grid.chunks, strict=True)):
        nbytes += target
    if not is_raw(array.target):
        nbytes += int(target * _BOUND) * _copies(array.target)
    return nbytes


def gather_nbytes(workers: Sequence[WorkerRoom]) -> int:
    """Bytes that a task may gather from several chunks, on whatever worker it comes to run."""
    rooms = [(worker.nbytes - PROCESS_NBYTES) // max(worker.threads, 1) for worker in workers]
    return max(0, min([_MOST_GATHERED_NBYTES, *(int(room * _GATHERED_SHARE) for room in rooms)]))


@dataclass(frozen=True, slots=True)
class Sharing:
    """How chunks that share what they read are cut into tasks: `per_slot` tasks for each thread, of at most `most` chunks."""

    most: int
    per_slot: int

    def size(self, chunks: int, slots: int) -> int:
        """Of a task, where `slots` threads are there for so many chunks."""
        return max(1, min(self.most, -(-chunks // (self.per_slot * slots))))


def sharing(array: ArrayPlan, room: int) -> Sharing:
    """Of an array that is gathered. room: bytes that a task may gather. Each task reads what its chunks need: where each chunk of the
    source is needed by many, a second task would read nearly all of it again."""
    grid = array.target.grid
    most = max(1, room // max(1, _pulled_nbytes(array)))
    if not grid.size:
        return Sharing(most, _FEW)
    middle = grid.region(grid.ravel(tuple(count // 2 for count in grid.counts)))
    pulls = pulls_of(array.flow, array.specs, array.sources, middle)
    needed_by = max(len(one.chunks) * grid.size / max(1, array.sources[one.path].grid.size) for one in pulls)
    return Sharing(most, 1 if needed_by > _MANY else _FEW)


def need_to_gather(array: ArrayPlan, stored: Sequence[StoredSizes], workers: Sequence[WorkerRoom]) -> Need:
    """What the chunks of one task are computed from, and the buffers that chunks pass through on the way in and out. stored: of the
    arrays that are read, in their order."""
    grid = array.target.grid
    reads = [need_to_read(path, array.sources[path], one) for path, one in zip(array.flow.paths, stored, strict=True)]
    threads = sum(worker.threads for worker in workers)
    chunks = sharing(array, gather_nbytes(workers)).size(grid.size, max(threads, 1))
    read = max(one.slot_nbytes for one in reads)
    computed = _evaluated_nbytes(array)
    slot = read + chunks * _pulled_nbytes(array) + computed + _encoded_nbytes(array)
    moved = max(max(one.moved_nbytes for one in reads), min(_pulled_nbytes(array), _PART_NBYTES))
    return Need(array.path, array.source, -(-grid.size // chunks), slot, moved, read)


def _pulled_nbytes(array: ArrayPlan) -> int:
    """Decoded bytes that a chunk is computed from, of the one of a few that needs most."""
    grid = array.target.grid
    if not grid.size:
        return 0
    few = {0, grid.size - 1, grid.ravel(tuple(count // 2 for count in grid.counts))}
    return max(
        sum(int(one.nbytes.sum()) for one in pulls_of(array.flow, array.specs, array.sources, grid.region(chunk)))
        for chunk in few
    )


def _evaluated_nbytes(array: ArrayPlan) -> int:
    """What the steps' results take: nothing when there are none, one block when they are one pass over one array, else three of the
    widest: a step's input, a temporary, its result. Filters alone have them in the dtype that goes in or comes out."""
    steps = array.steps
    if len(array.flow.nodes) == 1:
        return 0
    elements = prod(array.target.grid.chunks)
    widest = max(spec.dtype.itemsize for spec in array.specs)
    if array.flow.is_chunkwise and (array.first_unresolved() is not None or compile_steps(steps, array.specs[0]).fused):
        return elements * widest
    pulled = max(_pulled_nbytes(array), elements * widest)
    if all(isinstance(one, Neighbours) for one in array.flow.applied):
        return _FILTERED * pulled
    return 3 * pulled * max(widest, 8) // widest


def need_to_read(path: str, metadata: ArrayMetadata, stored: StoredSizes) -> Need:
    """Stored bytes, and values where they are not the same memory."""
    decoded = metadata.chunk_nbytes * _copies(metadata) if stored.empty or not is_raw(metadata) else 0
    return Need(path, metadata, stored.chunks, stored.largest_nbytes + decoded, stored.largest_nbytes)


def is_raw(metadata: ArrayMetadata) -> bool:
    """Whether stored bytes are the values themselves: neither decoded nor encoded into other memory."""
    return [codec["name"] for codec in metadata.document["codecs"]] == ["bytes"] and not _is_turned(metadata)


def _is_turned(metadata: ArrayMetadata) -> bool:
    """Whether values are stored in another order of axes or bytes than they have in memory."""
    codecs = metadata.document["codecs"]
    return any(one["name"] == "transpose" or (one.get("configuration") or {}).get("endian") == "big" for one in codecs)


def _copies(metadata: ArrayMetadata) -> int:
    """Blocks that a codec fills on the way between stored bytes and values. zarr-python copies its input and its result."""
    if not ArrayCodec(metadata).is_fast:
        return 3
    return 2 if _is_turned(metadata) else 1


def _computed_nbytes(array: ArrayPlan) -> int:
    """What the steps' results take: one block when they are one pass, else three of the widest: a step's input, a temporary, its
    result."""
    if not array.steps:
        return 0
    elements = prod(array.source.grid.chunks)
    before, *after = array.specs
    widest = max(spec.dtype.itemsize for spec in after)
    waits = array.first_unresolved() is not None
    if waits or compile_steps(array.steps, before).fused:
        return elements * widest
    return elements * 3 * max(widest, before.dtype.itemsize, 8)


def predict(needs: Sequence[Need], workers: Sequence[WorkerRoom]) -> Prediction | None:
    """The worker with the least room to spare. None without arrays or workers."""
    several = _are_several(workers)
    predictions = [Prediction(need, worker, _nbytes(need, worker.threads, several)) for need in needs for worker in workers]
    tightest = max(predictions, key=lambda one: one.need_nbytes - one.worker.nbytes, default=None)
    there = max((_device_nbytes(need, worker) for need in needs for worker in workers), default=0)
    return None if tightest is None else replace(tightest, device_nbytes=there)


def _device_nbytes(need: Need, worker: WorkerRoom) -> int:
    """Of a worker's device: fewer chunks are there at once when it is full."""
    if not need.device_nbytes:
        return 0
    return min(worker.threads, need.chunks, worker.device_nbytes // need.device_nbytes) * need.device_nbytes


def _are_several(workers: Sequence[WorkerRoom]) -> bool:
    """Whether there are several nodes, which have chunks that others ask for."""
    return len({worker.node for worker in workers}) > 1


def _nbytes(need: Need, threads: int, several: bool) -> int:
    """several: chunks may also be served to peers, and fetched from them."""
    busy = min(threads, need.chunks)
    part = max(need.moved_nbytes, min(_PART_NBYTES, need.chunks * need.moved_nbytes))
    peers = (_SERVED + _FETCHED * busy) * part + _SERVED * need.served_nbytes
    return PROCESS_NBYTES + busy * need.slot_nbytes + (peers if several else 0)


def check(needs: Sequence[Need], workers: Sequence[WorkerRoom]) -> Prediction | None:
    """`predict`; PlanTooLarge when it does not fit, with what would."""
    for one in needs:
        for room in (room for room in workers if 0 < room.device_nbytes < one.device_nbytes):
            chunks, chunk_nbytes = one.source.grid.chunks, one.source.chunk_nbytes or one.moved_nbytes
            fitting = _fitting(chunks, room.device_nbytes / one.device_nbytes)
            device = f"the device of {room.name}"
            raise PlanTooLarge(one.array, chunks, chunk_nbytes, device, 1, one.device_nbytes, room.device_nbytes, 0, fitting)
    tightest = predict(needs, workers)
    if tightest is None or tightest.fits:
        return tightest
    worker, need = tightest.worker, tightest.need
    chunks, several = need.source.grid.chunks, _are_several(workers)
    threads = next((n for n in range(worker.threads - 1, 0, -1) if _nbytes(need, n, several) <= worker.nbytes), 0)
    # Smaller chunks are more chunks: enough for all threads, however few there are now.
    grown = _nbytes(replace(need, chunks=worker.threads), worker.threads, several) - PROCESS_NBYTES
    raise PlanTooLarge(
        need.array,
        chunks,
        need.source.chunk_nbytes or need.moved_nbytes,
        worker.name,
        worker.threads,
        tightest.need_nbytes,
        worker.nbytes,
        threads,
        _fitting(chunks, max(0, worker.nbytes - PROCESS_NBYTES) / max(1, grown)),
    )


def _fitting(chunks: tuple[int, ...], share: float) -> tuple[int, ...]:
    """The longest dimension halved until at most `share` of the elements are left; () when not even one is."""
    shape, whole = list(chunks), prod(chunks)
    while prod(shape) > share * whole:
        longest = max(range(len(shape)), key=lambda axis: shape[axis], default=-1)
        if longest < 0 or shape[longest] == 1:
            return ()
        shape[longest] = -(-shape[longest] // 2)
    return tuple(shape)
