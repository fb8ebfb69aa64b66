"""Moments of values that do not count alike, such as those of a grid's rows, whose cells shrink towards the poles.

Where many values in a row have one weight, what is taken of them is unweighted: the compiled moments, which then merge as two sides
are, each by its weight. Elsewhere each value is weighted, by NumPy. NaN values are left out, and their weight with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from gpuflow.grid import Grid
from gpuflow.reductions.moments import Moments, plain

_LONG = 2**13
"""Values in a row with one weight: from there on the compiled moments took a seventh of the time that NumPy takes here."""
_MOST_VALUES = 2**14
"""That are widened to float64 at a time, with as many weights: 256 KiB, which stay in the second-level cache of current CPUs."""

_FIELDS = ("count", "weight", "mean", "m2", "minimum", "maximum")


@dataclass(frozen=True, slots=True)
class Weights:
    """Of the places along `axes` (ascending), alike along all others. text: the expression; data: float64 in C order, of `shape`."""

    text: str
    axes: tuple[int, ...]
    shape: tuple[int, ...]
    data: bytes

    @classmethod
    def of(cls, text: str, axes: tuple[int, ...], values: NDArray[np.float64]) -> Weights:
        """values: finite, none below 0, one axis for each of `axes`."""
        return cls(text, axes, values.shape, np.ascontiguousarray(values, np.float64).tobytes())

    def at(self, region: tuple[slice, ...]) -> NDArray[np.float64]:
        """Of the part `region` of the array: as many axes, of the length 1 where the weights are alike."""
        values = np.frombuffer(self.data, np.float64).reshape(self.shape)[tuple(region[axis] for axis in self.axes)]
        lengths = dict(zip(self.axes, values.shape, strict=True))
        return values.reshape([lengths.get(axis, 1) for axis in range(len(region))])

    def key(self) -> Any:
        """As plain data: two that differ anywhere differ here."""
        return {"axes": list(self.axes), "shape": list(self.shape), "values": xxhash.xxh3_128_hexdigest(self.data)}


@dataclass(frozen=True, slots=True, eq=False)
class WeightedMoments:
    """Each field: one entry per index of the kept axes. `count`: how many values, int64; `weight`: the sum of theirs; the others float64.

    m2: the sum of squared deviations from the mean, each times its weight. Where `weight` is 0: mean and m2 0. The extrema are those of
    all values, whatever they weigh."""

    count: NDArray[np.int64]
    weight: NDArray[np.float64]
    mean: NDArray[np.float64]
    m2: NDArray[np.float64]
    minimum: NDArray[np.float64]
    maximum: NDArray[np.float64]

    @classmethod
    def empty(cls, shape: tuple[int, ...]) -> WeightedMoments:
        """Of no values; the neutral element of `merge`."""
        low, high = np.full(shape, np.inf), np.full(shape, -np.inf)
        return cls(np.zeros(shape, np.int64), np.zeros(shape), np.zeros(shape), np.zeros(shape), low, high)

    @classmethod
    def of(cls, block: NDArray[Any], keep: tuple[int, ...], weights: NDArray[np.float64]) -> WeightedMoments:
        """Of `block` (any shape, real dtype) over the axes not in `keep` (ascending); weights: see `Weights.at`."""
        total = cls.empty(tuple(block.shape[axis] for axis in keep))
        if not block.size:
            return total
        spread = tuple(axis for axis in range(block.ndim) if axis in keep or weights.shape[axis] > 1)
        alike = prod(block.shape[max(spread, default=-1) + 1 :]) >= _LONG
        grid = Grid(block.shape, block.shape if alike else _cut(block.shape, keep))
        for linear in range(grid.size):
            region = grid.region(linear)
            kept = tuple(region[axis] for axis in keep)
            theirs = tuple(part if size > 1 else slice(None) for part, size in zip(region, weights.shape, strict=True))
            part = cls._alike(block, keep, spread, weights) if alike else cls._each(block[region], keep, weights[theirs])
            total._put(kept, total._get(kept).merge(part))
        return total

    @classmethod
    def _alike(
        cls, block: NDArray[Any], keep: tuple[int, ...], spread: tuple[int, ...], weights: NDArray[np.float64]
    ) -> WeightedMoments:
        """Of the moments along all other axes than `spread`: those that are kept, or along which the weights differ."""
        parts = Moments.of(block, spread)
        each = weights.reshape([weights.shape[axis] for axis in spread])
        away = tuple(number for number, axis in enumerate(spread) if axis not in keep)
        share = each * parts.count
        some = share > 0  # an infinite value that weighs nothing is none
        weight, means = share.sum(axis=away), np.where(some, parts.mean, 0.0)
        with np.errstate(invalid="ignore", over="ignore"):
            mean = (share * means).sum(axis=away) / np.where(weight > 0, weight, 1.0)
            delta = means - np.expand_dims(mean, away)
            m2 = np.where(some, each * parts.m2 + share * delta * delta, 0.0).sum(axis=away)
        low, high = parts.minimum.min(axis=away, initial=np.inf), parts.maximum.max(axis=away, initial=-np.inf)
        return cls(*(np.asarray(field) for field in (parts.count.sum(axis=away), weight, mean, m2, low, high)))

    @classmethod
    def _each(cls, slab: NDArray[Any], keep: tuple[int, ...], weights: NDArray[np.float64]) -> WeightedMoments:
        """In two passes over one slab, in float64."""
        order = keep + tuple(axis for axis in range(slab.ndim) if axis not in keep)
        shape = (*(slab.shape[axis] for axis in keep), -1)
        values = slab.transpose(order).astype(np.float64, order="C").reshape(shape)
        each = np.broadcast_to(weights, slab.shape).transpose(order).reshape(shape)
        valid = ~np.isnan(values) if slab.dtype.kind == "f" else None
        where: Any = True if valid is None or valid.all() else valid
        count = np.full(values.shape[:-1], values.shape[-1]) if where is True else where.sum(axis=-1)
        low, high = values.min(axis=-1, where=where, initial=np.inf), values.max(axis=-1, where=where, initial=-np.inf)
        some = (each > 0) & where  # an infinite value that weighs nothing is none
        if not some.all():
            values, each = np.where(some, values, 0.0), np.where(some, each, 0.0)
        weight = each.sum(axis=-1)
        with np.errstate(invalid="ignore", over="ignore"):
            mean = np.einsum("...i,...i->...", each, values) / np.where(weight > 0, weight, 1.0)
            values -= np.asarray(mean)[..., np.newaxis]
            values *= values
            m2 = np.einsum("...i,...i->...", each, values)
        return cls(*(np.asarray(field) for field in (count, weight, mean, m2, low, high)))

    def merge(self, other: WeightedMoments) -> WeightedMoments:
        """Of both sides together. A side that weighs nothing changes neither mean nor m2 by a bit."""
        weight = self.weight + other.weight
        with np.errstate(invalid="ignore", over="ignore"):
            part = other.weight / np.where(weight > 0, weight, 1.0)
            delta = other.mean - self.mean
            mean, m2 = self.mean + delta * part, self.m2 + other.m2 + delta * delta * (self.weight * part)
        mean = np.where(other.weight == 0, self.mean, np.where(self.weight == 0, other.mean, mean))
        m2 = np.where(other.weight == 0, self.m2, np.where(self.weight == 0, other.m2, m2))
        low, high = np.minimum(self.minimum, other.minimum), np.maximum(self.maximum, other.maximum)
        return WeightedMoments(*(np.asarray(field) for field in (self.count + other.count, weight, mean, m2, low, high)))

    def embed(self, shape: tuple[int, ...], region: tuple[slice, ...]) -> WeightedMoments:
        """These placed at `region` (one slice per kept axis) of the whole kept `shape`; no values elsewhere."""
        whole = WeightedMoments.empty(shape)
        whole._put(region, self)
        return whole

    @property
    def std(self) -> NDArray[np.float64]:
        """Of the population: the root of the weighted mean of the squared deviations. 0 where all values are equal; NaN where nothing
        weighs anything."""
        with np.errstate(invalid="ignore"):
            variance = self.m2 / np.where(self.weight > 0, self.weight, np.nan)
        constant = (self.minimum == self.maximum) & np.isfinite(self.minimum) & (self.weight > 0)
        return np.asarray(np.sqrt(np.where(constant, 0.0, variance)))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, exact."""
        fields = {name: [plain(value) for value in getattr(self, name).ravel().tolist()] for name in _FIELDS}
        return {"shape": list(self.count.shape), **fields}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> WeightedMoments:
        """The inverse of `to_dict`."""
        shape = tuple(data["shape"])
        floats = (np.array([float(value) for value in data[name]], np.float64).reshape(shape) for name in _FIELDS[1:])
        return cls(np.array(data["count"], np.int64).reshape(shape), *floats)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WeightedMoments) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    def _get(self, region: tuple[slice, ...]) -> WeightedMoments:
        return WeightedMoments(*(getattr(self, name)[region] for name in _FIELDS))

    def _put(self, region: tuple[slice, ...], part: WeightedMoments) -> None:
        for name in _FIELDS:
            getattr(self, name)[region] = getattr(part, name)


def _cut(shape: tuple[int, ...], keep: tuple[int, ...]) -> tuple[int, ...]:
    """The part of a block with few enough values; rather whole along the axes that are not kept."""
    part, left = list(shape), _MOST_VALUES
    for axis in sorted(range(len(shape)), key=lambda axis: (axis in keep, -axis)):
        part[axis] = max(1, min(shape[axis], left))
        left //= part[axis]
    return tuple(part)
