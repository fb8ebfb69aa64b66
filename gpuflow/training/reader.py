"""Batches of arrays, read and decoded by threads.

What a batch needs is planned once: each inner chunk is read once for all samples of the batch that take of it, neighbours together, and
decoded straight to its place in the batch where it lies there as a whole. The threads release Python's lock while they read, decode and
copy; no worker processes are needed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuflow.errors import ChunkCorrupt
from gpuflow.storage.buffers import Slot, Slots
from gpuflow.storage.byte_codecs import Bytes, CodecError
from gpuflow.storage.chains import Block, Chain
from gpuflow.training.access import Access
from gpuflow.training.cache import Recent
from gpuflow.training.cut import Part
from gpuflow.training.memory import Memory
from gpuflow.training.objects import StoredObject, WholeWanted
from gpuflow.training.shared import Layout, open_cache
from gpuflow.training.units import Column, Units
from gpuflow.training.work import Chosen, Work

Arrays = dict[str, NDArray[Any]]
"""Of a batch, by path: (samples, *shape of a sample)."""

_WAITING, _WAITING_NBYTES = 32, 256 * 2**20
"""Threads that wait for what peers send, as each may decode a unit in memory of its own: at most so many bytes."""
_PIECE_NBYTES = 4 * 2**20  # decoded by one thread at a time: large samples are shared out among them


@dataclass(frozen=True, slots=True)
class Use:
    """What a batch takes of a unit: row `within` of it goes to `target` of the batch's array, both restricted to a column."""

    within: int
    target: tuple[int, ...]
    column: Column

    def take(self, block: Block, out: NDArray[Any]) -> None:
        """Copy from the unit to the batch."""
        place: tuple[Any, ...] = (*self.target, *self.column.target)
        source: tuple[Any, ...] = (self.within, *self.column.source)
        out[place] = block[source]

    def place(self, out: NDArray[Any]) -> Block:
        """Where it goes: one row."""
        place: tuple[Any, ...] = (*self.target[:-1], slice(self.target[-1], self.target[-1] + 1), *self.column.target)
        view: Block = out[place]
        return view


@dataclass(frozen=True, slots=True)
class Piece:
    """Units of one stored object, and what is taken of each."""

    part: int
    object: int
    units: Mapping[int, Sequence[Use]]


class Wanted:
    """A batch to be read; `result` tells when it is there, and `chosen` and `arrays` then say what was read."""

    def __init__(self, epoch: int, batch: int) -> None:
        self.epoch, self.batch = epoch, batch
        self.result: Future[Any] = Future()
        self.arrays: Arrays = {}
        self.chosen: Chosen
        self.left = 0
        self.error: BaseException | None = None
        self._lock = threading.Lock()

    def drop(self) -> None:
        """Nobody waits for it any more."""
        self.error = CancelledError()

    def is_last(self) -> bool:
        """Count a task that has ended."""
        with self._lock:
            self.left -= 1
            return not self.left


