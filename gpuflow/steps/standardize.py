"""Subtract the mean and divide by the standard deviation, of the whole array or of each channel.

The statistics are over the whole array, never over a chunk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PlainValidator

from gpuflow.reductions.moments import Moments
from gpuflow.steps.channels import GIVEN, Arrays, ChannelStep, given_numbers


def _std(value: Any) -> Any:
    value = given_numbers(value)
    if value is not None and not np.all(np.asarray(value) > 0):
        raise ValueError("must be greater than 0 everywhere")
    return value


class Standardize(ChannelStep, frozen=True):
    """`per`: the dimensions (names, or axis numbers) whose indices keep statistics of their own, such as the channel.

    `mean` and `std`: both or neither; a number, or nested lists with one entry per index of `per`, in the order of the
    array's axes. Out: float32 for narrow dtypes, else float64."""

    kind: ClassVar[str] = "standardize"
    about: ClassVar[str] = "Subtract the mean and divide by the standard deviation, of the whole array or of each channel."
    parameters: ClassVar[tuple[str, str]] = ("mean", "std")
    unit: ClassVar[str] = "a standard deviation"
    examples: ClassVar[tuple[Any, ...]] = ({"per": "channel"}, {"mean": 0.5, "std": 0.25})

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

    def operands(self, values: Arrays) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return values["mean"], values["std"]

    def measured(self, statistics: Moments) -> dict[str, NDArray[np.float64]]:
        return {"mean": statistics.mean, "std": statistics.std}

    def unusable(self, low: float, high: float, values: Mapping[str, float]) -> str:
        if low == high:
            return f"every value is {low!r}, so its standard deviation is 0"
        return f"its mean {values['mean']!r} or standard deviation {values['std']!r} is out of range"
