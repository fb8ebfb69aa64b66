"""Put dimensions in another order, such as the channel first or last."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field, PlainValidator

from gpuflow.steps.axes import axis_of
from gpuflow.steps.base import Array, ArraySpec, Namespace, Region, Step, StepError
from gpuflow.steps.parameters import describe
from gpuflow.steps.spans import Spans


def _names(value: Any) -> tuple[str | int, ...]:
    names = tuple(value) if isinstance(value, list | tuple) else ()
    if not names or not all(isinstance(name, str | int) and not isinstance(name, bool) for name in names):
        raise StepError(f"must be a list of dimensions, not {describe(value)}", "as in [time, channel, y, x]")
    return names


class Transpose(Step, frozen=True):
    """`dims`: all dimensions, in their new order. Same dtype out."""

    kind: ClassVar[str] = "transpose"
    about: ClassVar[str] = "Put the dimensions in another order."
    examples: ClassVar[tuple[Any, ...]] = (["time", "channel", "y", "x"],)
    shorthand: ClassVar[tuple[str, ...]] = ("dims",)

    dims: Annotated[
        tuple[str | int, ...],
        PlainValidator(_names, json_schema_input_type=list[str | int]),
        Field(description="All dimensions, in their new order."),
    ]

    def check(self, array: ArraySpec) -> ArraySpec:
        order = self._order(array)
        return ArraySpec(tuple(array.shape[axis] for axis in order), array.dtype, tuple(array.dims[axis] for axis in order))

    def bind(self, array: ArraySpec) -> Transpose:
        return self.model_copy(update={"dims": self._order(array)})

    @property
    def takes_around(self) -> bool:
        return True

    def pull(self, array: ArraySpec, region: Region) -> Region:
        parts = dict(zip(self._order(array), region, strict=True))
        return tuple(parts[axis] for axis in range(len(region)))

    def pull_all(self, array: ArraySpec, spans: Spans) -> Spans:
        parts = dict(zip(self._order(array), spans, strict=True))
        return tuple(parts[axis] for axis in range(len(spans)))

    def cut(self, array: ArraySpec, chunks: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(chunks[axis] for axis in self._order(array))

    def compute(self, xp: Namespace, block: Array, array: ArraySpec, region: Region) -> Array:
        return block.transpose(self._order(array)).copy()

    def _order(self, array: ArraySpec) -> tuple[int, ...]:
        order = tuple(axis_of(self.kind, name, array.dims) for name in self.dims)
        if sorted(order) != list(range(len(array.shape))):
            names = [name if name is not None else number for number, name in enumerate(array.dims)]
            raise StepError(f"transpose: names {len(order)} dimensions, the array has {names}", "name each of them once")
        return order
