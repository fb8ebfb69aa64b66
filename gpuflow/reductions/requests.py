"""What may be asked of the whole of an array: each says what it takes from a block, and how it is kept.

What comes of two blocks merges into what comes of both; see `Reduction`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

from numpy.typing import NDArray

from gpuflow.reductions.histogram import Histogram
from gpuflow.reductions.moments import Moments
from gpuflow.reductions.quantiles import Quantiles


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

    def key(self) -> Any:
        """As plain data: with what it is computed from, what it is kept under."""

    def empty(self, shape: tuple[int, ...]) -> Any:
        """Of no values; shape: of the kept axes."""

    def of(self, block: NDArray[Any]) -> Any:
        """Of one block."""

    def read(self, data: Mapping[str, Any]) -> Any:
        """What `to_dict` wrote."""


@dataclass(frozen=True, slots=True)
class MomentsRequest:
    """Moments of the whole array, each index of the axes in `keep` (ascending) on its own."""

    keep: tuple[int, ...]
    kind: ClassVar[str] = "moments"

    def key(self) -> Any:
        return list(self.keep)

    def empty(self, shape: tuple[int, ...]) -> Moments:
        return Moments.empty(shape)

    def of(self, block: NDArray[Any]) -> Moments:
        return Moments.of(block, self.keep)

    def read(self, data: Mapping[str, Any]) -> Moments:
        return Moments.from_dict(data)


@dataclass(frozen=True, slots=True)
class QuantilesRequest:
    """A sketch, for any quantile."""

    keep: tuple[int, ...]
    kind: ClassVar[str] = "quantiles"

    def key(self) -> Any:
        return list(self.keep)

    def empty(self, shape: tuple[int, ...]) -> Quantiles:
        return Quantiles.empty(shape)

    def of(self, block: NDArray[Any]) -> Quantiles:
        return Quantiles.of(block, self.keep)

    def read(self, data: Mapping[str, Any]) -> Quantiles:
        return Quantiles.from_dict(data)


@dataclass(frozen=True, slots=True)
class HistogramRequest:
    """Counts in `bins` equal intervals of `bounds`."""

    keep: tuple[int, ...]
    bins: int
    bounds: tuple[float, float]
    kind: ClassVar[str] = "histogram"

    def key(self) -> Any:
        return [list(self.keep), self.bins, *self.bounds]

    def empty(self, shape: tuple[int, ...]) -> Histogram:
        return Histogram.empty(shape, self.bins, self.bounds)

    def of(self, block: NDArray[Any]) -> Histogram:
        return Histogram.of(block, self.keep, self.bins, self.bounds)

    def read(self, data: Mapping[str, Any]) -> Histogram:
        return Histogram.from_dict(data)


@dataclass(frozen=True, slots=True)
class Several:
    """Requests over the same kept axes, in one pass."""

    requests: tuple[Request, ...]
    kind: ClassVar[str] = "several"

    @property
    def keep(self) -> tuple[int, ...]:
        return self.requests[0].keep

    def key(self) -> Any:
        return [[one.kind, one.key()] for one in self.requests]

    def empty(self, shape: tuple[int, ...]) -> Together:
        return Together(tuple(one.empty(shape) for one in self.requests))

    def of(self, block: NDArray[Any]) -> Together:
        return Together(tuple(one.of(block) for one in self.requests))

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
