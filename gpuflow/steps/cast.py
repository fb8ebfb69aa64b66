"""Convert to another dtype, as NumPy's `astype` does: no scaling, no check of the range."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import PlainValidator

from gpuflow.backends import expression_tree as tree
from gpuflow.steps.base import Array, ArraySpec, Namespace, Region, Step, StepError, quiet
from gpuflow.steps.parameters import describe, suggestion

DTYPES: tuple[str, ...] = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
DTYPES += ("float16", "float32", "float64", "complex64", "complex128")
"""dtypes that a dataset can store; the same list as `gpuflow.storage.metadata`, which lies above this room."""

_OTHER_NAMES = {"half": "float16", "single": "float32", "float": "float64", "double": "float64", "complex": "complex128"}
_OTHER_NAMES |= {"int": "int64", "uint": "uint64", "boolean": "bool", "byte": "uint8"}
_OTHER_NAMES |= {f"{np.dtype(name).kind}{np.dtype(name).itemsize}": name for name in DTYPES}


def _dtype_name(value: Any) -> str:
    if isinstance(value, np.dtype) or (isinstance(value, type) and issubclass(value, np.generic | bool | int | float | complex)):
        value = np.dtype(value).name
    if not isinstance(value, str):
        raise ValueError(f"must be the name of a dtype such as float32, not {describe(value)}")
    if value not in DTYPES:
        other = _OTHER_NAMES.get(value.strip().lower().lstrip("<>=|"))
        raise StepError(f"unknown dtype `{value[:40]}`", f"did you mean `{other}`?" if other else suggestion(value, DTYPES))
    return value


class Cast(Step, frozen=True):
    """`dtype`: a NumPy dtype by name. NaN and values out of range become what the device makes of them in an integer."""

    kind: ClassVar[str] = "cast"
    shorthand: ClassVar[tuple[str, ...]] = ("dtype",)

    dtype: Annotated[str, PlainValidator(_dtype_name)]

    def check(self, array: ArraySpec) -> ArraySpec:
        target = np.dtype(self.dtype)
        if array.dtype.kind == "c" and target.kind != "c":
            hint = "put a map step such as abs(x) before it"
            raise StepError(f"cast from {array.dtype} to {target} would drop the imaginary part", hint)
        return replace(array, dtype=target)

    def apply(self, xp: Namespace, block: Array, region: Region) -> Array:
        with quiet():
            return block.astype(self.dtype)

    def express(self, array: ArraySpec) -> tree.Node:
        return tree.Cast(tree.Variable(), np.dtype(self.dtype))
