"""Any elementwise expression of the value, such as `log1p(x) / 2`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar

from pydantic import Field, PlainValidator

from gpuflow.backends.expression_tree import Node
from gpuflow.steps.base import Array, ArraySpec, Elementwise, Namespace, Operation, Region, StepError, quiet
from gpuflow.steps.cast import DTYPES
from gpuflow.steps.expression import parse
from gpuflow.steps.parameters import describe, nearest


def _canonical(value: Any) -> str:
    """The expression on one line; StepError when it is not one."""
    if not isinstance(value, str):
        raise ValueError(f"must be an expression of x such as x * 2, not {describe(value)}")
    parse(value)
    return " ".join(value.split())


ExpressionText = Annotated[str, PlainValidator(_canonical, json_schema_input_type=str)]
"""An expression, checked, on one line."""


class Map(Elementwise, frozen=True):
    """`expression`: of the variable `x`; see `gpuflow.steps.expression` for its language. dtypes as in NumPy 2."""

    kind: ClassVar[str] = "map"
    about: ClassVar[str] = "Compute an expression of each value x, such as log1p(x) / 2."
    shorthand: ClassVar[tuple[str, ...]] = ("expression",)
    examples: ClassVar[tuple[Any, ...]] = ("log1p(x) / 2", "where(x > 0, sqrt(x), 0)", {"wind": "sqrt(u10**2 + v10**2)"})
    further_forms: ClassVar[tuple[dict[str, Any], ...]] = (
        {
            "type": "object",
            "additionalProperties": {"type": "string", "description": "An expression of arrays, by their names."},
            "minProperties": 1,
            "description": "New arrays from several: their names, and expressions of arrays.",
        },
    )

    @classmethod
    def form_of(cls, value: Any) -> type[Operation]:
        """`{wind: "sqrt(u10**2 + v10**2)"}` makes new arrays of several."""
        from gpuflow.steps.derive import Derive  # which is built on this one's language

        named = isinstance(value, Mapping) and value and not nearest("expression", map(str, value))
        return Derive if named else cls

    expression: Annotated[ExpressionText, Field(description="Elementwise NumPy functions and operators of the value x.")]

    def check(self, array: ArraySpec) -> ArraySpec:
        dtype = parse(self.expression).dtype_of(array.dtype)
        if dtype.name not in DTYPES:
            raise StepError(f"`{self.expression}` gives {dtype}, which cannot be stored")
        return replace(array, dtype=dtype)

    def apply(self, xp: Namespace, block: Array, region: Region) -> Array:
        with quiet():
            out = xp.asarray(parse(self.expression).evaluate(xp, block))
            return out.copy() if out is block else out

    def express(self, array: ArraySpec) -> Node:
        return parse(self.expression).root
