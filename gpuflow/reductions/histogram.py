"""How many values of an array lie in each of equal intervals, from those of its chunks; or how much these weigh. NaN values are skipped.

Numbers are exact, weights are float64."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuflow.grid import Grid
from gpuflow.reductions.moments import slab_shape


@dataclass(frozen=True, slots=True, eq=False)
class Histogram:
    """counts: (kept axes..., bins) int64, the bins of `numpy.histogram` over `bounds`, the last closed on both sides. below, above: values
    beyond them, infinite ones too, one entry per index of the kept axes. All of them float64 where values have weights."""

    counts: NDArray[Any]
    below: NDArray[Any]
    above: NDArray[Any]
    bounds: tuple[float, float]

    @classmethod
    def empty(cls, shape: tuple[int, ...], bins: int, bounds: tuple[float, float], dtype: Any = np.int64) -> Histogram:
        """Of no values; the neutral element of `merge`."""
        return cls(np.zeros((*shape, bins), dtype), np.zeros(shape, dtype), np.zeros(shape, dtype), bounds)

    @classmethod
    def of(cls, block: NDArray[Any], keep: tuple[int, ...], bins: int, bounds: tuple[float, float]) -> Histogram:
        """Of `block` (any shape, real dtype) over the axes that are not in `keep` (ascending axis numbers)."""
        whole = cls.empty(tuple(block.shape[axis] for axis in keep), bins, bounds)
        turned = np.moveaxis(block, keep, range(len(keep)))
        low, high = bounds
        for index in np.ndindex(whole.below.shape):
            values = turned[index].ravel()
            values = values.astype(np.float64) if values.dtype.kind in "bf" else values
            whole.counts[index] = np.histogram(values, bins, bounds)[0]
            whole.below[index], whole.above[index] = int((values < low).sum()), int((values > high).sum())
        return whole

    @classmethod
    def weighted(
        cls,
        block: NDArray[Any],
        keep: tuple[int, ...],
        bins: int,
        bounds: tuple[float, float],
        weights: NDArray[np.float64],
    ) -> Histogram:
        """The sum of the weights of the values, in place of their number; weights: see `Weights.at`."""
        whole = cls.empty(tuple(block.shape[axis] for axis in keep), bins, bounds, np.float64)
        axes, every = range(len(keep)), np.broadcast_to(weights, block.shape)
        grid = Grid(block.shape, slab_shape(block.shape))
        for linear in range(grid.size):
            region = grid.region(linear)
            kept: Any = (*(region[axis] for axis in keep), ...)
            turned, theirs = np.moveaxis(block[region], keep, axes), np.moveaxis(every[region], keep, axes)
            counts, below, above = whole.counts[kept], whole.below[kept], whole.above[kept]
            for index in np.ndindex(below.shape):
                values, each = turned[index].ravel(), theirs[index].ravel()
                values = values.astype(np.float64) if values.dtype.kind in "bf" else values
                counts[index] += np.histogram(values, bins, bounds, weights=each)[0]
                below[index] += each[values < bounds[0]].sum()
                above[index] += each[values > bounds[1]].sum()
        return whole

    def merge(self, other: Histogram) -> Histogram:
        """Of both sides together."""
        counts, below, above = self.counts + other.counts, self.below + other.below, self.above + other.above
        return Histogram(np.asarray(counts), np.asarray(below), np.asarray(above), self.bounds)

    def embed(self, shape: tuple[int, ...], region: tuple[slice, ...]) -> Histogram:
        """These placed at `region` (one slice per kept axis) of the whole kept `shape`; no values elsewhere."""
        whole = Histogram.empty(shape, self.counts.shape[-1], self.bounds, self.counts.dtype)
        for name in ("counts", "below", "above"):
            getattr(whole, name)[region] = getattr(self, name)
        return whole

    @property
    def edges(self) -> NDArray[np.float64]:
        """The bins' edges: one more than there are bins."""
        return np.linspace(*self.bounds, self.counts.shape[-1] + 1)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, exact."""
        arrays = {name: getattr(self, name).ravel().tolist() for name in ("counts", "below", "above")}
        return {"shape": list(self.counts.shape), "range": list(self.bounds), **arrays}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], dtype: Any = np.int64) -> Histogram:
        """The inverse of `to_dict`; dtype: of the counts."""
        *kept, bins = data["shape"]
        low, high = data["range"]
        whole = cls.empty(tuple(kept), bins, (float(low), float(high)), dtype)
        whole.counts[...] = np.array(data["counts"], dtype).reshape(data["shape"])
        for name in ("below", "above"):
            getattr(whole, name)[...] = np.array(data[name], dtype).reshape(kept)
        return whole

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Histogram) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]
