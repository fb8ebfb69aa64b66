"""Limit values to a range. The dtype stays; NaN stays NaN."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field, PlainValidator, model_validator

from gpuflow.backends.expression_tree import Call, Constant, Node, Variable
from gpuflow.steps.base import Array, ArraySpec, Elementwise, Namespace, Region, StepError, quiet
from gpuflow.steps.parameters import number

Bound = Annotated[
    int | float | None,
    PlainValidator(lambda value: None if value is None else number(value), json_schema_input_type=int | float | None),
]


class Clip(Elementwise, frozen=True):
    """`min`, `max`: finite numbers, at least one of them. On integer arrays they have to be whole.

    A bound beyond the range of the dtype is the end of that range."""

    kind: ClassVar[str] = "clip"
    about: ClassVar[str] = "Limit values to a range; NaN stays NaN."
    shorthand: ClassVar[tuple[str, ...]] = ("min", "max")
    examples: ClassVar[tuple[Any, ...]] = ([-3, 3], {"min": 0})

    min: Annotated[Bound, Field(description="Smaller values become this; no limit when left out.")] = None
    max: Annotated[Bound, Field(description="Greater values become this; no limit when left out.")] = None

    @model_validator(mode="after")
    def _is_a_range(self) -> Clip:
        if self.min is None and self.max is None:
            raise StepError("has neither `min` nor `max`", "give one of them, or both as [min, max]")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise StepError(f"`min` {self.min} is greater than `max` {self.max}", "swap them")
        return self

    def check(self, array: ArraySpec) -> ArraySpec:
        if array.dtype.kind not in "iuf":
            raise StepError(f"clip does not work on {array.dtype} values", "put a cast step before it")
        for name, bound in (("min", self.min), ("max", self.max)):
            if array.dtype.kind in "iu" and isinstance(bound, float) and not bound.is_integer():
                message = f"clip: `{name}` {bound} is not a whole number, but the array is {array.dtype}"
                raise StepError(message, "round it, or put a cast step before it")
        return array

    def apply(self, xp: Namespace, block: Array, region: Region) -> Array:
        dtype = np.dtype(block.dtype)
        with quiet():
            return xp.asarray(xp.clip(block, _fit(self.min, dtype), _fit(self.max, dtype)))

    def express(self, array: ArraySpec) -> Node:
        bounds = [None if bound is None else Constant(bound) for bound in (_fit(b, array.dtype) for b in (self.min, self.max))]
        match bounds:
            case [Constant() as low, None]:
                return Call("maximum", (Variable(), low))
            case [None, Constant() as high]:
                return Call("minimum", (Variable(), high))
            case [Constant() as low, Constant() as high]:
                return Call("clip", (Variable(), low, high))
        raise AssertionError("clip has a bound")


def _fit(bound: int | float | None, dtype: np.dtype[Any]) -> int | float | None:
    """The bound as a Python number that the dtype can hold: NumPy 2 raises on others."""
    if bound is None:
        return None
    if dtype.kind == "f":
        limits = np.finfo(dtype)
        return min(max(float(bound), float(limits.min)), float(limits.max))
    whole = np.iinfo(dtype)
    return min(max(int(bound), int(whole.min)), int(whole.max))
