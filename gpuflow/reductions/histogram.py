"""How many values of an array lie in each of equal intervals, from those of its chunks. Exact; NaN values are skipped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Histogram:
    """counts: (kept axes..., bins) int64, the bins of `numpy.histogram` over `bounds`, the last closed on both sides. below, above: values
    beyond them, infinite ones too, one entry per index of the kept axes."""

    counts: NDArray[np.int64]
    below: NDArray[np.int64]
    above: NDArray[np.int64]
    bounds: tuple[float, float]

    @classmethod
    def empty(cls, shape: tuple[int, ...], bins: int, bounds: tuple[float, float]) -> Histogram:
        """Of no values; the neutral element of `merge`."""
        return cls(np.zeros((*shape, bins), np.int64), np.zeros(shape, np.int64), np.zeros(shape, np.int64), bounds)

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

    def merge(self, other: Histogram) -> Histogram:
        """Of both sides together."""
        counts, below, above = self.counts + other.counts, self.below + other.below, self.above + other.above
        return Histogram(np.asarray(counts), np.asarray(below), np.asarray(above), self.bounds)

    def embed(self, shape: tuple[int, ...], region: tuple[slice, ...]) -> Histogram:
        """These placed at `region` (one slice per kept axis) of the whole kept `shape`; no values elsewhere."""
        whole = Histogram.empty(shape, self.counts.shape[-1], self.bounds)
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
    def from_dict(cls, data: Mapping[str, Any]) -> Histogram:
        """The inverse of `to_dict`."""
        *kept, bins = data["shape"]
        low, high = data["range"]
        whole = cls.empty(tuple(kept), bins, (float(low), float(high)))
        whole.counts[...] = np.array(data["counts"], np.int64).reshape(data["shape"])
        for name in ("below", "above"):
            getattr(whole, name)[...] = np.array(data[name], np.int64).reshape(kept)
        return whole

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Histogram) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]
