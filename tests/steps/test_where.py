"""Where and mask: what goes is replaced, by a number or NaN, and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuflow.steps.base import ArraySpec, StepError
from gpuflow.steps.where import Mask, Where
from tests.backends.samples import whole

from .contract import StepContract


class TestContract(StepContract):
    steps = (
        Where(condition="x > 0"),
        Where(condition="(x > 1) & (x < 4)", other=0),
        Mask(condition="x == 3", other=7),
        Mask(condition="isnan(x)", other=-2.5),
    )


@pytest.mark.parametrize(
    ("step", "dtype", "values", "expected"),
    [
        (Where(condition="x > 1"), "f2", [0, 1, 2, np.nan], [np.nan, np.nan, 2, np.nan]),
        (Where(condition="x > 1", other=9), "u1", [0, 1, 2], [9, 9, 2]),
        (Mask(condition="x > 1"), "f4", [0, 1, 2, np.nan], [0, 1, np.nan, np.nan]),
        (Mask(condition="x % 2 == 0", other=-1), "i8", [2**60, 3], [-1, 3]),
        (Mask(condition="x < -9000", other=1e300), "f8", [-9999, 1], [1e300, 1]),
    ],
)
def test_values(step: Any, dtype: str, values: list[Any], expected: list[Any]) -> None:
    block = np.array(values, dtype)
    out = step.apply(np, block, whole(block))
    assert out.dtype == block.dtype
    np.testing.assert_array_equal(out, np.array(expected, dtype))


@pytest.mark.parametrize(
    ("step", "dtype", "message"),
    [
        (Where(condition="x + 1"), "f4", "where: `x \\+ 1` gives float32 and not true or false; compare, as in x > 0"),
        (
            Where(condition="x > 0"),
            "i2",
            "where: an array of int16 cannot hold NaN; give a number that it holds as `other`, or put cast",
        ),
        (Mask(condition="x > 0", other=0.5), "u1", "mask: an array of uint8 cannot hold 0.5"),
        (Mask(condition="x > 0", other=256), "u1", "cannot hold 256"),
        (Mask(condition="x > 0", other=1e6), "f2", "an array of float16 cannot hold 1000000"),
        (Mask(condition="x == 0", other=1), "?", "an array of bool cannot hold 1"),
        (Where(condition="x & 1 == 1"), "f4", "does not work on float32"),
    ],
)
def test_what_does_not_fit_is_refused(step: Any, dtype: str, message: str) -> None:
    with pytest.raises(StepError, match=message):
        step.check(ArraySpec((1,), np.dtype(dtype), (None,)))


@settings(deadline=None)
@given(st.lists(st.floats(width=32), max_size=20), st.floats(-1e6, 1e6, width=32))
def test_each_is_the_others_opposite(values: list[float], other: float) -> None:
    block = np.array(values, "f4")
    kept = Where(condition="x > 0.5", other=other).apply(np, block, whole(block))
    masked = Mask(condition="~(x > 0.5)", other=other).apply(np, block, whole(block))
    np.testing.assert_array_equal(kept, masked)
    np.testing.assert_array_equal(kept, np.where(block > 0.5, block, np.float32(other)))
