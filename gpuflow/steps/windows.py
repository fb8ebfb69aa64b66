"""Means over a window, and differences from one place to another: along time, or in space."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field, PlainValidator

from gpuflow.steps.axes import ByAxis, bound, by_axis
from gpuflow.steps.base import Array, ArraySpec, StepError
from gpuflow.steps.channels import float_dtype
from gpuflow.steps.neighbours import BorderMode, Neighbours, Windowed
from gpuflow.steps.parameters import describe


class Rolling(Windowed, frozen=True):
    """The mean of each window. Out: float32 for narrow dtypes, else float64; each mean is summed on its own, in float64."""

    kind: ClassVar[str] = "rolling"
    about: ClassVar[str] = "The mean of a window, along time or in space."
    examples: ClassVar[tuple[Any, ...]] = ({"size": {"time": 7}},)

    def out_dtype(self, dtype: np.dtype[Any]) -> np.dtype[Any]:
        return float_dtype(dtype)

    def filtered(self, block: Array, array: ArraySpec, dtype: np.dtype[Any]) -> Array:
        from scipy.ndimage import correlate1d  # a running sum would depend on where the block begins

        out = np.asarray(block, dtype)
        for axis, size in enumerate(self.window(array)):
            if size > 1:
                out = correlate1d(out, np.full(size, 1 / size), axis, mode="nearest")
        return out


def _distance(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= abs(value) <= 10_000:
        raise StepError(f"must be a whole number from 1 to 10000, or below zero for a look ahead, not {describe(value)}")
    return value


class Difference(Neighbours, frozen=True):
    """`over`: by dimension, how far back the value lies that is subtracted: `{time: 1}` gives x[t] - x[t - 1]; below zero, ahead.

    Beyond the edges: as `mode` says; nearest, so that the first difference is zero. Out: float32 for narrow dtypes, else float64."""

    kind: ClassVar[str] = "difference"
    about: ClassVar[str] = "What has changed since the value before, along a dimension."
    examples: ClassVar[tuple[Any, ...]] = ({"over": {"time": 1}},)
    shorthand: ClassVar[tuple[str, ...]] = ("over",)

    over: Annotated[
        ByAxis,
        PlainValidator(by_axis(_distance, "difference: {over: {time: 1}}"), json_schema_input_type=dict[str, int]),
        Field(description="How far back the value lies that is subtracted, by dimension."),
    ]
    mode: BorderMode = "nearest"

    def out_dtype(self, dtype: np.dtype[Any]) -> np.dtype[Any]:
        return float_dtype(dtype)

    def bind(self, array: ArraySpec) -> Difference:
        return self.model_copy(update={"over": bound(self.kind, self.over, array.dims)})

    def halo(self, array: ArraySpec) -> Mapping[int, tuple[int, int]]:
        distances = bound(self.kind, self.over, array.dims)
        return {int(axis): (max(0, far), max(0, -far)) for axis, far in distances.items()}

    def filtered(self, block: Array, array: ArraySpec, dtype: np.dtype[Any]) -> Array:
        out = np.asarray(block, dtype)
        for axis, far in bound(self.kind, self.over, array.dims).items():
            out = out - np.roll(out, far, int(axis))  # what comes around lies in the halo
        return out
