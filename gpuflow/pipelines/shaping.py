"""The part of the Python twin that changes shapes, looks at neighbours, or brings arrays together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Self


class Shaping(ABC):
    """Each method returns a new pipeline. Dimensions are named; only: names of arrays, or patterns, where not all of them are meant."""

    @abstractmethod
    def step(self, kind: str, **parameters: Any) -> Self:
        """Any step by its name in YAML; parameters that are None are left out."""

    def crop(self, only: Any = None, **to: int | Sequence[int | None]) -> Self:
        """Keep a part of some dimensions: `crop(y=224, time=[0, 365])`: a length from the middle, or [start, stop]."""
        return self.step("crop", to=to, only=only)

    def pad(self, mode: str | None = None, *, value: float | None = None, only: Any = None, **width: int | Sequence[int]) -> Self:
        """Make some dimensions longer: `pad(y=8, x=[0, 16])`. mode: constant (`value`), reflect, nearest, mirror or wrap."""
        return self.step("pad", width=width, mode=mode, value=value, only=only)

    def transpose(self, *dims: str | int, only: Any = None) -> Self:
        """Put all dimensions in another order."""
        return self.step("transpose", dims=list(dims), only=only)

    def resize(self, method: str | None = None, *, only: Any = None, **to: int) -> Self:
        """Resample two dimensions, the height first: `resize(y=224, x=224)`. method: bilinear, nearest, box, bicubic or lanczos."""
        return self.step("resize", to=to, method=method, only=only)

    def gaussian(
        self,
        sigma: Mapping[str, float],
        *,
        truncate: float | None = None,
        mode: str | None = None,
        value: float | None = None,
        only: Any = None,
    ) -> Self:
        """Gaussian blur: `gaussian({"y": 2, "x": 2})`. mode: what lies beyond the edges, by SciPy's names."""
        return self.step("gaussian", sigma=dict(sigma), truncate=truncate, mode=mode, value=value, only=only)

    def median(self, size: Mapping[str, int], *, mode: str | None = None, value: float | None = None, only: Any = None) -> Self:
        """The median of the window around each value: `median({"y": 3, "x": 3})`."""
        return self.step("median", size=dict(size), mode=mode, value=value, only=only)

    def minimum(self, size: Mapping[str, int], *, mode: str | None = None, value: float | None = None, only: Any = None) -> Self:
        """The smallest value of the window: erosion."""
        return self.step("minimum", size=dict(size), mode=mode, value=value, only=only)

    def maximum(self, size: Mapping[str, int], *, mode: str | None = None, value: float | None = None, only: Any = None) -> Self:
        """The largest value of the window: dilation."""
        return self.step("maximum", size=dict(size), mode=mode, value=value, only=only)

    def rolling(self, size: Mapping[str, int], *, mode: str | None = None, value: float | None = None, only: Any = None) -> Self:
        """The mean of the window: `rolling({"time": 7})`."""
        return self.step("rolling", size=dict(size), mode=mode, value=value, only=only)

    def difference(
        self, over: Mapping[str, int], *, mode: str | None = None, value: float | None = None, only: Any = None
    ) -> Self:
        """What has changed since the value before: `difference({"time": 1})`."""
        return self.step("difference", over=dict(over), mode=mode, value=value, only=only)

    def one_hot(self, classes: int, *, dim: str | None = None, only: Any = None) -> Self:
        """Class labels as one channel a class, along a new last dimension."""
        return self.step("one_hot", classes=classes, dim=dim, only=only)

    def stack(self, *arrays: str, along: str | None = None, axis: int | None = None, name: str | None = None) -> Self:
        """Several arrays of one shape as the channels of one, which takes their place."""
        return self.step("stack", arrays=list(arrays), along=along, axis=axis, name=name)

    def derive(self, **expressions: str) -> Self:
        """New arrays of several: `derive(wind="sqrt(u10**2 + v10**2)")`; a `map` of named expressions in YAML."""
        return self.step("map", **expressions)

    def select(self, *arrays: str) -> Self:
        """The arrays that go on, by names or patterns."""
        return self.step("select", arrays=list(arrays))

    def drop(self, *arrays: str) -> Self:
        """The arrays that do not."""
        return self.step("drop", arrays=list(arrays))
