"""Gaussian blur, as scipy.ndimage.gaussian_filter has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field, PlainValidator

from gpuflow.steps.axes import ByAxis, bound, by_axis
from gpuflow.steps.base import Array, ArraySpec, StepError
from gpuflow.steps.channels import float_dtype
from gpuflow.steps.neighbours import Neighbours
from gpuflow.steps.parameters import number


def _sigma(value: Any) -> float:
    sigma = float(number(value))
    if not 0 < sigma <= 1000:
        raise StepError(f"must be above 0 and at most 1000, not {sigma}")
    return sigma


class Gaussian(Neighbours, frozen=True):
    """`sigma`: by dimension, the standard deviation in numbers of values; `truncate`: after so many of them the kernel ends.

    Out: float32 for narrow dtypes, else float64; summed in float64."""

    kind: ClassVar[str] = "gaussian"
    about: ClassVar[str] = "Gaussian blur, across the borders of chunks."
    examples: ClassVar[tuple[Any, ...]] = ({"sigma": {"y": 2, "x": 2}}, {"sigma": {"time": 1.5}, "mode": "nearest"})
    shorthand: ClassVar[tuple[str, ...]] = ("sigma",)

    sigma: Annotated[
        ByAxis,
        PlainValidator(by_axis(_sigma, "gaussian: {sigma: {y: 2, x: 2}}"), json_schema_input_type=dict[str, float]),
        Field(description="The standard deviation in numbers of values, by dimension."),
    ]
    truncate: Annotated[
        float,
        PlainValidator(_sigma, json_schema_input_type=float),
        Field(description="After so many standard deviations the kernel ends."),
    ] = 4.0

    def out_dtype(self, dtype: np.dtype[Any]) -> np.dtype[Any]:
        return float_dtype(dtype)

    def bind(self, array: ArraySpec) -> Gaussian:
        return self.model_copy(update={"sigma": bound(self.kind, self.sigma, array.dims)})

    def halo(self, array: ArraySpec) -> Mapping[int, tuple[int, int]]:
        sigmas = bound(self.kind, self.sigma, array.dims)
        radii = {int(axis): int(self.truncate * sigma + 0.5) for axis, sigma in sigmas.items()}  # SciPy's own
        return {axis: (radius, radius) for axis, radius in radii.items()}

    def filtered(self, block: Array, array: ArraySpec, dtype: np.dtype[Any]) -> Array:
        from scipy.ndimage import gaussian_filter1d  # takes 0.2 s to import

        out = np.asarray(block, dtype)
        for axis, sigma in bound(self.kind, self.sigma, array.dims).items():
            out = gaussian_filter1d(out, sigma, int(axis), mode="nearest", truncate=self.truncate)
        return out
