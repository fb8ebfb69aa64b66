"""Count, mean, spread and extrema of an array, from those of its chunks.

Compiled for native dtypes, by NumPy for the others; the two agree to rounding. Merging two sides is exact for the counts and
extrema, and stable for the rest: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample
variances", 1979. NaN values are skipped."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuflow.backends.block import on_host
from gpuflow.grid import Grid

logger = logging.getLogger(__name__)

_SLAB_SIZE = 2**17
"""Elements that are widened to float64 at a time: 1 MiB, which stays in the second-level cache of current CPUs."""

_FIELDS = ("count", "mean", "m2", "minimum", "maximum")


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Each field: one entry per index of the kept axes, in the order of the array's axes. `count` int64, the others float64.

    m2 is the sum of squared deviations from the mean. Where `count` is 0: mean and m2 0, minimum +inf, maximum -inf."""

    count: NDArray[np.int64]
    mean: NDArray[np.float64]
    m2: NDArray[np.float64]
    minimum: NDArray[np.float64]
    maximum: NDArray[np.float64]

    @classmethod
    def empty(cls, shape: tuple[int, ...]) -> Moments:
        """Moments of no values; the neutral element of `merge`."""
        zeros = np.zeros(shape)
        return cls(np.zeros(shape, np.int64), zeros, zeros.copy(), np.full(shape, np.inf), np.full(shape, -np.inf))

    @classmethod
    def of(cls, block: NDArray[Any], keep: tuple[int, ...]) -> Moments:
        """Moments of `block` (any shape, real dtype) over the axes that are not in `keep` (ascending axis numbers). A CuPy array is read
        on its device.

        Never widens the block. Integers beyond 2**53 are rounded to float64. The same block gives the same bits."""
        if list(keep) != sorted(set(keep)) or any(not 0 <= axis < block.ndim for axis in keep):
            raise ValueError(f"keep {keep} is not an ascending choice among {block.ndim} axes")
        if block.dtype.kind not in "biuf":
            raise TypeError(f"no moments of {block.dtype} values")
        if not on_host(block):
            from gpuflow.backends.cuda_moments import moments

            parts = moments(block, keep)
            return cls(*(np.array(parts[name]) for name in _FIELDS))
        if block.dtype.isnative and block.dtype.itemsize <= 8:
            try:
                return _compiled(block, keep)
            except (OSError, EOFError, pickle.UnpicklingError) as error:
                logger.warning("moments by NumPy, since the cache of compiled code is unusable: %s", error)
        return cls.by_numpy(block, keep)

    @classmethod
    def by_numpy(cls, block: NDArray[Any], keep: tuple[int, ...]) -> Moments:
        """The same without a compiler: for dtypes that it does not take, and to test it against."""
        total = cls.empty(tuple(block.shape[axis] for axis in keep))
        grid = Grid(block.shape, slab_shape(block.shape))
        for linear in range(grid.size):
            region = grid.region(linear)
            kept = tuple(region[axis] for axis in keep)
            total._put(kept, total._get(kept).merge(_of_slab(block[region], keep)))
        return total

    def merge(self, other: Moments) -> Moments:
        """Moments of both sides together. A side without values is neutral to the last bit."""
        count = self.count + other.count
        # As floats: the product of two counts overflows int64 from 3e9 values on.
        left, right = self.count.astype(np.float64), other.count.astype(np.float64)
        whole = np.maximum(left + right, 1.0)
        with np.errstate(invalid="ignore", over="ignore"):
            delta = other.mean - self.mean
            mean = self.mean + delta * (right / whole)
            m2 = self.m2 + other.m2 + delta * delta * (left * (right / whole))
        mean = np.where(right == 0, self.mean, np.where(left == 0, other.mean, mean))
        m2 = np.where(right == 0, self.m2, np.where(left == 0, other.m2, m2))
        minimum, maximum = np.minimum(self.minimum, other.minimum), np.maximum(self.maximum, other.maximum)
        return Moments(*(np.asarray(field) for field in (count, mean, m2, minimum, maximum)))

    def embed(self, shape: tuple[int, ...], region: tuple[slice, ...]) -> Moments:
        """These moments placed at `region` (one slice per kept axis) of the whole kept `shape`; no values elsewhere."""
        whole = Moments.empty(shape)
        whole._put(region, self)
        return whole

    @property
    def variance(self) -> NDArray[np.float64]:
        """Population variance (ddof 0). Exactly 0 where all values are equal; NaN where there are none."""
        with np.errstate(invalid="ignore"):
            variance = self.m2 / np.where(self.count == 0, np.nan, self.count)
        constant = (self.minimum == self.maximum) & np.isfinite(self.minimum)
        return np.asarray(np.where(constant, 0.0, variance))

    @property
    def std(self) -> NDArray[np.float64]:
        """Population standard deviation (ddof 0)."""
        return np.asarray(np.sqrt(self.variance))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, exact: JSON writes a float so that it reads back the same; what JSON lacks (nan, inf) is text."""
        fields = {name: [plain(value) for value in getattr(self, name).ravel().tolist()] for name in _FIELDS}
        return {"shape": list(self.count.shape), **fields}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Moments:
        """The inverse of `to_dict`."""
        shape = tuple(data["shape"])
        floats = (np.array([float(value) for value in data[name]], np.float64).reshape(shape) for name in _FIELDS[1:])
        return cls(np.array(data["count"], np.int64).reshape(shape), *floats)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Moments):
            return NotImplemented
        return all(np.array_equal(getattr(self, name), getattr(other, name), equal_nan=True) for name in _FIELDS)

    __hash__ = None  # type: ignore[assignment]

    def _get(self, region: tuple[slice, ...]) -> Moments:
        return Moments(*(getattr(self, name)[region] for name in _FIELDS))

    def _put(self, region: tuple[slice, ...], part: Moments) -> None:
        for name in _FIELDS:
            getattr(self, name)[region] = getattr(part, name)


def _compiled(block: NDArray[Any], keep: tuple[int, ...]) -> Moments:
    """By numba, which is imported here. A block that is not contiguous is copied in parts along its first axis."""
    total = Moments.empty(tuple(block.shape[axis] for axis in keep))
    if not block.size:
        return total
    from gpuflow.reductions.moments_kernels import accumulate

    kept = tuple(axis in keep for axis in range(block.ndim))
    if block.flags.c_contiguous:
        accumulate(block, kept, tuple(getattr(total, name).reshape(-1) for name in _FIELDS))
        return total
    step = max(1, _SLAB_SIZE * block.shape[0] // block.size)
    for first in range(0, block.shape[0], step):
        part = slice(first, min(first + step, block.shape[0]))
        # `total[part]` along a kept first axis is a contiguous view.
        fields = (getattr(total, name)[part] if kept[0] else getattr(total, name) for name in _FIELDS)
        accumulate(np.ascontiguousarray(block[part]), kept, tuple(field.reshape(-1) for field in fields))
    return total


def plain(value: float) -> float | str:
    """As JSON can have it: what it lacks (nan, inf) is text."""
    return value if np.isfinite(value) else str(value)


def slab_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The longest C-contiguous slab of at most `_SLAB_SIZE` elements."""
    slab, left = [], _SLAB_SIZE
    for size in reversed(shape):
        slab.append(max(1, min(size, left)))
        left //= slab[-1]
    return tuple(reversed(slab))


