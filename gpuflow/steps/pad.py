"""Make some dimensions longer."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field, PlainValidator

from gpuflow.steps.axes import ByAxis, bound, by_axis
from gpuflow.steps.base import Array, ArraySpec, Namespace, Region, Step, StepError
from gpuflow.steps.borders import padded, spans_with_halo, with_halo
from gpuflow.steps.neighbours import BorderMode, Value
from gpuflow.steps.parameters import describe
from gpuflow.steps.spans import Span, Spans


def _both(value: Any) -> tuple[int, int]:
    if type(value) is int and value >= 0:
        return value, value
    if isinstance(value, list | tuple) and len(value) == 2 and all(type(one) is int and one >= 0 for one in value):
        return value[0], value[1]
    raise StepError(f"must be a width or [before, after], not {describe(value)}", "as in {y: 8, x: [0, 16]}")


class Pad(Step, frozen=True):
    """`width`: by dimension, how many values come before and after: a number for both, or [before, after]. `mode`: what they are:
    constant (`value`), reflect, nearest, mirror or wrap. Same dtype out."""

    kind: ClassVar[str] = "pad"
    about: ClassVar[str] = "Make some dimensions longer."
    examples: ClassVar[tuple[Any, ...]] = ({"width": {"y": 8, "x": [0, 16]}}, {"width": {"y": 8}, "mode": "reflect"})
    shorthand: ClassVar[tuple[str, ...]] = ("width",)

    width: Annotated[
        ByAxis,
        PlainValidator(by_axis(_both, "pad: {width: {y: 8, x: [0, 16]}}"), json_schema_input_type=dict[str, int | list[int]]),
        Field(description="How much comes before and after, by dimension: a number for both, or [before, after]."),
    ]
    mode: BorderMode = "constant"
    value: Value = 0.0

    def check(self, array: ArraySpec) -> ArraySpec:
        if self.mode == "constant" and array.dtype.kind in "biu" and np.array(self.value).astype(array.dtype) != self.value:
            raise StepError(f"pad: `value` {self.value} does not fit {array.dtype}", "choose another, or put a cast before it")
        widths = self._widths(array)
        if self.mode != "constant" and any(not size and any(both) for size, both in zip(array.shape, widths, strict=True)):
            raise StepError("pad: an empty dimension has nothing to continue", "use mode: constant")
        shape = tuple(size + sum(both) for size, both in zip(array.shape, widths, strict=True))
        return replace(array, shape=shape)

    def bind(self, array: ArraySpec) -> Pad:
        return self.model_copy(update={"width": bound(self.kind, self.width, array.dims)})

    def pull(self, array: ArraySpec, region: Region) -> Region:
        inside, halo = self._split(array, region)
        return with_halo(array, inside, halo, self.mode)

    def pull_all(self, array: ArraySpec, spans: Spans) -> Spans:
        inside, before, after = [], [], []
        for span, size, (width, _) in zip(spans, array.shape, self._widths(array), strict=True):
            start, stop = span.starts - width, span.stops - width
            first = np.clip(start, 0, size)
            last = np.maximum(first, np.minimum(stop, size))
            beyond = (first == last) & (size > 0)
            first = np.where(beyond, np.where(start < 0, 0, size - 1), first)
            last = np.where(beyond, first + 1, last)
            inside.append(Span(span.axis, first, last))
            before.append(first - start)
            after.append(stop - last)
        return spans_with_halo(array, tuple(inside), list(zip(before, after, strict=True)), self.mode)

    def cut(self, array: ArraySpec, chunks: tuple[int, ...]) -> tuple[int, ...]:
        return chunks

    def compute(self, xp: Namespace, block: Array, array: ArraySpec, region: Region) -> Array:
        inside, halo = self._split(array, region)
        wide = padded(xp, block, array, inside, halo, self.mode, self.value)
        return xp.ascontiguousarray(wide) if wide is not block else block.copy()

    def _split(self, array: ArraySpec, region: Region) -> tuple[Region, list[tuple[int, int]]]:
        """`region` of the result as a part of the array, which may be empty, and how many values lie before and after it."""
        inside, halo = [], []
        for part, size, (before, _) in zip(region, array.shape, self._widths(array), strict=True):
            start, stop = part.start - before, part.stop - before
            first = min(max(start, 0), size)
            last = max(first, min(stop, size))
            if first == last and size:  # all of it lies beyond an edge: the place at the edge comes along
                first, last = (0, 1) if start < 0 else (size - 1, size)
            inside.append(slice(first, last))
            halo.append((first - start, stop - last))
        return tuple(inside), halo

    def _widths(self, array: ArraySpec) -> list[tuple[int, int]]:
        widths = bound(self.kind, self.width, array.dims)
        return [widths.get(axis, (0, 0)) for axis in range(len(array.shape))]
