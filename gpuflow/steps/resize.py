"""Resample images, or the fields of any array, to another height and width: Pillow's filters, which average what they shrink."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PlainValidator, model_validator

from gpuflow.steps.axes import ByAxis, bound, by_axis
from gpuflow.steps.base import Array, ArraySpec, Namespace, Region, Step, StepError
from gpuflow.steps.parameters import describe
from gpuflow.steps.spans import Span, Spans


def _length(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 65535:
        raise StepError(f"must be a length from 1 to 65535, not {describe(value)}")
    return value


class Resize(Step, frozen=True):
    """`to`: the new lengths of two dimensions, the height first. `method`: bilinear, nearest, box, bicubic or lanczos.

    uint8 is resampled in uint8, all else in float32; whole numbers are rounded, and what a filter overshoots is cut off. Same dtype
    out, but float32 for float64. Source of the filters: Pillow's Image.resize."""

    kind: ClassVar[str] = "resize"
    about: ClassVar[str] = "Resample images or fields to another height and width."
    examples: ClassVar[tuple[Any, ...]] = ({"to": {"y": 224, "x": 224}}, {"to": {"y": 64, "x": 128}, "method": "box"})
    shorthand: ClassVar[tuple[str, ...]] = ("to",)

    to: Annotated[
        ByAxis,
        PlainValidator(by_axis(_length, "resize: {to: {y: 224, x: 224}}"), json_schema_input_type=dict[str, int]),
        Field(description="The new lengths of two dimensions, the height first."),
    ]
    method: Annotated[
        Literal["bilinear", "nearest", "box", "bicubic", "lanczos"], Field(description="Pillow's filter of that name.")
    ] = "bilinear"

    @model_validator(mode="after")
    def _two(self) -> Resize:
        if len(self.to) != 2:
            raise StepError(f"resize: names {len(self.to)} dimensions", "name two, as in {to: {y: 224, x: 224}}")
        return self

    def check(self, array: ArraySpec) -> ArraySpec:
        if array.dtype.kind not in "uif" or (array.dtype.itemsize > 4 and array.dtype.kind != "f"):
            raise StepError(f"resize cannot compute with {array.dtype}", "put cast: float32 before it")
        shape = list(array.shape)
        for axis, length in bound(self.kind, self.to, array.dims).items():
            if not array.shape[int(axis)]:
                raise StepError(f"resize: axis {axis} is empty")
            shape[int(axis)] = length
        dtype = np.dtype(np.float32) if array.dtype.kind == "f" else array.dtype
        return replace(array, shape=tuple(shape), dtype=dtype)

    def bind(self, array: ArraySpec) -> Resize:
        height, width = (next(iter(bound(self.kind, {name: 0}, array.dims))) for name in self.to)
        return self.model_copy(update={"to": ByAxis({height: self.to[next(iter(self.to))], width: [*self.to.values()][1]})})

    def pull(self, array: ArraySpec, region: Region) -> Region:
        axes = bound(self.kind, self.to, array.dims)
        return tuple(slice(0, array.shape[axis]) if axis in axes else part for axis, part in enumerate(region))

    def pull_all(self, array: ArraySpec, spans: Spans) -> Spans:
        axes = bound(self.kind, self.to, array.dims)
        return tuple(Span.fixed(0, array.shape[axis]) if axis in axes else span for axis, span in enumerate(spans))

    def cut(self, array: ArraySpec, chunks: tuple[int, ...]) -> tuple[int, ...]:
        lengths = bound(self.kind, self.to, array.dims)
        return tuple(lengths.get(axis, chunk) for axis, chunk in enumerate(chunks))

    def compute(self, xp: Namespace, block: Array, array: ArraySpec, region: Region) -> Array:
        lengths = bound(self.kind, self.to, array.dims)
        axes = [int(axis) for axis in lengths]
        planes = np.moveaxis(np.asarray(block), axes, (-2, -1))
        flat = planes.reshape(prod(planes.shape[:-2]), *planes.shape[-2:])
        size = tuple(lengths[axis] for axis in axes)
        out = np.empty((len(flat), *size), self.check(array).dtype)
        for number, plane in enumerate(flat):
            out[number] = self._plane(plane, size, out.dtype)
        whole = np.moveaxis(out.reshape(*planes.shape[:-2], *size), (-2, -1), axes)
        # Both dimensions are computed whole, from which the region is cut.
        return np.ascontiguousarray(whole[tuple(part if axis in axes else slice(None) for axis, part in enumerate(region))])

    def _plane(self, plane: NDArray[Any], size: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        from PIL import Image

        narrow = plane.dtype == np.uint8
        image = Image.fromarray(np.ascontiguousarray(plane, plane.dtype if narrow else np.float32))
        resized = np.asarray(image.resize((size[1], size[0]), Image.Resampling[self.method.upper()]))
        if narrow or dtype.kind == "f":
            return resized
        bounds = np.iinfo(dtype)
        return np.asarray(np.clip(np.rint(resized), bounds.min, bounds.max).astype(dtype))
