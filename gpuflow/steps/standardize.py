"""Subtract the mean and divide by the standard deviation, of the whole array or of each channel.

The statistics are over the whole array, never over a chunk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import PlainValidator

from gpuflow.reductions.moments import Moments
from gpuflow.steps.channels import Arrays, ChannelStep, given_numbers


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
    parameters: ClassVar[tuple[str, str]] = ("mean", "std")

    mean: Annotated[Any, PlainValidator(given_numbers)] = None
    std: Annotated[Any, PlainValidator(_std)] = None

    def operands(self, values: Arrays) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return values["mean"], values["std"]

    def measured(self, moments: Moments) -> dict[str, NDArray[np.float64]]:
        return {"mean": moments.mean, "std": moments.std}

    def unusable(self, low: float, high: float, values: Mapping[str, float]) -> str:
        if low == high:
            return f"every value is {low!r}, so its standard deviation is 0"
        return f"its mean {values['mean']!r} or standard deviation {values['std']!r} is out of range"
