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
from gpuflow.steps.fuse import compile_steps
from gpuflow.storage.codecs import ArrayCodec
from gpuflow.storage.metadata import ArrayMetadata

PROCESS_NBYTES = 320 * 2**20
"""Of a worker that has imported everything: 216 MiB measured with kernels from the cache, 252 MiB when it compiled them; and slack."""
_SERVED, _FETCHED = 4, 2
_PART_NBYTES = 8 * 2**20
"""Parts that a worker holds for its peers at once, and that a thread has of theirs: one under way, one in its hands. What a part may have:
see cluster/serving.py. Chunks as large as a part are kept at once; of smaller ones a part more is in the slack."""
_BOUND = 1.01
"""Compressors are given memory for their worst case, which is less than 1% above the data."""


@dataclass(frozen=True, slots=True)
class WorkerRoom:
    """A worker: nbytes that it may use, before Dask pauses it."""

    name: str
    threads: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Need:
    """What an array takes. chunks: their number; slot_nbytes: of the buffers that the largest passes through; moved_nbytes: of the
    largest, encoded, as peers ask for it."""

    array: str
    source: ArrayMetadata
    chunks: int
    slot_nbytes: int
    moved_nbytes: int


@dataclass(frozen=True, slots=True)
class Prediction:
    """Peak bytes of the worker that is nearest to its limit, and the array that takes them."""

    need: Need
    worker: WorkerRoom
    need_nbytes: int

    @property
    def fits(self) -> bool:
        return self.need_nbytes <= self.worker.nbytes


def need_to_map(array: ArrayPlan, stored: StoredSizes) -> Need:
    """Reading, computing, and encoding for the target; a chunk that is carried over is only read as it is."""
    if array.carried:
        return Need(array.path, array.source, stored.chunks, stored.largest_nbytes, stored.largest_nbytes)
    slot = need_to_read(array.path, array.source, stored).slot_nbytes + _computed_nbytes(array)
    target = array.target.chunk_nbytes
    if any(size % chunk for size, chunk in zip(array.target.grid.shape, array.target.grid.chunks, strict=True)):
        slot += target
    if not _is_raw(array.target):
        slot += int(target * _BOUND) * _copies(array.target)
    return Need(array.path, array.source, stored.chunks, slot, stored.largest_nbytes)


def need_to_read(path: str, metadata: ArrayMetadata, stored: StoredSizes) -> Need:
    """Stored bytes, and values where they are not the same memory."""
    decoded = metadata.chunk_nbytes * _copies(metadata) if stored.empty or not _is_raw(metadata) else 0
    return Need(path, metadata, stored.chunks, stored.largest_nbytes + decoded, stored.largest_nbytes)


def _is_raw(metadata: ArrayMetadata) -> bool:
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
    widest = max(array.spec_before(number + 1).dtype.itemsize for number in range(len(array.steps)))
    waits = array.first_unresolved() is not None
    if waits or compile_steps(array.steps, array.spec_before(0)).fused:
        return elements * widest
    return elements * 3 * max(widest, array.spec_before(0).dtype.itemsize, 8)


def predict(needs: Sequence[Need], workers: Sequence[WorkerRoom]) -> Prediction | None:
    """The worker with the least room to spare. None without arrays or workers."""
    several = len(workers) > 1
    predictions = [Prediction(need, worker, _nbytes(need, worker.threads, several)) for need in needs for worker in workers]
    return max(predictions, key=lambda one: one.need_nbytes - one.worker.nbytes, default=None)


def _nbytes(need: Need, threads: int, several: bool) -> int:
    """several: chunks may also be served to peers, and fetched from them."""
    busy = min(threads, need.chunks)
    part = max(need.moved_nbytes, min(_PART_NBYTES, need.chunks * need.moved_nbytes))
    return PROCESS_NBYTES + busy * need.slot_nbytes + (_SERVED + _FETCHED * busy) * (part if several else 0)


def check(needs: Sequence[Need], workers: Sequence[WorkerRoom]) -> Prediction | None:
    """`predict`; PlanTooLarge when it does not fit, with what would."""
    tightest = predict(needs, workers)
    if tightest is None or tightest.fits:
        return tightest
    worker, need = tightest.worker, tightest.need
    chunks, several = need.source.grid.chunks, len(workers) > 1
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
