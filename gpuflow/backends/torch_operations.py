"""NumPy's operations on Torch tensors: the same dtypes, the same wrap-around, the same NaN and zeros, on any of Torch's devices.

Torch computes no unsigned integers but uint8: uint16 is held in int32 and uint32 in int64, cut to their width after each operation;
uint64 is held in int64 as it lies in memory. This is the only module that imports torch."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from math import nan
from typing import Any

import numpy as np

from gpuflow.backends.operations import COMPARISONS, DType, NotExpressible

torch: Any = import_module("torch")
"""An optional library, unknown to the type checker; who imports this module knows that it is there."""

Tensor = Any

_HELD = {"uint16": "int32", "uint32": "int64", "uint64": "int64"}
_BITS = {"uint16": "int16", "uint32": "int32", "uint64": "int64"}
_MASK = {"uint16": 2**16 - 1, "uint32": 2**32 - 1}
_LEAST, _GREATEST = -(2**63), 2**63 - 1

_SAME_NAME = (
    "floor ceil trunc sqrt isnan isfinite isinf exp exp2 expm1 log log1p log2 log10 sin cos tan arcsin arccos arctan sinh cosh"
)
_SAME_NAME += " tanh arcsinh arccosh arctanh arctan2 hypot logaddexp"
_RENAMED = {"add": "add", "subtract": "sub", "multiply": "mul", "negative": "neg", "positive": "clone", "absolute": "abs"}
_RENAMED |= {"true_divide": "div", "rint": "round", "power": "pow", "reciprocal": "reciprocal"}
_RENAMED |= {"bitwise_and": "bitwise_and", "bitwise_or": "bitwise_or", "bitwise_xor": "bitwise_xor", "invert": "bitwise_not"}
_RENAMED |= {name: name for name in _SAME_NAME.split()}
_COMPARED = {"less": "lt", "less_equal": "le", "greater": "gt", "greater_equal": "ge", "equal": "eq", "not_equal": "ne"}


def held(dtype: DType) -> Any:
    """The Torch dtype in which values of `dtype` are computed."""
    return getattr(torch, _HELD.get(dtype.name, dtype.name))


def load(tensor: Tensor, dtype: DType) -> Tensor:
    """The values of a tensor of `dtype`, held."""
    if dtype.name not in _BITS:
        return tensor
    return _cut(tensor.view(getattr(torch, _BITS[dtype.name])).to(held(dtype)), dtype)


def store(value: Tensor, out: Tensor, dtype: DType) -> None:
    """Write held values into a tensor of `dtype`."""
    bits = out.view(getattr(torch, _BITS[dtype.name])) if dtype.name in _BITS else out
    bits.copy_(value)


def call(name: str, dtypes: list[DType], out: DType, values: list[Tensor]) -> Tensor:
    """What `name` gives for held values of `dtypes`, as a held value of `out`. NotExpressible for what is not known here."""
    dtype = dtypes[0]
    if name == "cast":
        return cast(values[0], dtype, out)
    if name == "where":
        return torch.where(*values)
    if name in COMPARISONS:
        return getattr(torch, _COMPARED[name])(*(_ordered(value, dtype) for value in values))
    if name in ("minimum", "maximum"):
        return _extremum(name, values, dtype)
    if name == "clip":
        return _extremum("minimum", [_extremum("maximum", values[:2], dtype), values[2]], dtype)
    if dtype.kind == "b":
        return _on_bool(name, values)
    if dtype.kind in "iu":
        return _on_integer(name, values, dtype, out)
    if dtype != np.float16:
        return _on_float(name, values, dtype)
    result = _on_float(name, [value.float() for value in values], dtype)
    return result.half() if out == np.float16 else result


def cast(value: Tensor, source: DType, target: DType) -> Tensor:
    """`astype`. Floats that do not fit an integer become what they become in NumPy on x86."""
    if target.kind == "b":
        return value != 0
    if source.kind == "f" and target.kind in "iu":
        return _float_to_integer(value.float() if source == np.float16 else value, target)
    if target == np.float16:
        single = cast(value, source, np.dtype(np.float32)) if source != np.float64 else _rounded_to_odd(value)
        return single.half()
    if source == np.uint64 and target.kind == "f":
        # Half of a large one, its last bit kept for the rounding.
        half = ((value >> 1) & _GREATEST) | (value & 1)
        return torch.where(value < 0, half.to(held(target)) * 2, value.to(held(target)))
    return _cut(value.to(held(target)), target)


def _cut(value: Tensor, dtype: DType) -> Tensor:
    return value & _MASK[dtype.name] if dtype.name in _MASK else value


def _ordered(value: Tensor, dtype: DType) -> Tensor:
    """Integers in whose signed order the values are; of those again, the values."""
    return value ^ _LEAST if dtype == np.uint64 else value


def _float_to_integer(value: Tensor, target: DType) -> Tensor:
    """Through 32 or 64 bits, in which the least integer stands for all that does not fit."""
    if target == np.uint64:
        large = value >= 2.0**63
        low = _within(torch.where(large, value - 2.0**63, value), torch.int64)
        return torch.where(large, low ^ _LEAST, low)
    wide = target.itemsize == 8 or target == np.uint32
    return _cut(_within(value, torch.int64 if wide else torch.int32).to(held(target)), target)


def _within(value: Tensor, integer: Any) -> Tensor:
    limit = 2.0**63 if integer == torch.int64 else 2.0**31
    return torch.where(value.abs() < limit, value, -limit).to(integer)


def _rounded_to_odd(value: Tensor) -> Tensor:
    """float32 from float64, so that rounding once more gives what rounding once would have (Boldo and Melquiond, 2008)."""
    single = value.float()
    bits = single.view(torch.int32)
    step = torch.where(single.double().abs() > value.abs(), -1, 1).to(torch.int32)
    inexact = (single.double() != value) & ((bits & 1) == 0) & ~value.isnan()
    return torch.where(inexact, bits + step, bits).view(torch.float32)


def _extremum(name: str, values: list[Tensor], dtype: DType) -> Tensor:
    """NaN stays, whichever value it is. Of two zeros either stays: NumPy's choice would cost five times as much."""
    one, other = (_ordered(value, dtype) for value in values)
    if dtype.kind == "b":
        return one | other if name == "maximum" else one & other
    return _ordered(torch.maximum(one, other) if name == "maximum" else torch.minimum(one, other), dtype)


