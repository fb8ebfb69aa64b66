"""Memory that is lent to whoever reads a chunk, and used again when the last view of it is gone.

Of a fresh buffer of 8 MiB the kernel clears every page, which takes as long as reading the chunk does."""

from __future__ import annotations

import weakref
from collections import deque

import numpy as np
from numpy.typing import NDArray

from gpuflow.storage.buffers import Buffer

_LEAST_NBYTES = 2**20  # smaller ones come from the allocator's own pool
_KEPT, _LARGEST_NBYTES = 8, 16 * 2**20  # how many are kept for the next reader, and of what size at most

_free: deque[NDArray[np.uint8]] = deque(maxlen=_KEPT)
"""Without a lock, since memory comes back whenever the garbage collector finds it: its operations are atomic."""


class Lent(Buffer):
    """For one chunk: what `bytes` gives may be kept as long as anybody wants."""

    def bytes(self, nbytes: int) -> NDArray[np.uint8]:
        """As `Buffer.bytes`."""
        if nbytes < _LEAST_NBYTES:
            return np.empty(nbytes, np.uint8)
        self._memory = _take(nbytes)
        lent = super().bytes(nbytes)
        weakref.finalize(lent, _give, self._memory).atexit = False  # every view of it holds on to it
        return lent


def _take(nbytes: int) -> NDArray[np.uint8]:
    for _ in range(len(_free)):
        try:
            memory = _free.pop()  # the one used last, which may be in the processor's cache
        except IndexError:  # another thread took the last one
            break
        if nbytes <= len(memory) <= 2 * nbytes:
            return memory
        _free.appendleft(memory)
    buffer = Buffer()
    buffer.bytes(nbytes)
    return buffer._memory


def _give(memory: NDArray[np.uint8]) -> None:
    if len(memory) <= _LARGEST_NBYTES:
        _free.append(memory)
