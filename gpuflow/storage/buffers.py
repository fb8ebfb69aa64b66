"""Memory that is used again: a chunk passes through a slot of buffers, and the next chunk through the same.

Filling fresh memory costs page faults (0.25-0.5 GB/s measured against 7 for a reused buffer), so a worker allocates as many slots as
it has threads, each growing to the largest chunk it has met, and nothing of a chunk's size after that."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

ALIGNMENT = 4096
"""Of every buffer: a page, which is also what direct I/O and pinning ask for."""


Allocate = Callable[[int], NDArray[np.uint8]]
"""Gives so many bytes."""


def pageable(nbytes: int) -> NDArray[np.uint8]:
    """The usual memory."""
    return np.empty(nbytes, dtype=np.uint8)


class Buffer:
    """Page-aligned memory that grows and is never given back. What was handed out before is invalid once it has grown."""

    def __init__(self, allocate: Allocate = pageable) -> None:
        self._memory, self._allocate = np.empty(0, dtype=np.uint8), allocate

    def bytes(self, nbytes: int) -> NDArray[np.uint8]:
        """The first `nbytes` bytes; their content is whatever was there."""
        if len(self._memory) < nbytes:
            whole = self._allocate(nbytes + ALIGNMENT)
            start = -whole.ctypes.data % ALIGNMENT
            self._memory = whole[start : start + nbytes]
        return self._memory[:nbytes]

    def array(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """A C-contiguous array over the beginning of the buffer."""
        return self.bytes(prod(shape) * dtype.itemsize).view(dtype).reshape(shape)

    @property
    def nbytes(self) -> int:
        """What it holds on to."""
        return len(self._memory)


class Slot:
    """The buffers of one chunk on its way: as stored, decoded, computed, padded to a whole chunk, encoded; and `scratch` between.

    gathered: of the chunks of a group that are computed from parts of several. allocate: where a device copies from and to. queue: what is
    put in order on the worker's CUDA device for the chunk, if it has one."""

    def __init__(self, allocate: Allocate = pageable) -> None:
        self.stored, self.decoded, self.computed = Buffer(allocate), Buffer(allocate), Buffer(allocate)
        self.whole, self.encoded, self.scratch = Buffer(), Buffer(allocate), Buffer()
        self.gathered = Buffer(allocate)
        self.queue: Any = None

    @property
    def nbytes(self) -> int:
        """What its buffers hold on to."""
        buffers = (self.stored, self.decoded, self.computed, self.whole, self.encoded, self.scratch, self.gathered)
        return sum(buffer.nbytes for buffer in buffers)


class Slots:
    """The slots of a worker process. A thread takes one for a group of chunks; the one used last comes first, as it is in the cache."""

    def __init__(self, allocate: Allocate = pageable) -> None:
        self._lock, self._free, self._all = threading.Lock(), list[Slot](), list[Slot]()
        self._allocate = allocate

    @contextmanager
    def take(self) -> Iterator[Slot]:
        """A slot that nobody else uses meanwhile; made when all are taken, so there are as many as were ever used at once."""
        with self._lock:
            slot = self._free.pop() if self._free else Slot(self._allocate)
            if slot not in self._all:
                self._all.append(slot)
        try:
            yield slot
        finally:
            with self._lock:
                self._free.append(slot)

    @property
    def nbytes(self) -> int:
        """Memory in all slots."""
        with self._lock:
            return sum(slot.nbytes for slot in self._all)