def _on_bool(name: str, values: list[Tensor]) -> Tensor:
    if name in ("isnan", "isinf", "isfinite"):
        return torch.full_like(values[0], name == "isfinite")
    if name in ("absolute", "floor", "ceil", "trunc"):
        return values[0]
    return _torch({"add": "bitwise_or", "multiply": "bitwise_and"}.get(name, name))(*values)


def _on_integer(name: str, values: list[Tensor], dtype: DType, out: DType) -> Tensor:
    if name in ("isnan", "isinf", "isfinite"):
        return torch.full_like(values[0], name == "isfinite", dtype=torch.bool)
    if name in ("floor", "ceil", "trunc", "rint") or (name == "absolute" and dtype.kind == "u"):
        return values[0]
    if name == "sign":
        return torch.sign(values[0]) if dtype.kind == "i" else (values[0] != 0).to(held(dtype))
    if name == "square":
        return _cut(values[0] * values[0], out)
    if name == "power":
        return _cut(_integer_power(values[0], values[1], dtype).to(held(out)), out)
    if name in ("floor_divide", "remainder"):
        both = _divide_large(*values) if dtype == np.uint64 else _divide(values[0], values[1], signed=dtype.kind == "i")
        return both[name == "remainder"]
    return _cut(_torch(name)(*values), out)


