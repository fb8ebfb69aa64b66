"""Stretch the values from the smallest to the largest over a range, of the whole array or of each channel.

The extrema are those of the whole array, never of a chunk; NaN stays NaN."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import PlainValidator, model_validator

from gpuflow.backends import expression_tree as tree
from gpuflow.reductions.moments import Moments
from gpuflow.steps.base import Array, ArraySpec, Namespace, Region, StepError, quiet
from gpuflow.steps.channels import Arrays, ChannelStep, given_numbers
from gpuflow.steps.parameters import describe, number


def _range(value: Any) -> tuple[float, float]:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError(f"must be two numbers such as [0, 1], not {describe(value)}")
    low, high = (float(number(item)) for item in value)
    if not low < high:
        raise ValueError(f"must rise: {low} is not below {high}")
    if not np.abs([low, high, high - low]).max() <= np.finfo(np.float32).max:
        raise ValueError("is beyond what float32 holds")
    return low, high


class Normalize(ChannelStep, frozen=True):
    """`per`: the dimensions (names, or axis numbers) whose indices keep extrema of their own, such as the channel.

    `range`: what the smallest and the largest value become. `min` and `max`: both or neither, where they are not to be taken from the
    data; a number, or nested lists with one entry per index of `per`, in the order of the array's axes. Values beyond them leave the
    range. Out: float32 for narrow dtypes, else float64."""

    kind: ClassVar[str] = "normalize"
    parameters: ClassVar[tuple[str, str]] = ("min", "max")

    range: Annotated[tuple[float, float], PlainValidator(_range)] = (0.0, 1.0)
    min: Annotated[Any, PlainValidator(given_numbers)] = None
    max: Annotated[Any, PlainValidator(given_numbers)] = None

    @model_validator(mode="after")
    def _rises(self) -> Self:
        low, high = (self.arrays.get(name) for name in self.parameters)
        if low is not None and high is not None and low.shape == high.shape and not (low < high).all():
            raise StepError("`min` is not below `max` everywhere", "swap them, or leave both out to take them from the data")
        return self

    def operands(self, values: Arrays) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        with quiet():
            return values["min"], np.asarray(values["max"] - values["min"])

    def measured(self, moments: Moments) -> dict[str, NDArray[np.float64]]:
        return {"min": moments.minimum, "max": moments.maximum}

    def unusable(self, low: float, high: float, values: Mapping[str, float]) -> str:
        if low == high:
            return f"every value is {low!r}, so there is nothing to stretch"
        return f"its values from {low!r} to {high!r} are out of range"

    def apply(self, xp: Namespace, block: Array, region: Region) -> Array:
        out = super().apply(xp, block, region)
        low, high = self.range
        if self.range != (0.0, 1.0):
            with quiet():
                out *= high - low
                out += low
        return out

    def express(self, array: ArraySpec) -> tree.Node:
        unit, (low, high) = super().express(array), self.range
        if self.range == (0.0, 1.0):
            return unit
        return tree.Call("+", (tree.Call("*", (unit, tree.Constant(high - low))), tree.Constant(low)))