def _of_slab(slab: NDArray[Any], keep: tuple[int, ...]) -> Moments:
    """Two passes over one slab, in float64.

    The kept axes are brought to the front: reducing around a short last axis, as the channels of an image, is 15 times slower."""
    axes = tuple(axis for axis in range(slab.ndim) if axis not in keep)
    kept, reduced = tuple(slab.shape[axis] for axis in keep), prod(slab.shape[axis] for axis in axes)
    values = slab.transpose(keep + axes).astype(np.float64, order="C").reshape((*kept, reduced))
    valid = ~np.isnan(values) if slab.dtype.kind == "f" else None
    where: Any = True if valid is None or valid.all() else valid
    count = np.full(kept, reduced, np.int64) if where is True else np.asarray(where.sum(axis=-1, dtype=np.int64))
    with np.errstate(invalid="ignore", over="ignore"):
        mean = values.sum(axis=-1, where=where) / np.maximum(count, 1)
        minimum = values.min(axis=-1, where=where, initial=np.inf)
        maximum = values.max(axis=-1, where=where, initial=-np.inf)
        values -= np.asarray(mean)[..., np.newaxis]
        values *= values
        m2 = values.sum(axis=-1, where=where)
    return Moments(*(np.asarray(field) for field in (count, mean, m2, minimum, maximum)))