class Reader:
    """The threads, buffers and caches of one process. finish: what is made of a batch's arrays, in a thread of the reader. shared: the name
    of the cache where other processes share it."""

    def __init__(
        self,
        access: Access,
        work: Work,
        finish: Callable[[Wanted], Any],
        *,
        threads: int,
        kept_nbytes: int,
        recent_nbytes: int,
        shared: str | None,
    ) -> None:
        self.access, self._work, self._finish, self._threads = access, work, finish, threads
        cut = self._cut = work.cut
        self._inner: list[Chain | None] = []
        self._units: list[Units] = []
        for part in cut.parts:
            shard = access.codec(part.path).shard
            self._inner.append(shard.inner if shard else None)
            self._units.append(Units(part.metadata, shard.inner.shape if shard else part.metadata.grid.chunks))
        layouts = [
            Layout(units.unit, part.dtype, prod(units.per_object), part.metadata.grid.size)
            for part, units in zip(cut.parts, self._units, strict=True)
        ]
        self.kept, self._recent = open_cache(shared, layouts, kept_nbytes), Recent(recent_nbytes)
        self._slots, self.memory = Slots(), Memory(most=8)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="gpuflow-loader")
        largest = max((layout.nbytes for layout in layouts), default=0)
        waiting = max(1, min(_WAITING, _WAITING_NBYTES // max(largest, 1)))
        self._waiting = ThreadPoolExecutor(waiting, thread_name_prefix="gpuflow-loader-far")

    def submit(self, wanted: Wanted) -> None:
        """Begin to read a batch; `wanted.result` tells when it is there."""
        self._pool.submit(self._begin, wanted)

    def close(self) -> None:
        """What has not begun is not done; threads, files and memory go."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._waiting.shutdown(wait=True, cancel_futures=True)
        self.kept.close()
        self.access.close()

    # -- planning -----------------------------------------------------------------------------------------------------------------

    def _begin(self, wanted: Wanted) -> None:
        try:
            if wanted.error is not None:
                raise wanted.error
            wanted.chosen = self._work.choose(wanted.epoch, wanted.batch)
            for part in self._cut.parts:
                wanted.arrays[part.path] = self.memory.array((len(wanted.chosen.samples), *part.shape), part.dtype)
            pieces = [piece for number in range(len(self._units)) for piece in self._plan(number, wanted)]
            near, far = list[Piece](), list[Piece]()
            for piece in pieces:
                (far if self.access.is_far(self._cut.parts[piece.part].path, piece.object) else near).append(piece)
            tasks = _shared_out(near, 2 * self._threads)
            wanted.left = len(tasks) + len(far)
            if not wanted.left:
                self._end(wanted)
            for piece in far:  # together, so that what is asked of one peer is one question
                self._waiting.submit(self._run, wanted, [piece])
            for task in tasks:
                self._pool.submit(self._run, wanted, task)
        except BaseException as error:  # noqa: BLE001 - whoever waits for the batch has it
            _fail(wanted, error)

    def _plan(self, number: int, wanted: Wanted) -> list[Piece]:
        part, units, rows = self._cut.parts[number], self._units[number], self._cut.rows
        objects: dict[int, dict[int, list[Use]]] = {}
        for slot, sample in enumerate(wanted.chosen.samples.tolist()):
            columns = self._columns(part, units, wanted.chosen.offsets, slot)
            first = sample * self._cut.stride
            for row in range(rows or 1):
                target = (slot,) if rows is None else (slot, row)
                for column in columns:
                    chunk, unit, within = units.find(first + row * self._cut.step, column)
                    objects.setdefault(chunk, {}).setdefault(unit, []).append(Use(within, target, column))
        chain = self._inner[number]
        if chain is not None and not chain.links:  # one thread verifies an object as a whole, and has it all then
            most = prod(units.per_object)
        else:
            most = max(1, _PIECE_NBYTES // max(1, int(np.prod(units.unit)) * part.dtype.itemsize))
        return [
            Piece(number, chunk, {unit: uses[unit] for unit in group})
            for chunk, uses in sorted(objects.items())
            for group in _groups(sorted(uses), most)
        ]

    @staticmethod
    def _columns(part: Part, units: Units, offsets: Mapping[str, Sequence[int]], slot: int) -> Sequence[Column]:
        if not part.crops:
            return units.whole()
        taken = [(0, size) for size in units.shape[1:]]
        for axis, name, _, size in part.crops:
            start = offsets[name][slot]
            taken[axis - 1] = start, start + size
        return units.columns(tuple(taken))

    # -- reading ------------------------------------------------------------------------------------------------------------------

    def _run(self, wanted: Wanted, pieces: Sequence[Piece]) -> None:
        try:
            with self._slots.take() as slot:
                for piece in pieces:
                    if wanted.error is None:
                        self._read(piece, wanted.arrays[self._cut.parts[piece.part].path], slot)
        except BaseException as error:  # noqa: BLE001 - as above
            wanted.error = error
        if wanted.is_last():
            self._end(wanted)

    def _end(self, wanted: Wanted) -> None:
        if wanted.error is not None:
            _fail(wanted, wanted.error)
            return
        try:
            found = self._finish(wanted)
        except BaseException as error:  # noqa: BLE001 - as above
            _fail(wanted, error)
            return
        wanted.result.set_result(found)

    def _read(self, piece: Piece, out: NDArray[Any], slot: Slot) -> None:
        missing = []
        for unit, uses in piece.units.items():
            key = piece.part, piece.object, unit
            block = self.kept.get(key)
            if block is None:
                block = self._recent.get(key)
            if block is None:
                missing.append(unit)
            else:
                _deliver(block, uses, out)
        path, tried = self._cut.parts[piece.part].path, set[str]()
        while missing:
            try:
                if self._inner[piece.part] is None:
                    return self._read_object(piece, path, out, slot)
                return self._read_units(piece, path, missing, out, slot)
            except ChunkCorrupt as error:
                if error.node in tried:
                    raise
                tried.add(error.node)
                self.access.condemn(path, piece.object, error)
            except WholeWanted as why:
                self.access.fetch_whole(path, piece.object, why)

    def _read_object(self, piece: Piece, path: str, out: NDArray[Any], slot: Slot) -> None:
        """The stored object is one unit."""
        codec = self.access.codec(path)
        data = self.access.whole(path, piece.object, slot)
        try:
            block = codec.decode(data, slot) if len(data) else codec.filled()
        except CodecError as error:  # with the right digest: it was committed like that
            raise ChunkCorrupt(self.access.chunk_name(path, piece.object), "any", f"it does not decode: {error}") from error
        ((unit, uses),) = piece.units.items()
        key = piece.part, piece.object, unit
        if not self.kept.keep(key, block):
            self._keep_recent(key, block)
        _deliver(block, uses, out)

    def _read_units(self, piece: Piece, path: str, numbers: Sequence[int], out: NDArray[Any], slot: Slot) -> None:
        opened = self.access.open(path, piece.object, len(numbers))
        if opened is None:
            fill = self.access.codec(path).fill_value
            for unit in numbers:
                _fill(fill, piece.units[unit], out)
            return
        try:
            if self._lies_as_it_is(piece) and opened.is_known and not opened.held_nbytes:
                numbers = [unit for unit in numbers if not _read_into_place(opened, unit, piece.units[unit], out)]
            for unit, data in opened.read(numbers, slot.stored, slot.encoded):
                uses = piece.units[unit]
                if data is None:
                    _fill(self.access.codec(path).fill_value, uses, out)
                else:
                    self._decode((piece.part, piece.object, unit), data, uses, out, slot, is_held=opened.held_nbytes > 0)
        except (CodecError, OSError) as error:
            raise opened.corrupt(str(error)) from error

    def _lies_as_it_is(self, piece: Piece) -> bool:
        """Whether a unit is one row, and its stored bytes are those of the row."""
        chain = self._inner[piece.part]
        return chain is not None and not chain.links and chain.is_native and chain.shape[0] == 1

    def _decode(
        self, key: tuple[int, int, int], data: Bytes, uses: Sequence[Use], out: NDArray[Any], slot: Slot, *, is_held: bool
    ) -> None:
        chain = self._inner[key[0]]
        assert chain is not None
        # A sample that lies in a file as it is need not be kept: the page cache has it, and fresh memory costs more than reading it again.
        is_cheap = not chain.links and chain.shape[0] == 1 and not is_held
        block = None
        if not is_cheap:
            block = self.kept.made(key, chain.shape, chain.dtype, lambda place: _decode_into(chain, data, place, slot))
        if block is None and len(uses) == 1 and chain.shape[0] == 1 and uses[0].column.is_whole:
            place = uses[0].place(out)
            _decode_into(chain, data, place, slot)
            if not is_cheap:
                self.kept.keep(key, place)
            return
        if block is None:
            block = slot.decoded.array(chain.shape, chain.dtype)
            _decode_into(chain, data, block, slot)
            if is_cheap or not self.kept.keep(key, block):
                self._keep_recent(key, block)
        _deliver(block, uses, out)

    def _keep_recent(self, key: tuple[int, int, int], block: Block) -> None:
        if block.shape[0] > 1 or self._cut.rows is not None:  # other samples take of it
            self._recent.put(key, block.copy())


def _read_into_place(opened: StoredObject, unit: int, uses: Sequence[Use], out: NDArray[Any]) -> bool:
    """Read a unit straight to where it goes. False when it cannot be: it goes to several places, or not as a whole."""
    if len(uses) > 1 or not uses[0].column.is_whole:
        return False
    place = uses[0].place(out)
    return bool(place.flags.c_contiguous) and opened.read_into(unit, place.reshape(-1).view(np.uint8))


def _decode_into(chain: Chain, data: Bytes, place: Block, slot: Slot) -> None:
    try:
        chain.decode_into(data, place, slot.scratch)
    except CodecError:
        raise
    except Exception as error:  # every library has errors of its own for bad bytes
        raise CodecError(f"{type(error).__name__}: {error}") from error


def _deliver(block: Block, uses: Sequence[Use], out: NDArray[Any]) -> None:
    for use in uses:
        use.take(block, out)


def _fill(value: Any, uses: Sequence[Use], out: NDArray[Any]) -> None:
    for use in uses:
        use.place(out)[...] = value


def _fail(wanted: Wanted, error: BaseException) -> None:
    wanted.arrays.clear()
    wanted.result.set_exception(error)


def _groups(units: Sequence[int], most: int) -> list[Sequence[int]]:
    return [units[start : start + most] for start in range(0, len(units), most)]


def _shared_out(pieces: Sequence[Piece], most: int) -> list[Sequence[Piece]]:
    """In at most so many tasks, of about as many pieces each."""
    size = -(-len(pieces) // most)
    return [pieces[start : start + size] for start in range(0, len(pieces), size)] if pieces else []
