"""Memory for batches, used again as soon as nobody looks at it any more.

A batch belongs to whoever takes it, for as long as an array, a tensor or a view of one of these lives. Filling fresh memory costs a page
fault every 4 KiB (see storage/buffers.py), so that what came free is handed out again."""

from __future__ import annotations

import mmap
import weakref
from collections import deque
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

_HUGE_NBYTES = 2 * 2**20


class Memory:
    """At most `most` blocks of each size wait to be used again. Thread-safe."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._free: dict[int, deque[mmap.mmap]] = {}

    def array(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Of any content."""
        nbytes = prod(shape) * dtype.itemsize
        size = max(mmap.PAGESIZE, -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE)
        free = self._free.setdefault(size, deque(maxlen=self._most))
        try:
            block = free.pop()
        except IndexError:
            block = new_block(size)
        # The base of every view is this array, since what it looks at is not an array itself: it goes with the last of them.
        whole = np.frombuffer(block, dtype=np.uint8)
        weakref.finalize(whole, free.append, block).atexit = False
        return whole[:nbytes].view(dtype).reshape(shape)


def new_block(nbytes: int) -> mmap.mmap:
    """Page-aligned memory, in huge pages where that is worth it. Private: shared memory has huge pages only where an administrator
    allowed them, and a fault of its small ones costs more."""
    block = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if nbytes >= _HUGE_NBYTES and hasattr(mmap, "MADV_HUGEPAGE"):
        block.madvise(mmap.MADV_HUGEPAGE)
    return block
