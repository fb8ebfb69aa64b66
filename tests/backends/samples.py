"""Blocks and chains of steps that are hard on a backend."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from gpuflow.steps.base import ArraySpec, Step, StepError
from gpuflow.steps.cast import Cast
from gpuflow.steps.clip import Clip
from gpuflow.steps.map import Map
from gpuflow.steps.standardize import Standardize

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
EDGES += [2.0**63, 3e9, 1e30, 1e300, np.inf, -np.inf, np.nan, np.pi, 1e-39, 3e-310, 88.73, -710.0]


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


def whole(array: np.ndarray[Any, Any]) -> tuple[slice, ...]:
    return tuple(slice(0, size) for size in array.shape)


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
