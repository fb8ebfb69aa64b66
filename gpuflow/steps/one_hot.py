"""Class labels as one channel a class."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from gpuflow.steps.base import Array, ArraySpec, Namespace, Region, Step, StepError
from gpuflow.steps.spans import Spans


class OneHot(Step, frozen=True):
    """`classes`: their number; labels run from 0 to one below it. `dim`: name of the new, last dimension. Out: uint8, 1 where the label is
    the class. Other labels are an error."""

    kind: ClassVar[str] = "one_hot"
    about: ClassVar[str] = "Class labels as one channel a class."
    examples: ClassVar[tuple[Any, ...]] = ({"classes": 10}, 10)
    shorthand: ClassVar[tuple[str, ...]] = ("classes",)

    classes: Annotated[int, Field(ge=2, le=65536, description="Their number; labels run from 0 on.")]
    dim: Annotated[str, Field(description="Name of the new, last dimension.")] = "class"

    def check(self, array: ArraySpec) -> ArraySpec:
        if array.dtype.kind not in "biu":
            raise StepError(f"one_hot takes whole numbers, not {array.dtype}", "put a cast step before it")
        if self.dim in array.dims:
            raise StepError(f"one_hot: there is a dimension `{self.dim}` already", "name the new one: `dim: ...`")
        return ArraySpec((*array.shape, self.classes), np.dtype(np.uint8), (*array.dims, self.dim))

    def pull(self, array: ArraySpec, region: Region) -> Region:
        return region[:-1]

    def pull_all(self, array: ArraySpec, spans: Spans) -> Spans:
        return spans[:-1]

    def cut(self, array: ArraySpec, chunks: tuple[int, ...]) -> tuple[int, ...]:
        return (*chunks, self.classes)

    def compute(self, xp: Namespace, block: Array, array: ArraySpec, region: Region) -> Array:
        wrong = (block < 0) | (block >= self.classes)
        if wrong.any():
            raise StepError(f"one_hot: label {block[wrong].flat[0]} is none of the {self.classes} classes", "raise `classes`")
        numbers = xp.arange(region[-1].start, region[-1].stop)
        return (block[..., None] == numbers).astype(np.uint8)
