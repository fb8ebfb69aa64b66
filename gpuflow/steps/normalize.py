"""Stretch the values from the smallest to the largest over a range, of the whole array or of each channel.

The extrema, or the quantiles in their place, are those of the whole array, never of a chunk; NaN stays NaN."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Annotated, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PlainValidator, model_validator

from gpuflow.backends import expression_tree as tree
from gpuflow.reductions.moments import Moments
from gpuflow.reductions.quantiles import MOST_SKETCHES, Quantiles
from gpuflow.reductions.requests import QuantilesRequest
from gpuflow.steps.base import Array, ArraySpec, Namespace, Region, Request, StepError, quiet
from gpuflow.steps.channels import GIVEN, Arrays, ChannelStep, given_numbers
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


def _quantiles(value: Any) -> tuple[float, float] | None:
    if value is None:
        return None
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError(f"must be two numbers such as [0.01, 0.99], not {describe(value)}")
    low, high = (float(number(item)) for item in value)
    if not 0 <= low < high <= 1:
        raise ValueError(f"must be two shares from 0 to 1 that rise, not {low} and {high}")
    return low, high


class Normalize(ChannelStep, frozen=True):
    """`per`: the dimensions (names, or axis numbers) whose indices keep extrema of their own, such as the channel.

    `range`: what the smallest and the largest value become. `quantiles`: two shares, such as 0.01 and 0.99, whose values take the place
    of the smallest and the largest, where outliers would leave no room for the rest. `min` and `max`: both or neither, where they are
    not to be taken from the data; a number, or nested lists with one entry per index of `per`, in the order of the array's axes. Values
    beyond them leave the range: a clip step stops them. Out: float32 for narrow dtypes, else float64."""

    kind: ClassVar[str] = "normalize"
    about: ClassVar[str] = "Stretch the values from the smallest to the largest, or between two quantiles, over a range."
    parameters: ClassVar[tuple[str, str]] = ("min", "max")
    unit: ClassVar[str] = "the range"
    how: ClassVar[tuple[str, ...]] = ("quantiles",)
    examples: ClassVar[tuple[Any, ...]] = ({"per": "channel"}, {"per": "band", "range": [-1, 1]}, {"quantiles": [0.01, 0.99]})

    range: Annotated[
        tuple[float, float],
        PlainValidator(_range, json_schema_input_type=list[float]),
        Field(description="Two numbers: what the smallest and the largest value become."),
    ] = (0.0, 1.0)
    quantiles: Annotated[
        tuple[float, float] | None,
        PlainValidator(_quantiles, json_schema_input_type=list[float] | None),
        Field(
            description="Two shares such as [0.01, 0.99], whose quantiles are stretched in place of the smallest and largest value."
        ),
    ] = None
    min: Annotated[
        Any,
        PlainValidator(given_numbers, json_schema_input_type=GIVEN),
        Field(
            description="Given with `max`, it is not taken from the data: a number, or a list with one entry per index of `per`."
        ),
    ] = None
    max: Annotated[
        Any,
        PlainValidator(given_numbers, json_schema_input_type=GIVEN),
        Field(description="Given with `min`, in the same form, and greater."),
    ] = None

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if self.quantiles is not None and self.arrays:
            raise StepError("has both `quantiles` and `min` with `max`", "give one or the other")
        low, high = (self.arrays.get(name) for name in self.parameters)
        if low is not None and high is not None and low.shape == high.shape and not (low < high).all():
            raise StepError("`min` is not below `max` everywhere", "swap them, or leave both out to take them from the data")
        return self

    def operands(self, values: Arrays) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        with quiet():
            return values["min"], np.asarray(values["max"] - values["min"])

    def needs(self, array: ArraySpec) -> Request | None:
        asked = super().needs(array)
        if asked is None or self.quantiles is None:
            return asked
        kept = tuple(array.shape[axis] for axis in asked.keep)
        if prod(kept) > MOST_SKETCHES:
            raise StepError(f"normalize: quantiles of {prod(kept)} indices of `per` are too many", f"at most {MOST_SKETCHES}")
        return QuantilesRequest(asked.keep)

    def measured(self, statistics: Moments | Quantiles) -> dict[str, NDArray[np.float64]]:
        if isinstance(statistics, Quantiles) and self.quantiles is not None:
            low, high = (statistics.quantile(share) for share in self.quantiles)
            return {"min": low, "max": high}
        return {"min": statistics.minimum, "max": statistics.maximum}

    def unusable(self, low: float, high: float, values: Mapping[str, float]) -> str:
        if self.quantiles is not None and values["min"] == values["max"]:
            return f"its quantiles {list(self.quantiles)} are both {values['min']!r}, so there is nothing to stretch"
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
