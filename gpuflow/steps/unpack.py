"""Packed values to what they stand for: the `scale_factor`, `add_offset` and `_FillValue` of the CF conventions.

Source: CF Conventions 1.11, sections 2.5.1 and 8.1."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field, PlainValidator, model_validator

from gpuflow.backends import expression_tree as tree
from gpuflow.steps.base import Array, ArraySpec, Elementwise, Namespace, Region, StepError, quiet
from gpuflow.steps.channels import float_dtype
from gpuflow.steps.parameters import number


def _factor(value: Any) -> int | float:
    if (factor := number(value)) == 0:
        raise ValueError("must not be 0")
    return factor


class Unpack(Elementwise, frozen=True):
    """`x * scale_factor + add_offset`; where x is `missing`, the packed value for "nothing here", NaN.

    Out: float32 for dtypes of up to 16 bits and for float32, else float64."""

    kind: ClassVar[str] = "unpack"
    about: ClassVar[str] = (
        "Packed values to what they stand for: x * scale_factor + add_offset, NaN where x is missing (CF conventions)."
    )
    shorthand: ClassVar[tuple[str, ...]] = ("scale_factor", "add_offset")
    examples: ClassVar[tuple[Any, ...]] = ([0.01, 273.15], {"scale_factor": 0.0001, "add_offset": -0.1, "missing": 0})

    scale_factor: Annotated[
        int | float,
        PlainValidator(_factor, json_schema_input_type=int | float),
        Field(description="The packed value is multiplied by it."),
    ] = 1
    add_offset: Annotated[
        int | float,
        PlainValidator(number, json_schema_input_type=int | float),
        Field(description="It is added then."),
    ] = 0
    missing: Annotated[
        int | float | None,
        PlainValidator(lambda value: None if value is None else number(value), json_schema_input_type=int | float | None),
        Field(description="The packed value that stands for nothing here; it becomes NaN."),
    ] = None

    @model_validator(mode="after")
    def _does_something(self) -> Unpack:
        if self.scale_factor == 1 and self.add_offset == 0 and self.missing is None:
            raise StepError("has neither `scale_factor` nor `add_offset` nor `missing`", "give at least one of them")
        return self

    def check(self, array: ArraySpec) -> ArraySpec:
        if array.dtype.kind not in "iuf":
            raise StepError(f"unpack does not work on {array.dtype} values", "put a cast step before it")
        dtype = float_dtype(array.dtype)
        for name in ("scale_factor", "add_offset"):
            with quiet():
                narrow = dtype.type(getattr(self, name))
            if not np.isfinite(narrow) or (name == "scale_factor" and narrow == 0):
                raise StepError(f"unpack: `{name}` does not fit {dtype}", "put cast: float64 before it")
        if self.missing is not None and not _holds(array.dtype, self.missing):
            message = f"unpack: no {array.dtype} value is {self.missing}, which `missing` says"
            raise StepError(message, "give the packed value, as it is stored")
        return replace(array, dtype=dtype)

    def apply(self, xp: Namespace, block: Array, region: Region) -> Array:
        dtype = float_dtype(np.dtype(block.dtype))
        with quiet():
            out = block.astype(dtype) * float(self.scale_factor) + float(self.add_offset)
            return xp.asarray(
                out if self.missing is None else xp.where(block == self._packed(block.dtype), dtype.type(np.nan), out)
            )

    def express(self, array: ArraySpec) -> tree.Node:
        dtype, x = float_dtype(array.dtype), tree.Variable()
        scaled = tree.Call("*", (tree.Cast(x, dtype), tree.Constant(float(self.scale_factor))))
        out = tree.Call("+", (scaled, tree.Constant(float(self.add_offset))))
        if self.missing is None:
            return out
        packed = tree.Call("==", (x, tree.Parameter(np.asarray(self._packed(array.dtype)))))
        return tree.Call("where", (packed, tree.Parameter(np.asarray(np.nan, dtype)), out))

    def _packed(self, dtype: np.dtype[Any]) -> Any:
        return dtype.type(self.missing)


def _holds(dtype: np.dtype[Any], value: int | float) -> bool:
    """Whether an array of `dtype` can have `value`; for floats, nearly: 1e20 is stored rounded."""
    if dtype.kind == "f":
        with quiet():
            return bool(np.isfinite(dtype.type(value)))
    whole = np.iinfo(dtype)
    return float(value).is_integer() and whole.min <= int(value) <= whole.max
