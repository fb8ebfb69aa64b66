"""Convert to another dtype, as NumPy's `astype` does, without scaling; strictly, a value that does not fit is an error."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, PlainValidator

from gpuflow.backends import expression_tree as tree
from gpuflow.backends.program import bounds
from gpuflow.steps.base import Array, ArraySpec, Elementwise, Namespace, Region, StepError, quiet
from gpuflow.steps.parameters import describe, suggestion

DTYPES: tuple[str, ...] = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
DTYPES += ("float16", "float32", "float64", "complex64", "complex128")
"""dtypes that a dataset can store; the same list as `gpuflow.storage.metadata`, which lies above this room."""

_OTHER_NAMES = {"half": "float16", "single": "float32", "float": "float64", "double": "float64", "complex": "complex128"}
_OTHER_NAMES |= {"int": "int64", "uint": "uint64", "boolean": "bool", "byte": "uint8"}
_OTHER_NAMES |= {f"{np.dtype(name).kind}{np.dtype(name).itemsize}": name for name in DTYPES}

_BFLOAT16 = "store float16, or float32 and convert it when training: tensor.to(torch.bfloat16)"


def _dtype_name(value: Any) -> str:
    if isinstance(value, np.dtype) or (isinstance(value, type) and issubclass(value, np.generic | bool | int | float | complex)):
        value = np.dtype(value).name
    if not isinstance(value, str):
        raise ValueError(f"must be the name of a dtype such as float32, not {describe(value)}")
    if value == "bfloat16":
        # A registered extension of Zarr v3 that zarr-python 3.1 cannot open: the dataset would not be for everyone.
        raise StepError("bfloat16 cannot be stored: zarr does not open it", _BFLOAT16)
    if value not in DTYPES:
        other = _OTHER_NAMES.get(value.strip().lower().lstrip("<>=|"))
        raise StepError(f"unknown dtype `{value[:40]}`", f"did you mean `{other}`?" if other else suggestion(value, DTYPES))
    return value


DTypeName = Annotated[str, PlainValidator(_dtype_name, json_schema_input_type=Literal[DTYPES])]
"""The name of a dtype that a dataset can store."""


class Cast(Elementwise, frozen=True):
    """`dtype`: a NumPy dtype by name. NaN and values out of range become what the device makes of them in an integer.

    `strict`: they are a StepError then, as is a number that becomes infinite in a smaller float. Fractions are cut off as ever."""

    kind: ClassVar[str] = "cast"
    about: ClassVar[str] = "Convert to another dtype, without scaling."
    shorthand: ClassVar[tuple[str, ...]] = ("dtype",)
    examples: ClassVar[tuple[Any, ...]] = ("float16", {"dtype": "uint8", "strict": True})

    dtype: Annotated[DTypeName, Field(description="The dtype that comes out, by NumPy's name for it.")]
    strict: Annotated[bool, Field(description="Whether a value that does not fit is an error.")] = False

    def check(self, array: ArraySpec) -> ArraySpec:
        target = np.dtype(self.dtype)
        if array.dtype.kind == "c" and target.kind != "c":
            hint = "put a map step such as abs(x) before it"
            raise StepError(f"cast from {array.dtype} to {target} would drop the imaginary part", hint)
        return replace(array, dtype=target)

    def apply(self, xp: Namespace, block: Array, region: Region) -> Array:
        with quiet():
            out = block.astype(self.dtype)
            unfit = _unfit(xp, block, out) if self.strict else None
        if unfit is not None and unfit.any():
            index = tuple(int(axis[0]) for axis in xp.nonzero(xp.atleast_1d(unfit)))[: block.ndim]
            message = f"cast: {block[index].item()!r}, at {list(index)} of the chunk, does not fit {self.dtype}"
            raise StepError(message, "put a clip or a map step before it, or leave `strict` out")
        return out

    def express(self, array: ArraySpec) -> tree.Node:
        return tree.Cast(tree.Variable(), np.dtype(self.dtype), self.strict)


def _unfit(xp: Namespace, block: Array, out: Array) -> Array:
    """Where a value of `block` did not fit `out`, to which it was cast."""
    source, target = np.dtype(block.dtype), np.dtype(out.dtype)
    if target.kind in "fc":
        return xp.isinf(out) & ~xp.isinf(block)
    unfit = xp.zeros(block.shape, bool)
    for comparison, bound in bounds(source, target) if target.kind in "iu" else ():
        unfit |= ~getattr(xp, comparison)(block, bound)
    return unfit
