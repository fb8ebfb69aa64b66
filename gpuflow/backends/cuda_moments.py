"""Count, mean, spread and extrema of a block on a CUDA device: one pass over it, then parts that are merged in an order of their own, so
that the same block gives the same bits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuflow.backends import cuda_source
from gpuflow.backends.operations import DType

PART = np.dtype([(name, "i8" if name == "count" else "f8") for name in ("count", "mean", "m2", "minimum", "maximum")])
"""What the kernels write."""

_THREADS = 256  # of a block
_PER_PROCESSOR = 512  # threads, each with a few loads under way
_PER_THREAD = 64  # elements, or more
_MOST_ROWS = 65535  # blocks along the second axis of a grid
_AT_A_TIME = 64  # parts that one thread merges


@dataclass(frozen=True, slots=True)
class Passes:
    """How the kernels run over (outer, kept, inner) elements: see `cuda_moments.h`. threads: of each index of `kept`, or of all if flat."""

    outer: int
    kept: int
    inner: int
    threads: int
    flat: bool

    @property
    def parts(self) -> int:
        """How many the first pass writes."""
        return self.threads if self.flat else self.threads * self.kept

    def merges(self) -> Iterator[tuple[int, int, int]]:
        """(inner, count, groups) of each merge, until there is one part for each index."""
        inner, count = (self.inner, self.threads // self.kept) if self.flat else (self.threads, self.threads)
        groups = count
        while groups > 1:
            groups = -(-count // _AT_A_TIME)
            yield inner, count, groups
            inner = count = groups


def plan(shape: tuple[int, ...], keep: tuple[int, ...], processors: int) -> Passes | None:
    """For a C-contiguous block, not empty. None when other axes lie between those that are kept: they have to be brought together first."""
    axes = [(size, axis in keep) for axis, size in enumerate(shape) if size > 1]
    kept = [number for number, (_, is_kept) in enumerate(axes) if is_kept]
    first, end = (kept[0], kept[-1] + 1) if kept else (len(axes), len(axes))
    if len(kept) != end - first:
        return None
    outer, middle, inner = (prod(size for size, _ in part) for part in (axes[:first], axes[first:end], axes[end:]))
    most = processors * _PER_PROCESSOR
    period = middle * inner
    if period <= most or middle > _MOST_ROWS:
        wanted = min(most, outer * period // _PER_THREAD)
        return Passes(outer, middle, inner, max(1, wanted // period) * period, True)
    wanted = min(most // middle, outer * inner // _PER_THREAD)
    return Passes(outer, middle, inner, max(1, wanted), False)


def source(dtype: DType) -> str:
    """The text of the kernels, compiled with INDEX defined, for values of `dtype`."""
    read = "load_half(x)" if dtype == np.float16 else "(f8)(x)"
    macros = f"#define VALUE {cuda_source.stored(dtype)}\n#define READ(x) {read}\n"
    return cuda_source.header() + macros + (files("gpuflow.backends") / "cuda_moments.h").read_text()


def moments(block: Any, keep: tuple[int, ...]) -> NDArray[Any]:
    """`PART`s, one per index of the axes in `keep` (ascending), of a CuPy array of a real dtype. On the current stream, waited for."""
    from gpuflow.backends.cuda import cupy

    kept = tuple(block.shape[axis] for axis in keep)
    if not block.size:
        return np.array([(0, 0, 0, np.inf, -np.inf)], PART).repeat(prod(kept)).reshape(kept)
    processors = cupy.cuda.Device().attributes["MultiProcessorCount"]
    block = cupy.ascontiguousarray(block)
    passes = plan(block.shape, keep, processors)
    if passes is None:
        rest = tuple(axis for axis in range(block.ndim) if axis not in keep)
        block = cupy.ascontiguousarray(block.transpose(keep + rest))
        passes = plan(block.shape, tuple(range(len(keep))), processors)
        assert passes is not None
    index = np.uint32 if block.size < 2**31 else np.uint64
    module = _module(block.dtype, np.dtype(index).itemsize, cupy.cuda.Device().id)
    parts = cupy.empty(passes.parts * PART.itemsize, np.uint8)
    grid = (-(-passes.threads // _THREADS), 1 if passes.flat else passes.kept)
    numbers = [index(number) for number in (passes.outer, passes.kept, passes.inner, passes.threads)]
    module.get_function("moments")(grid, (_THREADS,), (*numbers, np.int32(passes.flat), block, parts))
    for inner, count, groups in passes.merges():
        merged = cupy.empty(passes.kept * groups * PART.itemsize, np.uint8)
        numbers = [index(number) for number in (passes.kept, inner, count, groups)]
        grid = (-(-passes.kept * groups // _THREADS), 1)
        module.get_function("merge_parts")(grid, (_THREADS,), (*numbers, parts, merged))
        parts = merged
    found: NDArray[Any] = parts.get().view(PART).reshape(kept)
    return found


@lru_cache(maxsize=64)
def _module(dtype: DType, index_nbytes: int, device: int) -> Any:
    from gpuflow.backends.cuda import OPTIONS, cupy

    return cupy.RawModule(code=source(dtype), options=(*OPTIONS, f"-DINDEX=u{index_nbytes}"), backend="nvrtc")
