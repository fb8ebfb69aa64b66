"""Keep a part of some dimensions."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, ClassVar

from pydantic import Field, PlainValidator

from gpuflow.steps.axes import ByAxis, bound, by_axis
from gpuflow.steps.base import Array, ArraySpec, Namespace, Region, Step, StepError
from gpuflow.steps.parameters import describe
from gpuflow.steps.spans import Spans


def _part(value: Any) -> Any:
    """A length, or (start, stop), each None where it is left open."""
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    if isinstance(value, list | tuple) and len(value) == 2 and all(one is None or type(one) is int for one in value):
        return tuple(value)
    hint = "write a length from the middle such as 224, or [start, stop], as Python's slices have them"
    raise StepError(f"must be a length or [start, stop], not {describe(value)}", hint)


class Crop(Step, frozen=True):
    """`to`: by dimension, what is kept: a length, taken from the middle, or [start, stop] as in Python's slices: from the end where they
    are negative, open where they are null. Same dtype out."""

    kind: ClassVar[str] = "crop"
    about: ClassVar[str] = "Keep a part of some dimensions: a length from the middle, or [start, stop]."
    examples: ClassVar[tuple[Any, ...]] = ({"to": {"y": 224, "x": 224}}, {"to": {"time": [0, 365]}})
    shorthand: ClassVar[tuple[str, ...]] = ("to",)

    to: Annotated[
        ByAxis,
        PlainValidator(
            by_axis(_part, "crop: {to: {y: [0, 256], x: 224}}"), json_schema_input_type=dict[str, int | list[int | None]]
        ),
        Field(description="What is kept, by dimension: a length from the middle, or [start, stop]."),
    ]

    def check(self, array: ArraySpec) -> ArraySpec:
        shape = list(array.shape)
        for axis, (start, stop) in self._ranges(array).items():
            shape[axis] = stop - start
        return replace(array, shape=tuple(shape))

    def bind(self, array: ArraySpec) -> Crop:
        return self.model_copy(update={"to": ByAxis(self._ranges(array).items())})

    def pull(self, array: ArraySpec, region: Region) -> Region:
        ranges = self._ranges(array)
        return tuple(
            slice(part.start + ranges[axis][0], part.stop + ranges[axis][0]) if axis in ranges else part
            for axis, part in enumerate(region)
        )

    def pull_all(self, array: ArraySpec, spans: Spans) -> Spans:
        ranges = self._ranges(array)
        return tuple(span.moved(ranges[axis][0]) if axis in ranges else span for axis, span in enumerate(spans))

    def cut(self, array: ArraySpec, chunks: tuple[int, ...]) -> tuple[int, ...]:
        shape = self.check(array).shape
        return tuple(max(1, min(chunk, size)) for chunk, size in zip(chunks, shape, strict=True))

    def compute(self, xp: Namespace, block: Array, array: ArraySpec, region: Region) -> Array:
        return block.copy()

    def _ranges(self, array: ArraySpec) -> dict[int, tuple[int, int]]:
        """Start and stop by axis. StepError when nothing would be left."""
        ranges = {}
        for axis, part in bound(self.kind, self.to, array.dims).items():
            size = array.shape[int(axis)]
            if isinstance(part, int):
                if part > size:
                    raise StepError(f"crop: axis {axis} has only {size} of {part}", "a pad step makes it longer")
                start = (size - part) // 2
                stop = start + part
            else:
                start, stop, _ = slice(*part).indices(size)
            if stop <= start:
                raise StepError(f"crop: nothing is left of axis {axis}, which has {size}", "choose a start below the stop")
            ranges[int(axis)] = start, stop
        return ranges
