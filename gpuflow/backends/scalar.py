"""One value at a time, as NumPy has it: the functions that generated kernels call. Numba inlines them; loops over them vectorize.

Half floats are held as float32 that half can represent, and rounded after each operation."""

# mypy: disable-error-code="untyped-decorator, no-any-return, return-value"

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import float32, float64, int32, int64, njit, uint16, uint64
from numba.extending import intrinsic

_MIN32, _MIN64, _TOP64 = np.int32(-(2**31)), np.int64(-(2**63)), np.uint64(2**63)


def _llvm(name: str) -> Any:
    """The LLVM intrinsic `name` of one float, in the float's own width."""

    @intrinsic
    def call(typing_context: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.call(builder.module.declare_intrinsic(name, [arguments[0].type]), arguments)

        return value(value), generate

    return call


sqrt, fabs, floor, ceil, trunc, rint = (_llvm(f"llvm.{name}") for name in ["sqrt", "fabs", "floor", "ceil", "trunc", "rint"])


@intrinsic
def load_half(typing_context: Any, bits: Any) -> Any:
    """float32 from the bits of a half float."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())

    return float32(uint16), generate


@intrinsic
def store_half(typing_context: Any, value: Any) -> Any:
    """The bits of the half float nearest to a float32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(builder.fptrunc(arguments[0], ir.HalfType()), ir.IntType(16))

    return uint16(float32), generate


@intrinsic
def round_half(typing_context: Any, value: Any) -> Any:
    """The half float nearest to a float32, as float32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fpext(builder.fptrunc(arguments[0], ir.HalfType()), ir.FloatType())

    return float32(float32), generate


@intrinsic
def _bits(typing_context: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return int32(float32), generate


@intrinsic
def _from_bits(typing_context: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return float32(int32), generate


@njit(error_model="numpy")
def round_half_double(value: float) -> float:
    """The half float nearest to a float64, rounded once: the float32 between is rounded to odd (Boldo and Melquiond, 2008)."""
    single = float32(value)
    bits = _bits(single)
    if float64(single) != value and (bits & 1) == 0:
        bits = int32(bits - 1) if fabs(float64(single)) > fabs(value) else int32(bits + 1)
    return round_half(_from_bits(bits) if value == value else single)


@njit(error_model="numpy")
def to_int32(value: float) -> int:
    """What x86 makes of a float in 32 bits: the least integer stands for all that does not fit."""
    return int32(value) if fabs(value) < 2147483648.0 else _MIN32


@njit(error_model="numpy")
def to_int64(value: float) -> int:
    """The same in 64 bits."""
    return int64(value) if fabs(value) < 9223372036854775808.0 else _MIN64


@njit(error_model="numpy")
def to_uint64(value: float) -> int:
    """What compilers for x86 make of an unsigned conversion: values from 2**63 on are shifted down first."""
    if value < 9223372036854775808.0 or value != value:
        return uint64(to_int64(value))
    return uint64(to_int64(value - 9223372036854775808.0)) ^ _TOP64


@njit(error_model="numpy")
def clip_high(value: Any, high: Any) -> Any:
    """The lesser one; the value if it is NaN or equal."""
    return value if value <= high or value != value else high


@njit(error_model="numpy")
def floor_divide_signed(left: int, right: int) -> int:
    """Rounded down; 0 when the divisor is; -1 negates, so that the least integer stays itself as in NumPy."""
    if right == 0:
        return int64(0)
    return int64(-left) if right == -1 else int64(left // right)


@njit(error_model="numpy")
def floor_divide_unsigned(left: int, right: int) -> int:
    """Rounded down; 0 when the divisor is."""
    return uint64(0) if right == 0 else uint64(left // right)


@njit(error_model="numpy")
def remainder_signed(left: int, right: int) -> int:
    """With the sign of the divisor; 0 when the divisor is 0 or -1."""
    return int64(0) if right == 0 or right == -1 else int64(left % right)


@njit(error_model="numpy")
def remainder_unsigned(left: int, right: int) -> int:
    """0 when the divisor is."""
    return uint64(0) if right == 0 else uint64(left % right)
