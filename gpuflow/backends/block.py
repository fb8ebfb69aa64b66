"""What goes into a kernel and what comes out: blocks of one dtype, each a part of an array."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuflow.backends.operations import DType
from gpuflow.backends.program import Program

Block = NDArray[Any]
Region = tuple[slice, ...]


def on_host(block: Any) -> bool:
    """Whether it lies in the host's memory, as a NumPy array; else it is a CuPy array."""
    return isinstance(block, np.ndarray | np.generic)


def to_host(block: Any) -> Block:
    """A NumPy array: itself, or a copy of what lies on a device."""
    found: Block = block if on_host(block) else block.get()
    return found


class BlockKernel(ABC):
    """What the backends' kernels have in common: `program`, and `dtypes`, in and out. on_device: whether a kernel takes CuPy arrays as
    well, and gives them."""

    program: Program
    dtypes: tuple[DType, DType]
    on_device: bool = False

    def __call__(self, block: Block, region: Region, out: Block | None = None) -> Block:
        """block: the part `region` of the array, of any strides; out: C-contiguous, or None for a new one; may be `block`.

        Unfit when a value fails a check; `block` is then as it was."""
        out = checked(block, region, out, self.dtypes)
        if block.size and self.program.checks and np.may_share_memory(block, out):
            out[...] = self(block, region)
        elif block.size:
            self._fill(out, block, region)
        return out

    @abstractmethod
    def _fill(self, out: Block, block: Block, region: Region) -> None:
        """Compute `out`, which overlaps `block` only where there are no checks, or is it. Neither is empty."""


def check(block: Any, region: Region, dtypes: tuple[DType, DType]) -> None:
    """ValueError when `block` is not what a kernel of these dtypes, in and out, can work on."""
    if block.dtype != dtypes[0] or block.shape != tuple(part.stop - (part.start or 0) for part in region):
        raise ValueError(f"the kernel is for {dtypes[0]} in {region}, not for {block.dtype} of shape {block.shape}")


def checked(block: Block, region: Region, out: Block | None, dtypes: tuple[DType, DType]) -> Block:
    """`out`, or a new array for None. dtypes: in and out. ValueError when one of the two is not what a kernel can work on."""
    check(block, region, dtypes)
    if out is None:
        return np.empty(block.shape, dtypes[1])
    if out.shape != block.shape or out.dtype != dtypes[1] or not out.flags.c_contiguous:
        raise ValueError(f"out has to be C-contiguous {dtypes[1]} of shape {block.shape}")
    return out
