"""What goes into a kernel and what comes out: blocks of one dtype, each a part of an array."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuflow.backends.operations import DType

Block = NDArray[Any]
Region = tuple[slice, ...]


def checked(block: Block, region: Region, out: Block | None, dtypes: tuple[DType, DType]) -> Block:
    """`out`, or a new array for None. dtypes: in and out. ValueError when one of the two is not what a kernel can work on."""
    before, after = dtypes
    if block.dtype != before or block.shape != tuple(part.stop - (part.start or 0) for part in region):
        raise ValueError(f"the kernel is for {before} in {region}, not for {block.dtype} of shape {block.shape}")
    if out is None:
        return np.empty(block.shape, after)
    if out.shape != block.shape or out.dtype != after or not out.flags.c_contiguous:
        raise ValueError(f"out has to be C-contiguous {after} of shape {block.shape}")
    return out