def _divide(value: Tensor, divisor: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    """Quotient, rounded down, and remainder; 0 when the divisor is. By -1 the least integer stays itself."""
    zero = divisor == 0
    minus = divisor == -1 if signed else torch.zeros_like(zero)
    safe = torch.where(zero | minus, 1, divisor).to(divisor.dtype)
    quotient = torch.where(minus, -value, torch.div(value, safe, rounding_mode="floor"))
    remainder = torch.where(minus, 0, torch.remainder(value, safe))
    return torch.where(zero, 0, quotient).to(value.dtype), torch.where(zero, 0, remainder).to(value.dtype)


def _divide_large(value: Tensor, divisor: Tensor) -> tuple[Tensor, Tensor]:
    """The same for uint64: half of the value is divided first (Hacker's Delight, 9-3)."""
    zero, large = divisor == 0, divisor < 0
    safe = torch.where(zero | large, 1, divisor)
    quotient = torch.where(large, 0, torch.div((value >> 1) & _GREATEST, safe, rounding_mode="floor") << 1)
    remainder = value - quotient * divisor
    more = (remainder ^ _LEAST) >= (divisor ^ _LEAST)
    quotient, remainder = quotient + more.to(torch.int64), torch.where(more, remainder - divisor, remainder)
    return torch.where(zero, 0, quotient), torch.where(zero, 0, remainder)


def _integer_power(base: Tensor, exponent: Tensor, dtype: DType) -> Tensor:
    """By squaring, modulo 2**64. ValueError for a negative exponent, as in NumPy."""
    if dtype.kind == "i" and bool((exponent < 0).any()):
        raise ValueError("Integers to negative integer powers are not allowed.")
    base, exponent = torch.broadcast_tensors(base.to(torch.int64), exponent.to(torch.int64))
    result = torch.ones_like(base)
    while bool((exponent != 0).any()):
        result = torch.where((exponent & 1) == 1, result * base, result)
        base, exponent = base * base, (exponent >> 1) & _GREATEST
    return result


def _on_float(name: str, values: list[Tensor], dtype: DType) -> Tensor:
    """values: float32 for halves."""
    if name in ("deg2rad", "rad2deg"):
        # NumPy's factors: divided in the width of the loop.
        wide = np.float64 if dtype == np.float64 else np.float32
        pi, half_turn = wide(np.pi), wide(180)
        return values[0] * float(pi / half_turn if name == "deg2rad" else half_turn / pi)
    own: dict[str, Callable[..., Tensor]] = {"sign": _sign, "square": _square, "cbrt": _cbrt}
    own |= {"floor_divide": _floor_divide, "remainder": _remainder, "sinh": _sinh, "cosh": _cosh}
    return own[name](*values) if name in own else _torch(name)(*values)


def _torch(name: str) -> Callable[..., Tensor]:
    if name not in _RENAMED:
        raise NotExpressible(f"{name} is left to NumPy")
    return getattr(torch, _RENAMED[name])  # type: ignore[no-any-return]


def _sign(value: Tensor) -> Tensor:
    return torch.where(value.isnan(), value, (value > 0).to(value.dtype) - (value < 0).to(value.dtype))


def _square(value: Tensor) -> Tensor:
    return value * value


def _cbrt(value: Tensor) -> Tensor:
    """Torch has none: the power of a third in float64, and one step of Newton's."""
    wide = value.double()
    root = wide.abs().pow(1 / 3)
    better = root - (root - wide.abs() / (root * root)) / 3
    return torch.where(torch.isfinite(better), better, root).copysign(wide).to(value.dtype)


def _sinh(value: Tensor) -> Tensor:
    result = torch.sinh(value)
    return torch.where(result.isinf(), _half_exponential(value).copysign(value), result)


def _cosh(value: Tensor) -> Tensor:
    result = torch.cosh(value)
    return torch.where(result.isinf(), _half_exponential(value), result)


def _half_exponential(value: Tensor) -> Tensor:
    """exp(abs(value)) / 2 as long as that is finite: Torch's vectors overflow too early."""
    root = torch.exp(value.abs() / 2)
    return root / 2 * root


def _fmod(value: Tensor, divisor: Tensor) -> Tensor:
    """Exact. Torch's own is NaN where the divisor is subnormal: such a one is scaled, and the value first brought near it."""
    scale = torch.where(divisor.abs() < torch.finfo(divisor.dtype).tiny, 2.0**64, 1.0).to(divisor.dtype)
    scaled = divisor * scale
    return torch.fmod(torch.fmod(value, scaled) * scale, scaled) / scale


def _remainder(value: Tensor, divisor: Tensor) -> Tensor:
    """With the sign of the divisor, as in npy_divmod; exact."""
    rest = _fmod(value, divisor)
    moved = torch.where((divisor < 0) != (rest < 0), rest + divisor, rest)
    return torch.where(divisor == 0, nan, torch.where(rest == 0, torch.zeros_like(rest).copysign(divisor), moved))


def _floor_divide(value: Tensor, divisor: Tensor) -> Tensor:
    """npy_floor_divide."""
    rest = _fmod(value, divisor)
    quotient = (value - rest) / divisor
    quotient = torch.where((rest != 0) & ((divisor < 0) != (rest < 0)), quotient - 1, quotient)
    whole = torch.floor(quotient)
    whole = torch.where(quotient - whole > 0.5, whole + 1, whole)
    whole = torch.where(quotient == 0, torch.zeros_like(whole).copysign(value / divisor), whole)
    return torch.where(divisor == 0, value / divisor, whole)
