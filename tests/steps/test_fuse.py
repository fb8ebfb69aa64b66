"""Fused steps give the bits of the steps one after the other, whatever the dtype, the layout and the part."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpuflow.backends.cpu import TOLERANCE_ULP
from gpuflow.backends.expression_tree import FUNCTIONS, OPERATORS
from gpuflow.steps.base import ArraySpec, Step, StepError
from gpuflow.steps.cast import Cast
from gpuflow.steps.clip import Clip
from gpuflow.steps.fuse import compile_steps
from gpuflow.steps.map import Map
from gpuflow.steps.standardize import Standardize
from tests.backends.same import assert_same

from .contract import whole

EDGES = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.5,
    -2.5,
    3.0,
    127.0,
    128.0,
    -128.0,
    255.0,
    1e-8,
    -6e-8,
    65504.0,
    65520.0,
    7e4,
    2.0**31,
    -(2.0**63),
]
EDGES += [2.0**63, 3e9, 1e30, 1e300, np.inf, -np.inf, np.nan, np.pi]


def values(dtype: np.dtype[Any], size: int) -> np.ndarray[Any, Any]:
    """The extremes of the dtype, then random values, small and large."""
    random = np.random.default_rng(5)
    with np.errstate(all="ignore"):
        if dtype.kind == "f":
            some = np.concatenate([EDGES, random.normal(0, 10, size)])
            return some.astype(dtype)[:size]
        if dtype.kind == "b":
            return random.integers(0, 2, size).astype(bool)
        limits = np.iinfo(dtype)
        edges = np.array([limits.min, limits.max, limits.min + 1, 0, 1, 2, limits.max - 1], dtype)
        small, large = random.integers(0, 9, size).astype(dtype), random.integers(limits.min, limits.max, size, dtype)
        return np.concatenate([edges, np.where(random.random(size) < 0.5, small, large)])[:size]


def one_by_one(steps: tuple[Step, ...], block: np.ndarray[Any, Any], region: tuple[slice, ...]) -> np.ndarray[Any, Any]:
    for step in steps:
        block = step.apply(np, block, region)
    return block


def spec_of(block: np.ndarray[Any, Any]) -> ArraySpec:
    return ArraySpec(block.shape, block.dtype, (None,) * block.ndim)


def check(steps: tuple[Step, ...], block: np.ndarray[Any, Any], ulp: int = 0, fused: bool = True) -> None:
    kernel = compile_steps(steps, spec_of(block))
    assert kernel.fused is fused, kernel.describe()
    assert_same(kernel(block, whole(block)), one_by_one(steps, block, whole(block)), block.dtype, ulp)


@pytest.mark.parametrize("dtype", ["int64", "uint8", "float16", "float32"])
def test_every_operator_and_function(dtype: str) -> None:
    block = values(np.dtype(dtype), 300)
    texts = [f"{name[-1]}x" if name.startswith("unary") or name == "~" else f"x {name} (x - x // 3)" for name in OPERATORS]
    texts += [f"{name}({', '.join(['x', '3', 'x'][:arity])})" for name, arity in FUNCTIONS.items()]
    texts += [f"3 {name} x" for name in ("-", "//", "%", "<")]
    for text in texts:
        step = Map(expression=text)
        try:
            step.check(spec_of(block))
            expected = step.apply(np, block, whole(block))
        except (StepError, ValueError):
            continue
        kernel = compile_steps((step,), spec_of(block))
        assert kernel.fused, (text, kernel.describe())
        used = [TOLERANCE_ULP[name] for name in (*TOLERANCE_ULP, "**") if name in text and name in TOLERANCE_ULP]
        assert_same(kernel(block, whole(block)), expected, ulp=max(used, default=0))


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


@st.composite
def chains(draw: st.DrawFn) -> tuple[tuple[Step, ...], np.ndarray[Any, Any], tuple[slice, ...]]:
    shape = tuple(draw(st.lists(st.integers(1, 6), max_size=4))) + tuple(
        draw(st.sampled_from([(), (3,), (40,), (1100,), (40, 3)]))
    )
    dtype = np.dtype(
        draw(st.sampled_from(["bool", "int8", "uint8", "int16", "uint32", "int64", "float16", "float32", "float64"]))
    )
    texts = [
        "x * 2.5 + 1",
        "where(x > 1, x, -1)",
        "abs(x) // 3",
        "x % 7",
        "(x - 1) ** 2",
        "round(x / 3)",
        "x >= 2",
        "x & 3",
        "~x",
    ]
    steps: list[Step] = []
    spec = ArraySpec(shape, dtype, (None,) * len(shape))
    for _ in range(draw(st.integers(1, 4))):
        step: Step
        match draw(st.sampled_from(["standardize", "standardize", "clip", "cast", "map"])):
            case "standardize":
                axes = draw(st.sets(st.integers(0, len(shape) - 1), max_size=len(shape))) if shape else set()
                kept = tuple(shape[axis] for axis in sorted(axes))
                random = np.random.default_rng(draw(st.integers(0, 99)))
                step = Standardize(per=sorted(axes), mean=random.normal(0, 5, kept), std=random.random(kept) + 0.1)
            case "clip":
                step = Clip(min=draw(st.sampled_from([None, -3, 0])), max=draw(st.sampled_from([5, 100])))
            case "cast":
                step = Cast(dtype=draw(st.sampled_from(["float16", "float32", "float64", "uint8", "int16", "int64", "bool"])))
            case _:
                step = Map(expression=draw(st.sampled_from(texts)))
        try:
            spec = step.check(spec)
        except StepError:
            continue
        steps.append(step)
    block = values(dtype, int(np.prod(shape))) if shape else values(dtype, 5)[4]
    block = np.array(np.resize(block, shape), dtype, ndmin=len(shape))
    region = tuple(slice(a, draw(st.integers(a + 1, size))) for size in shape for a in [draw(st.integers(0, size - 1))])
    return tuple(steps) or (Cast(dtype="float32"),), block, region


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(chains(), st.booleans(), st.booleans())
def test_random_chains(case: tuple[Any, ...], transposed: bool, given_out: bool) -> None:
    steps, whole_block, region = case
    kernel = compile_steps(steps, spec_of(whole_block))
    assert kernel.fused, kernel.describe()
    assert steps[0].kind in kernel.describe()
    blocks = [(whole_block, whole(whole_block)), (whole_block[region], region)]
    if transposed and region:
        blocks += [(np.asfortranarray(block), part) for block, part in blocks]
    for block, part in ((np.asarray(block), part) for block, part in blocks):
        block.flags.writeable = False
        out = np.empty(block.shape, kernel.out_dtype) if given_out else None
        result = kernel(block, part, out)
        assert out is None or result is out
        assert_same(result, one_by_one(steps, block, part))


@pytest.mark.parametrize(
    "shape", [(5, 700, 3), (3, 70, 70), (2, 3, 1500), (70_000, 3), (4, 3, 5, 2), (3, 2, 5000), (1, 3, 1), (2, 90_000)]
)
@pytest.mark.parametrize("per", [(), (0,), (1,), (-1,), (0, 1), (0, -1)])
def test_channels_anywhere(shape: tuple[int, ...], per: tuple[int, ...]) -> None:
    axes = sorted({axis % len(shape) for axis in per})
    kept = tuple(shape[axis] for axis in axes)
    block = np.random.default_rng(1).integers(0, 255, shape).astype(np.uint8)
    mean = np.arange(np.prod(kept, dtype=int)).reshape(kept) * 0.1
    steps = (Standardize(per=axes, mean=mean, std=mean + 1), Standardize(per=0, mean=[1.0] * shape[0], std=[2.0] * shape[0]))
    check(steps, block)


def test_tiles_of_numpy_meet_seamlessly() -> None:
    block = np.random.default_rng(1).normal(0, 3, (100_003, 3)).astype(np.float32)
    steps = (Standardize(per=1, mean=[1, 2, 3], std=[4, 5, 6]), Map(expression="log1p(abs(x)) * sin(x)"), Cast(dtype="float16"))
    kernel = compile_steps(steps, spec_of(block))
    assert kernel.describe() == "standardize, map, cast: one pass, with log1p, sin by NumPy in tiles"
    assert_same(kernel(block, whole(block)), one_by_one(steps, block, whole(block)), ulp=1)
    assert_same(kernel(block[::2], whole(block[::2])), one_by_one(steps, block[::2], whole(block[::2])), ulp=1)


def test_in_place() -> None:
    block = np.random.default_rng(1).normal(0, 3, 100_000).astype(np.float32)
    steps = (Map(expression="exp(x) + x"), Clip(max=9))
    expected = one_by_one(steps, block, whole(block))
    assert compile_steps(steps, spec_of(block))(block, whole(block), block) is block
    assert_same(block, expected, ulp=4)


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


def test_wrong_blocks_are_refused() -> None:
    kernel = compile_steps((Clip(min=0),), ArraySpec((4, 4), np.dtype("f4"), (None, None)))
    region = (slice(0, 4), slice(0, 2))
    with pytest.raises(ValueError, match="the kernel is for float32"):
        kernel(np.zeros((4, 2)), region)
    with pytest.raises(ValueError, match="the kernel is for float32"):
        kernel(np.zeros((2, 4), "f4"), region)
    with pytest.raises(ValueError, match="out has to be"):
        kernel(np.zeros((4, 2), "f4"), region, np.zeros((2, 4), "f4").T)
    with pytest.raises(StepError, match="resolve"):
        compile_steps((Standardize(),), ArraySpec((4,), np.dtype("f4"), (None,)))


def test_kernels_are_kept() -> None:
    spec = ArraySpec((4, 4), np.dtype("f4"), (None, None))
    assert compile_steps((Clip(min=0),), spec) is compile_steps((Clip(min=0),), spec)


def test_the_steps_do_not_load_numba() -> None:
    code = "import sys, gpuflow.steps.registry, gpuflow.steps.fuse; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
