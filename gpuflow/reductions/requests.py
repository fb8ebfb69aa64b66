"""What may be asked of the whole of an array: each says what it takes from a block, and how it is kept.

What comes of two blocks merges into what comes of both; see `Reduction`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from gpuflow.backends.block import to_host
from gpuflow.reductions.histogram import Histogram
from gpuflow.reductions.moments import Moments
from gpuflow.reductions.quantiles import Quantiles
from gpuflow.reductions.weighted import WeightedMoments, Weights

Region = tuple[slice, ...]
"""Where in the array a block lies."""


class Reduction(Protocol):
    """What comes of a block, by index of the kept axes."""

    def merge(self, other: Self, /) -> Self:
        """Of both sides together."""

    def embed(self, shape: tuple[int, ...], region: tuple[slice, ...]) -> Self:
        """Placed at `region` of the whole kept `shape`, and nothing elsewhere."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, exact."""


class Request(Protocol):
    """keep: ascending axis numbers, each index of which is on its own. Hashable, and pickles."""

    kind: ClassVar[str]

    @property
    def keep(self) -> tuple[int, ...]: ...

    @property
    def weights(self) -> Weights | None: ...

    @property
    def on_device(self) -> bool:
        """Whether `of` takes a block that lies on a CUDA device."""

    def key(self) -> Any:
        """As plain data: with what it is computed from, what it is kept under."""

    def empty(self, shape: tuple[int, ...]) -> Any:
        """Of no values; shape: of the kept axes."""

    def of(self, block: NDArray[Any], region: Region) -> Any:
        """Of one block, the part `region` of the array."""

    def read(self, data: Mapping[str, Any]) -> Any:
        """What `to_dict` wrote."""


@dataclass(frozen=True, slots=True)
class MomentsRequest:
    """Moments of the whole array, each index of the axes in `keep` (ascending) on its own; WeightedMoments where there are weights."""

    keep: tuple[int, ...]
    weights: Weights | None = None
    kind: ClassVar[str] = "moments"

    @property
    def on_device(self) -> bool:
        return self.weights is None

    def key(self) -> Any:
        return list(self.keep) if self.weights is None else [list(self.keep), self.weights.key()]

    def empty(self, shape: tuple[int, ...]) -> Moments | WeightedMoments:
        return (Moments if self.weights is None else WeightedMoments).empty(shape)

    def of(self, block: NDArray[Any], region: Region) -> Moments | WeightedMoments:
        if self.weights is None:
            return Moments.of(block, self.keep)
        return WeightedMoments.of(block, self.keep, self.weights.at(region))

    def read(self, data: Mapping[str, Any]) -> Moments | WeightedMoments:
        return (Moments if self.weights is None else WeightedMoments).from_dict(data)


@dataclass(frozen=True, slots=True)
class QuantilesRequest:
    """A sketch, for any quantile. It takes no weights."""

    keep: tuple[int, ...]
    weights: ClassVar[None] = None
    kind: ClassVar[str] = "quantiles"
    on_device: ClassVar[bool] = False

    def key(self) -> Any:
        return list(self.keep)

    def empty(self, shape: tuple[int, ...]) -> Quantiles:
        return Quantiles.empty(shape)

    def of(self, block: NDArray[Any], region: Region) -> Quantiles:
        return Quantiles.of(block, self.keep)

    def read(self, data: Mapping[str, Any]) -> Quantiles:
        return Quantiles.from_dict(data)


@dataclass(frozen=True, slots=True)
class HistogramRequest:
    """Counts in `bins` equal intervals of `bounds`, or the weight of what lies there."""

    keep: tuple[int, ...]
    bins: int
    bounds: tuple[float, float]
    weights: Weights | None = None
    kind: ClassVar[str] = "histogram"
    on_device: ClassVar[bool] = False

    def key(self) -> Any:
        return [list(self.keep), self.bins, *self.bounds, *([] if self.weights is None else [self.weights.key()])]

    def empty(self, shape: tuple[int, ...]) -> Histogram:
        return Histogram.empty(shape, self.bins, self.bounds, self._dtype)

    def of(self, block: NDArray[Any], region: Region) -> Histogram:
        if self.weights is None:
            return Histogram.of(block, self.keep, self.bins, self.bounds)
        return Histogram.weighted(block, self.keep, self.bins, self.bounds, self.weights.at(region))

    def read(self, data: Mapping[str, Any]) -> Histogram:
        return Histogram.from_dict(data, self._dtype)

    @property
    def _dtype(self) -> Any:
        return np.int64 if self.weights is None else np.float64


@dataclass(frozen=True, slots=True)
class Several:
    """Requests over the same kept axes, with the same weights, in one pass."""

    requests: tuple[Request, ...]
    kind: ClassVar[str] = "several"

    @property
    def keep(self) -> tuple[int, ...]:
        return self.requests[0].keep

    @property
    def weights(self) -> Weights | None:
        return self.requests[0].weights

    def key(self) -> Any:
        return [[one.kind, one.key()] for one in self.requests]

    def empty(self, shape: tuple[int, ...]) -> Together:
        return Together(tuple(one.empty(shape) for one in self.requests))

    @property
    def on_device(self) -> bool:
        return any(one.on_device for one in self.requests)

    def of(self, block: NDArray[Any], region: Region) -> Together:
        here = block if all(one.on_device for one in self.requests) else to_host(block)
        return Together(tuple(one.of(block if one.on_device else here, region) for one in self.requests))

    def read(self, data: Mapping[str, Any]) -> Together:
        return Together(tuple(one.read(part) for one, part in zip(self.requests, data["parts"], strict=True)))


@dataclass(frozen=True, slots=True)
class Together:
    """What comes of `Several`, in their order."""

    parts: tuple[Any, ...]

    def merge(self, other: Together) -> Together:
        return Together(tuple(mine.merge(theirs) for mine, theirs in zip(self.parts, other.parts, strict=True)))

    def embed(self, shape: tuple[int, ...], region: tuple[slice, ...]) -> Together:
        return Together(tuple(part.embed(shape, region) for part in self.parts))

    def to_dict(self) -> dict[str, Any]:
        return {"parts": [part.to_dict() for part in self.parts]}


def merge(one: Any, other: Any) -> Any:
    """Of both sides together."""
    return one.merge(other)


def unweighted(request: Request) -> Request:
    """The same as if all values counted alike."""
    if isinstance(request, Several):
        return Several(tuple(unweighted(one) for one in request.requests))
    return replace(request, weights=None) if isinstance(request, MomentsRequest | HistogramRequest) else request
