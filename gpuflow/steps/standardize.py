"""Subtract the mean and divide by the standard deviation, of the whole array or of each channel.

The statistics are over the whole array, never over a chunk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PlainValidator, PrivateAttr, model_validator

from gpuflow.reductions.moments import Moments
from gpuflow.reductions.weighted import WeightedMoments, Weights
from gpuflow.steps.base import ArraySpec, MomentsRequest, Request, StepError
from gpuflow.steps.channels import GIVEN, Arrays, ChannelStep, given_numbers
from gpuflow.steps.weighting import AREA, WeightsText


def _std(value: Any) -> Any:
    value = given_numbers(value)
    if value is not None and not np.all(np.asarray(value) > 0):
        raise ValueError("must be greater than 0 everywhere")
    return value


class Standardize(ChannelStep, frozen=True):
    """`per`: the dimensions (names, or axis numbers) whose indices keep statistics of their own, such as the channel.

    `weights`: how much values count, an expression of coordinates. `mean` and `std`: both or neither; a number, or nested lists with one
    entry per index of `per`, in the order of the array's axes. Out: float32 for narrow dtypes, else float64."""

    kind: ClassVar[str] = "standardize"
    about: ClassVar[str] = "Subtract the mean and divide by the standard deviation, of the whole array or of each channel."
    parameters: ClassVar[tuple[str, str]] = ("mean", "std")
    unit: ClassVar[str] = "a standard deviation"
    how: ClassVar[tuple[str, ...]] = ("weights",)
    examples: ClassVar[tuple[Any, ...]] = ({"per": "channel"}, {"mean": 0.5, "std": 0.25}, {"weights": AREA})

    mean: Annotated[
        Any,
        PlainValidator(given_numbers, json_schema_input_type=GIVEN),
        Field(
            description="Given with `std`, it is not taken from the data: a number, or a list with one entry per index of `per`."
        ),
    ] = None
    std: Annotated[
        Any,
        PlainValidator(_std, json_schema_input_type=GIVEN),
        Field(description="Given with `mean`, in the same form; greater than 0."),
    ] = None

    weights: Annotated[
        WeightsText,
        Field(
            description=f"How much values count in mean and std: an expression of coordinates, by their names, such as {AREA}."
        ),
    ] = None

    _weighing: Weights | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _weighs(self) -> Self:
        if self.weights is not None and self.arrays:
            raise StepError("`weights` says nothing where `mean` and `std` are given", "leave it out")
        return self

    def weighed(self, weights: Weights) -> Self:
        """The same step, which knows what its `weights` come to for the array that it is for."""
        step = self.model_copy()
        step._weighing = weights
        return step

    def needs(self, array: ArraySpec) -> Request | None:
        asked = super().needs(array)
        if asked is None or self.weights is None:
            return asked
        assert self._weighing is not None, "its plan has not been weighed"
        return MomentsRequest(asked.keep, self._weighing)

    def operands(self, values: Arrays) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return values["mean"], values["std"]

    def measured(self, statistics: Moments | WeightedMoments) -> dict[str, NDArray[np.float64]]:
        return {"mean": statistics.mean, "std": statistics.std}

    def unusable(self, low: float, high: float, values: Mapping[str, float]) -> str:
        if low == high:
            return f"every value is {low!r}, so its standard deviation is 0"
        return f"its mean {values['mean']!r} or standard deviation {values['std']!r} is out of range"
