"""Put a number in place of NaN."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field, PlainValidator

from gpuflow.backends.expression_tree import Call, Constant, Node, Variable
from gpuflow.steps.base import Array, ArraySpec, Elementwise, Namespace, Region, StepError, quiet
from gpuflow.steps.parameters import number


class FillNan(Elementwise, frozen=True):
    """`value`: a finite number that the array's dtype can hold. The dtype stays."""

    kind: ClassVar[str] = "fill_nan"
    about: ClassVar[str] = "Put a number in place of NaN."
    shorthand: ClassVar[tuple[str, ...]] = ("value",)
    examples: ClassVar[tuple[Any, ...]] = (0, -1)

    value: Annotated[
        int | float,
        PlainValidator(number, json_schema_input_type=int | float),
        Field(description="What stands in place of NaN."),
    ]

    def check(self, array: ArraySpec) -> ArraySpec:
        if array.dtype.kind != "f":
            raise StepError(f"fill_nan: {array.dtype} values are never NaN", "leave it out, or put a cast step before it")
        with quiet():
            if not np.isfinite(array.dtype.type(self.value)):
                raise StepError(f"fill_nan: {self.value} does not fit {array.dtype}", "give a smaller number")
        return array

    def apply(self, xp: Namespace, block: Array, region: Region) -> Array:
        return xp.asarray(xp.where(xp.isnan(block), float(self.value), block))

    def express(self, array: ArraySpec) -> Node:
        return Call("where", (Call("isnan", (Variable(),)), Constant(float(self.value)), Variable()))
