"""Fused steps give the bits of the steps one after the other, whatever the dtype, the layout and the part."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from gpuflow.steps.base import ArraySpec, Step, StepError
from gpuflow.steps.cast import Cast
from gpuflow.steps.clip import Clip
from gpuflow.steps.fuse import compile_steps
from gpuflow.steps.map import Map
from gpuflow.steps.standardize import Standardize
from tests.backends.same import assert_same
from tests.backends.samples import one_by_one, spec_of, values, whole


def check(steps: tuple[Step, ...], block: np.ndarray[Any, Any], ulp: int = 0, fused: bool = True) -> None:
    kernel = compile_steps(steps, spec_of(block))
    assert kernel.fused is fused, kernel.describe()
    assert_same(kernel(block, whole(block)), one_by_one(steps, block, whole(block)), block.dtype, ulp)


@pytest.mark.parametrize(
    ("text", "dtype"),
    [
        ("x > 300", "u1"), ("x < -1", "u1"), ("300 >= x", "u1"), ("x == 9223372036854775807", "i4"), ("x != -5", "u8"),
        ("(x > 0) & (x < 3) | ~(x == 1) ^ (x != 2)", "i2"), ("(x > 0) + (x < 3) * 2.5", "f4"), ("(x > 0) / 2", "f2"),
        ("x ** 2", "i1"), ("x ** 2", "f8"), ("x ** 0.5", "f4"), ("x ** -1.0", "f8"), ("x ** -1.0", "i4"), ("x ** 0.5", "i4"),
        ("x ** 3", "i8"), ("2 ** abs(x)", "u1"), ("x * 2.5 - 1", "f2"), ("exp(x / 100) * 2 + log1p(abs(x))", "f4"),
        ("where(x, x / 2, x)", "f4"), ("where(x > 1, 3, x)", "u1"),
        ("where(x > 1, x, -1)", "u1"), ("clip(x, -1, 300)", "u1"),
        ("where(isnan(x), 0, x)", "f2"), ("clip(x, nan, 3)", "f4"),
        ("clip(x, 0, x * 2)", "f4"), ("maximum(0, x)", "f4"), ("minimum(x, -x)", "f8"), ("round(x / 3) // 2", "i8"),
        ("deg2rad(rad2deg(x))", "f2"), ("sign(x) * floor(x)", "f8"), ("hypot(x, 3) % 2", "f4"),
        ("x * True", "u1"), ("x + 0.1", "?"), ("sqrt(x)", "i1"), ("exp(x)", "u1"), ("(x < 1) < (x > 0)", "i4"),
    ],
)  # fmt: skip
def test_expressions_with_a_twist(text: str, dtype: str) -> None:
    block = values(np.dtype(dtype), 400)
    check((Map(expression=text),), block, ulp=4 if any(name in text for name in ("exp", "log", "hypot", "**")) else 0)


def test_all_halves_go_in_and_come_out() -> None:
    block = np.arange(2**16, dtype=np.uint16).view(np.float16)
    for step in (
        Map(expression="-x"),
        Map(expression="x * 1.5"),
        Cast(dtype="float32"),
        Cast(dtype="float64"),
        Cast(dtype="int16"),
    ):
        check((step,), block)
    check((Standardize(mean=3, std=7), Cast(dtype="float16")), block)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_halves_are_rounded_as_numpy_rounds_them(dtype: str) -> None:
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    halves = np.sort(halves[np.isfinite(halves)]).astype(dtype)
    random = np.random.default_rng(3).integers(0, 2**32, 200_000, np.uint32).view(np.float32)
    middle = (halves[1:] + halves[:-1]) / 2
    block = np.concatenate([halves, middle, np.nextafter(middle, np.inf), np.nextafter(middle, -np.inf)])
    block = np.concatenate([block, np.array([65519.99, 65520, 65521, 1e10, -1e10, np.inf, -np.inf, np.nan, 2e-8, 1e-40], dtype)])
    # Bits all over the range; in float64 also values that float32 rounds to the middle of two halves.
    block = np.concatenate([block, random[~np.isnan(random)].astype(dtype)])
    block = np.concatenate(
        [block, (middle.astype(np.float64) * (1 + 1e-12)).astype(dtype), middle * np.asarray(1 - 1e-12, dtype)]
    )
    check((Cast(dtype="float16"),), block)


def test_tiles_of_numpy_meet_seamlessly() -> None:
    block = np.random.default_rng(1).normal(0, 3, (100_003, 3)).astype(np.float32)
    steps = (Standardize(per=1, mean=[1, 2, 3], std=[4, 5, 6]), Map(expression="log1p(abs(x)) * sin(x)"), Cast(dtype="float16"))
    kernel = compile_steps(steps, spec_of(block))
    assert kernel.describe() == "standardize, map, cast: one pass, with log1p, sin by NumPy in tiles"
    assert_same(kernel(block, whole(block)), one_by_one(steps, block, whole(block)), ulp=1)
    assert_same(kernel(block[::2], whole(block[::2])), one_by_one(steps, block[::2], whole(block[::2])), ulp=1)


class OnlyApply(Cast, frozen=True):
    def express(self, array: ArraySpec) -> None:
        return None


@pytest.mark.parametrize(
    ("steps", "dtype", "reason"),
    [
        ((Cast(dtype="complex64"), Map(expression="abs(x)")), "f4", "complex64 values are left to NumPy"),
        ((Map(expression="((x > 0) + 5) < x"),), "u8", "less of int64 and uint64 is left to NumPy"),
        ((OnlyApply(dtype="float16"),), "f4", "only cast itself knows what it computes"),
        ((Clip(min=0),), ">f4", ">f4 is not in this machine's byte order"),
        ((), "f4", "there are no steps"),
    ],
)
def test_what_is_not_fused_still_runs(steps: tuple[Step, ...], dtype: str, reason: str) -> None:
    block = np.arange(6).astype(dtype)
    kernel = compile_steps(steps, spec_of(block))
    assert not kernel.fused
    assert reason in kernel.describe()
    expected = one_by_one(steps, block, whole(block))
    result = kernel(block, whole(block))
    np.testing.assert_array_equal(result, expected)
    assert not np.shares_memory(result, block)
    out = np.empty(6, kernel.out_dtype)
    assert kernel(block, whole(block), out) is out
    np.testing.assert_array_equal(out, expected)


def test_steps_have_to_be_resolved() -> None:
    with pytest.raises(StepError, match="resolve"):
        compile_steps((Standardize(),), ArraySpec((4,), np.dtype("f4"), (None,)))


def test_kernels_are_kept() -> None:
    spec = ArraySpec((4, 4), np.dtype("f4"), (None, None))
    assert compile_steps((Clip(min=0),), spec) is compile_steps((Clip(min=0),), spec)


def test_the_steps_do_not_load_numba() -> None:
    code = "import sys, gpuflow.steps.registry, gpuflow.steps.fuse; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
