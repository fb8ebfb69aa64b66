"""How a kernel writes each operation, so that it gives NumPy's bits. Pure text: `{0}` stands for the first argument.

Half floats are float32 values here, rounded after each operation. Half the rules are about integers, zeros and NaN."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np

DType = np.dtype[Any]

UFUNCS = {"+": "add", "-": "subtract", "*": "multiply", "/": "true_divide", "//": "floor_divide", "%": "remainder", "**": "power"}
UFUNCS |= {"&": "bitwise_and", "|": "bitwise_or", "^": "bitwise_xor", "~": "invert", "unary +": "positive", "unary -": "negative"}
UFUNCS |= {"<": "less", "<=": "less_equal", ">": "greater", ">=": "greater_equal", "==": "equal", "!=": "not_equal"}
UFUNCS |= {"abs": "absolute", "mod": "remainder"}
"""NumPy's names of the operations; the other functions are called as in the language."""

COMPARISONS = ("less", "less_equal", "greater", "greater_equal", "equal", "not_equal")

_X86 = ("x86_64", "amd64", "i686")
SYMBOLS = {"less": "<", "less_equal": "<=", "greater": ">", "greater_equal": ">=", "equal": "==", "not_equal": "!="}
SYMBOLS |= {"add": "+", "subtract": "-", "multiply": "*", "true_divide": "/"}
SYMBOLS |= {"bitwise_and": "&", "bitwise_or": "|", "bitwise_xor": "^"}
_ON_BOOL = {"add": "|", "multiply": "&", "maximum": "|", "minimum": "&"}
_ROUNDING = {"floor": "floor", "ceil": "ceil", "trunc": "trunc", "rint": "rint"}


class NotExpressible(Exception):
    """A kernel would not give what NumPy gives: why."""


class Unfit(Exception):
    """A value did not pass a check of the program; what is in the output is not to be used."""


def type_name(dtype: DType) -> str:
    """The numba type that a value of `dtype` has in a kernel."""
    return {"float16": "float32", "bool": "bool"}.get(dtype.name, dtype.name)


def spell(name: str, arguments: list[DType], out: DType) -> str | None:
    """The text of a call; None when it is better left to NumPy."""
    if name == "cast":
        return cast(arguments[0], out)
    if name == "where":
        return "({1} if {0} else {2})"
    return clip() if name == "clip" else operation(name, arguments[0])


def operation(ufunc: str, dtype: DType) -> str | None:
    """The text of `ufunc` on arguments of `dtype`; None when it is better left to NumPy."""
    if dtype.kind == "b":
        return _on_bool(ufunc)
    if ufunc in SYMBOLS:
        return f"{{0}} {SYMBOLS[ufunc]} {{1}}"
    if ufunc in ("positive", "square"):
        return "{0}" if ufunc == "positive" else "{0} * {0}"
    if ufunc == "negative":
        return "-{0}"
    if ufunc in ("minimum", "maximum"):
        return _extremum(ufunc, dtype)
    return _on_float(ufunc, dtype) if dtype.kind == "f" else _on_integer(ufunc, dtype)


def clip() -> str:
    """NaN stays, whether it is the value or a bound; of two zeros the value's stays."""
    low = "({0} if {0} >= {1} or {0} != {0} else {1})"
    return f"clip_high({low}, {{2}})"


def cast(source: DType, target: DType) -> str:
    """`astype`. Floats that do not fit an integer become what they become in NumPy on x86, where C leaves it open."""
    name = type_name(target)
    if target.kind == "b":
        return "{0} != 0"
    if source.kind == "f" and target.kind in "iu":
        return _to_integer(target)
    if target == np.float16:
        return "round_half_double({0})" if source == np.float64 else "round_half(float32({0}))"
    return f"{name}({{0}})"


def _to_integer(target: DType) -> str:
    if platform.machine().lower() not in _X86:
        raise NotExpressible(f"casting floats to {target} is only known on x86")
    if target == np.uint64:
        return "to_uint64({0})"
    wide = target.itemsize == 8 or target == np.uint32
    return f"{target.name}({'to_int64' if wide else 'to_int32'}({{0}}))"


def _on_bool(ufunc: str) -> str | None:
    if ufunc in _ON_BOOL:
        return f"{{0}} {_ON_BOOL[ufunc]} {{1}}"
    if ufunc in COMPARISONS:
        return f"uint8({{0}}) {SYMBOLS[ufunc]} uint8({{1}})"
    if ufunc.startswith("bitwise_"):
        return f"{{0}} {SYMBOLS[ufunc]} {{1}}"
    constant = {"isnan": "{0} != {0}", "isinf": "{0} != {0}", "isfinite": "{0} == {0}", "invert": "not {0}"}
    return constant.get(ufunc) or ("{0}" if ufunc in ("absolute", *_ROUNDING) else None)


def _on_integer(ufunc: str, dtype: DType) -> str | None:
    unsigned = dtype.kind == "u"
    if ufunc in ("absolute", *_ROUNDING):
        return "(-{0} if {0} < 0 else {0})" if ufunc == "absolute" and not unsigned else "{0}"
    if ufunc == "sign":
        return "(1 if {0} != 0 else 0)" if unsigned else "(1 if {0} > 0 else (-1 if {0} < 0 else 0))"
    if ufunc in ("floor_divide", "remainder"):
        helper = "floor_divide" if ufunc == "floor_divide" else "remainder"
        return f"{helper}_{'unsigned' if unsigned else 'signed'}({{0}}, {{1}})"
    return {"invert": "~{0}", "isnan": "{0} != {0}", "isinf": "{0} != {0}", "isfinite": "{0} == {0}"}.get(ufunc)


def _on_float(ufunc: str, dtype: DType) -> str | None:
    name = type_name(dtype)
    if ufunc in ("sqrt", *_ROUNDING):
        return f"{ufunc}({{0}})"
    if ufunc in ("deg2rad", "rad2deg"):
        # NumPy's factors: divided in the width of the loop.
        wide = np.float64 if dtype == np.float64 else np.float32
        pi, half_turn = wide(np.pi), wide(180)
        factor = pi / half_turn if ufunc == "deg2rad" else half_turn / pi
        return f"{{0}} * {name}({float(factor)!r})"
    return {
        "absolute": "fabs({0})",
        "reciprocal": "1 / {0}",
        "sign": f"({{0}} if {{0}} != {{0}} else {name}(1 if {{0}} > 0 else (-1 if {{0}} < 0 else 0)))",
        "isnan": "{0} != {0}",
        "isinf": "fabs({0}) == inf",
        "isfinite": "fabs({0}) < inf",
    }.get(ufunc)


def _extremum(ufunc: str, dtype: DType) -> str:
    """The first NaN stays. Of equal values, which may be zeros of both signs, NumPy's loops take the second; of halves the first."""
    sign = ">" if ufunc == "maximum" else "<"
    if dtype.kind != "f":
        return f"({{0}} if {{0}} {sign} {{1}} else {{1}})"
    equal = "=" if dtype == np.float16 else ""
    return f"({{0}} if {{0}} {sign}{equal} {{1}} or {{0}} != {{0}} else {{1}})"
