"""Where the blocks of a tier lie: host memory, or another that does the same few things with its pieces."""

from __future__ import annotations

import mmap
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gpuflow.storage.codecs import Block


class Memory(Protocol):
    """Where the blocks of a tier lie. A piece is whatever `allocate` gives; nobody else has it, and it is freed with its last reference.
    Thread-safe for different pieces."""

    def allocate(self, nbytes: int) -> Any:
        """A piece of `nbytes` bytes, a multiple of ALIGNMENT."""
        ...

    def fill(self, piece: Any, block: Any) -> None:
        """Copy a C-contiguous block of host memory, or of this memory, into the beginning of a piece; done when it returns."""
        ...

    def view(self, piece: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        """The block in a piece, in this memory, for those who only read it."""
        ...

    def to_host(self, piece: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Block:
        """The block in a piece, in host memory: for the tier below."""
        ...


class HostMemory:
    """Pages of the process's own, which the system has back when a piece is freed: `malloc` would keep many of them."""

    def allocate(self, nbytes: int) -> NDArray[np.uint8]:
        return np.frombuffer(mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), np.uint8)

    def fill(self, piece: NDArray[np.uint8], block: Block) -> None:
        piece[: block.nbytes].view(block.dtype).reshape(block.shape)[...] = block

    def view(self, piece: NDArray[np.uint8], shape: tuple[int, ...], dtype: np.dtype[Any]) -> Block:
        count = int(np.prod(shape, dtype=np.int64))
        found = piece[: count * dtype.itemsize].view(dtype).reshape(shape)
        found.flags.writeable = False
        return found

    def to_host(self, piece: NDArray[np.uint8], shape: tuple[int, ...], dtype: np.dtype[Any]) -> Block:
        return self.view(piece, shape, dtype)
