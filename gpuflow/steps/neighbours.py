"""Steps whose result at one place depends on the values around it: filters, morphology, windows along time.

A block is computed with so much of its neighbours around it as the step asks for, so that the result is that of the whole array, however
it is cut. Beyond the array's edges lies what `mode` says, by SciPy's names."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field, PlainValidator

from gpuflow.steps.axes import ByAxis, bound, by_axis
from gpuflow.steps.base import Array, ArraySpec, Namespace, Region, Step, StepError, quiet
from gpuflow.steps.borders import Mode, padded, spans_with_halo, with_halo
from gpuflow.steps.parameters import describe, number
from gpuflow.steps.spans import Spans


def _window(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 10_000:
        raise StepError(f"must be a number of values from 1 to 10000, not {describe(value)}")
    return value


Sizes = Annotated[
    ByAxis,
    PlainValidator(by_axis(_window, "size: {y: 3, x: 3}"), json_schema_input_type=dict[str, int]),
    Field(description="How many values the window has, by dimension."),
]
BorderMode = Annotated[Mode, Field(description="What lies beyond the edges, by SciPy's names.")]
Value = Annotated[
    float,
    PlainValidator(lambda value: float(number(value)), json_schema_input_type=float),
    Field(description="What lies beyond the edges in the mode constant."),
]


class Neighbours(Step, frozen=True):
    """`mode`: what lies beyond the edges: reflect, constant (`value`), nearest, mirror or wrap."""

    mode: BorderMode = "reflect"
    value: Value = 0.0

    @abstractmethod
    def halo(self, array: ArraySpec) -> Mapping[int, tuple[int, int]]:
        """How many values before and after a place its result depends on, by axis."""

    @abstractmethod
    def filtered(self, block: Array, array: ArraySpec, dtype: np.dtype[Any]) -> Array:
        """The result for each place of `block`, a part of the array with its halo; what comes out for the halo is not used."""

    def out_dtype(self, dtype: np.dtype[Any]) -> np.dtype[Any]:
        """The dtype that comes out for `dtype`: the same, unless the step says otherwise."""
        return dtype

    def check(self, array: ArraySpec) -> ArraySpec:
        if array.dtype.kind not in "iuf":
            raise StepError(f"{self.kind} works on real numbers, not on {array.dtype}", "put a cast step before it")
        self.halo(array)
        return replace(array, dtype=self.out_dtype(array.dtype))

    @property
    def takes_around(self) -> bool:
        return self.mode == "wrap"

    def pull(self, array: ArraySpec, region: Region) -> Region:
        return with_halo(array, region, self._halo(array), self.mode)

    def pull_all(self, array: ArraySpec, spans: Spans) -> Spans:
        return spans_with_halo(array, spans, self._halo(array), self.mode)

    def cut(self, array: ArraySpec, chunks: tuple[int, ...]) -> tuple[int, ...]:
        return chunks

    def compute(self, xp: Namespace, block: Array, array: ArraySpec, region: Region) -> Array:
        halo = self._halo(array)
        wide = padded(xp, block, array, region, halo, self.mode, self.value)
        with quiet():
            out = self.filtered(wide, array, self.out_dtype(array.dtype))
        inner = tuple(slice(before, before + part.stop - part.start) for part, (before, _) in zip(region, halo, strict=True))
        return np.ascontiguousarray(out[inner])

    def _halo(self, array: ArraySpec) -> list[tuple[int, int]]:
        by_axis_number = self.halo(array)
        return [by_axis_number.get(axis, (0, 0)) for axis in range(len(array.shape))]


class Windowed(Neighbours, frozen=True):
    """`size`: by dimension, how many values the window has, centred on the place; of an even number one more lies before it."""

    shorthand: ClassVar[tuple[str, ...]] = ("size",)

    size: Sizes

    def bind(self, array: ArraySpec) -> Windowed:
        return self.model_copy(update={"size": bound(self.kind, self.size, array.dims)})

    def halo(self, array: ArraySpec) -> Mapping[int, tuple[int, int]]:
        sizes = bound(self.kind, self.size, array.dims)
        return {int(axis): (size // 2, (size - 1) // 2) for axis, size in sizes.items()}

    def window(self, array: ArraySpec) -> tuple[int, ...]:
        """Its shape: 1 along the dimensions that are not named."""
        sizes = bound(self.kind, self.size, array.dims)
        return tuple(sizes.get(axis, 1) for axis in range(len(array.shape)))
