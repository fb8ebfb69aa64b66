"""Keep the values for which a condition holds, or replace those: pandas' `where` and `mask`, with their meaning.

The condition is an expression of the value, as in the map step. The dtype stays."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, PlainValidator

from gpuflow.backends.expression_tree import Call, Constant, Node, Variable
from gpuflow.steps.base import Array, ArraySpec, Elementwise, Namespace, Region, StepError, quiet
from gpuflow.steps.expression import parse
from gpuflow.steps.map import ExpressionText
from gpuflow.steps.parameters import describe, number


def _other(value: Any) -> int | float | None:
    """A finite number; None for NaN, which may also be the word."""
    if value is None or (isinstance(value, str) and value.lower() == "nan"):
        return None
    if isinstance(value, float | np.floating) and np.isnan(value):
        return None
    if isinstance(value, str):
        raise ValueError(f"must be a number or nan, not {describe(value)}")
    return number(value)


class _Select(Elementwise, frozen=True):
    """`condition`: an expression of `x` that is true or false, such as `x > 0`. `other`: what stands in place of the values that go; NaN
    when it is left out, which only floats can be."""

    shorthand: ClassVar[tuple[str, ...]] = ("condition",)

    condition: Annotated[ExpressionText, Field(description="An expression of x that is true or false, such as x > 0.")]
    other: Annotated[
        int | float | None,
        PlainValidator(_other, json_schema_input_type=int | float | Literal["nan"] | None),
        Field(description="A number, or nan: what stands in place of the values that go."),
    ] = None

    @abstractmethod
    def _choose(self, x: Any, other: Any) -> tuple[Any, Any]:
        """What stays where the condition holds, and where it does not."""

    def check(self, array: ArraySpec) -> ArraySpec:
        if (found := parse(self.condition).dtype_of(array.dtype)).kind != "b":
            hint = "compare, as in x > 0; join comparisons by & and |"
            raise StepError(f"{self.kind}: `{self.condition}` gives {found} and not true or false", hint)
        if array.dtype.kind == "b" or not _holds(array.dtype, self.other):
            shown = "NaN" if self.other is None else self.other
            hint = "give a number that it holds as `other`, or put cast: float32 before it"
            raise StepError(f"{self.kind}: an array of {array.dtype} cannot hold {shown}", hint)
        return array

    def apply(self, xp: Namespace, block: Array, region: Region) -> Array:
        with quiet():
            holds = parse(self.condition).evaluate(xp, block)
            return xp.asarray(xp.where(holds, *self._choose(block, self._value(np.dtype(block.dtype)))))

    def express(self, array: ArraySpec) -> Node:
        return Call("where", (parse(self.condition).root, *self._choose(Variable(), Constant(self._value(array.dtype)))))

    def _value(self, dtype: np.dtype[Any]) -> int | float:
        if self.other is None:
            return float("nan")
        return float(self.other) if dtype.kind in "fc" else int(self.other)


class Where(_Select, frozen=True):
    """Keep the values for which `condition` holds; put `other` (NaN) in place of all others."""

    kind: ClassVar[str] = "where"
    about: ClassVar[str] = "Keep the values for which a condition holds; put a number, or NaN, in place of all others."
    examples: ClassVar[tuple[Any, ...]] = ("x > 0", {"condition": "(x > -50) & (x < 60)", "other": 0})

    def _choose(self, x: Any, other: Any) -> tuple[Any, Any]:
        return x, other


class Mask(_Select, frozen=True):
    """Put `other` (NaN) in place of the values for which `condition` holds; keep all others."""

    kind: ClassVar[str] = "mask"
    about: ClassVar[str] = "Put a number, or NaN, in place of the values for which a condition holds; keep all others."
    examples: ClassVar[tuple[Any, ...]] = ("x < -9000", {"condition": "x == 255", "other": 0})

    def _choose(self, x: Any, other: Any) -> tuple[Any, Any]:
        return other, x


def _holds(dtype: np.dtype[Any], value: int | float | None) -> bool:
    """Whether an array of `dtype` can have `value`, rounded if it is one of floats."""
    if dtype.kind in "fc":
        with quiet():
            return value is None or bool(np.isfinite(dtype.type(value)))
    if value is None or not float(value).is_integer():
        return False
    whole = np.iinfo(dtype)
    return bool(whole.min <= int(value) <= whole.max)
