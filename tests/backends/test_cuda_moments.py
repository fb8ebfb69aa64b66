"""Moments as CUDA kernels, compiled for the CPU and compared with NumPy: there need not be a device."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpuflow.backends.cuda_moments import PART, plan

from .host_cuda import COMPILER, build_moments
from .samples import values

pytestmark = pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler")

SHAPES = [(5, 700, 3), (3, 70, 71), (2, 3, 1500), (7000, 3), (4, 3, 5, 2), (1, 3, 1), (2, 29_000), (1,), (999,), (300, 200)]


def expected(block: np.ndarray[Any, Any], keep: tuple[int, ...]) -> np.ndarray[Any, Any]:
    axes = tuple(axis for axis in range(block.ndim) if axis not in keep)
    wide, whole = block.astype("f8"), np.zeros([block.shape[axis] for axis in keep], PART)
    valid = ~np.isnan(wide)
    whole["count"] = valid.sum(axes)
    mean = np.where(valid, wide, 0).sum(axes, keepdims=True) / np.maximum(valid.sum(axes, keepdims=True), 1)
    whole["mean"], whole["m2"] = mean.squeeze(axes), np.where(valid, (wide - mean) ** 2, 0).sum(axes)
    whole["minimum"], whole["maximum"] = np.where(valid, wide, np.inf).min(axes), np.where(valid, wide, -np.inf).max(axes)
    return whole


def assert_close(actual: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any]) -> None:
    actual = actual.reshape(wanted.shape)
    for name in ("count", "minimum", "maximum"):
        np.testing.assert_array_equal(actual[name], wanted[name])
    for name in ("mean", "m2"):
        np.testing.assert_allclose(actual[name], wanted[name], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64", "float16", "float32", "float64"])
def test_any_shape_and_any_kept_axes(dtype: str, tmp_path: Path) -> None:
    run, done = build_moments(np.dtype(dtype), tmp_path), 0
    for shape in SHAPES:
        block = (np.random.default_rng(1).normal(100, 30, shape)).astype(dtype)
        if block.dtype.kind == "f":
            block.reshape(-1)[::7] = np.nan
        for keep in [(), (0,), (1,), (len(shape) - 1,), (0, 1), tuple(range(len(shape)))]:
            for processors in (1, 132):  # few threads: not flat, and merged in several steps
                passes = (
                    plan(shape, keep, processors) if len(keep) <= len(shape) and all(axis < len(shape) for axis in keep) else None
                )
                if passes is None:
                    continue
                done += 1
                assert passes.outer * passes.kept * passes.inner == block.size
                assert_close(run(block, passes), expected(block, keep))
                assert run(block, passes).tobytes() == run(block, passes).tobytes()
    assert done > 60


def test_kept_axes_that_are_apart_have_to_be_brought_together() -> None:
    assert plan((4, 3, 5), (0, 2), 10) is None
    assert plan((4, 1, 5), (0, 2), 10) is not None


def test_every_plan_covers_the_block_with_few_threads() -> None:
    for shape, keep in [
        ((2**20, 3), (1,)),
        ((3, 2**20), (0,)),
        ((10, 70_000, 2), (1,)),
        ((2**30,), ()),
        ((64, 256, 1024), (0, 1)),
    ]:
        passes = plan(shape, keep, 132)
        assert passes is not None
        assert passes.outer * passes.kept * passes.inner == prod(shape)
        assert passes.parts <= max(132 * 512, passes.kept * passes.inner)
        merges = list(passes.merges())
        assert len(merges) <= 3
        assert not merges or merges[-1][2] == 1


def test_far_from_zero_nothing_is_lost(tmp_path: Path) -> None:
    block = 1e9 + np.random.default_rng(1).normal(0, 1, (100, 1000))
    block[0, 0] = -1e9
    passes = plan(block.shape, (), 4)
    assert passes is not None
    assert_close(build_moments(block.dtype, tmp_path)(block, passes), expected(block, ()))


def test_extremes_and_infinities(tmp_path: Path) -> None:
    block = values(np.dtype("f4"), 3000)
    passes = plan(block.shape, (), 1)
    assert passes is not None
    with np.errstate(all="ignore"):
        (found,) = build_moments(block.dtype, tmp_path)(block, passes)
    assert found["count"] == np.count_nonzero(~np.isnan(block))
    assert (found["minimum"], found["maximum"]) == (-np.inf, np.inf)
