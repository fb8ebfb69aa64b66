"""Clip: bounds that every dtype can hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from gpuflow.steps.base import ArraySpec, StepError
from gpuflow.steps.clip import Clip
from tests.backends.samples import whole

from .contract import StepContract


class TestContract(StepContract):
    steps = (
        Clip(min=-3, max=3),
        Clip(min=0),
        Clip(max=2.5),
        Clip(min=-1e300, max=1e300),
        Clip(min=2.0, max=2.0),
        Clip(max=2**64 - 1),
    )


@pytest.mark.parametrize(
    ("dtype", "low", "high", "values", "expected"),
    [
        ("u1", -5, 300, [0, 255], [0, 255]),
        ("u1", 300, None, [0, 255], [255, 255]),
        ("u1", None, -5, [0, 255], [0, 0]),
        ("i1", 2.0, None, [-128, 127], [2, 127]),
        ("u8", 2**63 + 1, None, [0, 2**64 - 1], [2**63 + 1, 2**64 - 1]),
        ("i8", -(2**53) - 1, None, [-(2**60)], [-(2**53) - 1]),
        ("f2", None, 1e6, [1.0, np.inf, np.nan], [1.0, 65504, np.nan]),
        ("f4", -1, 1, [-np.inf, 0.5, np.inf, np.nan], [-1, 0.5, 1, np.nan]),
    ],
)
def test_values(dtype: str, low: Any, high: Any, values: list[Any], expected: list[Any]) -> None:
    block = np.array(values, dtype)
    out = Clip(min=low, max=high).apply(np, block, whole(block))
    assert out.dtype == block.dtype
    np.testing.assert_array_equal(out, np.array(expected, dtype))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, "neither `min` nor `max`"),
        ({"min": 3, "max": 1}, "`min` 3 is greater than `max` 1; swap them"),
        ({"min": float("nan")}, "must be a finite number, not nan"),
        ({"max": float("inf")}, "must be a finite number, not inf"),
        ({"min": "1"}, "must be a number, not the text '1'"),
        ({"min": False}, "must be a number, not false"),
        ({"min": [1]}, "must be a number, not a list"),
        ({"min": 2**64}, "64-bit"),
    ],
)
def test_wrong_parameters(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Clip(**params)


@pytest.mark.parametrize("dtype", ["bool", "complex64"])
def test_dtypes_that_have_no_order_are_refused(dtype: str) -> None:
    with pytest.raises(StepError, match=f"does not work on {dtype}"):
        Clip(min=0).check(ArraySpec((1,), np.dtype(dtype), (None,)))


def test_integers_need_whole_bounds() -> None:
    with pytest.raises(StepError, match=r"`max` 3\.5 is not a whole number, but the array is int32"):
        Clip(min=0, max=3.5).check(ArraySpec((1,), np.dtype("i4"), (None,)))
    assert Clip(min=0, max=3.0).check(ArraySpec((1,), np.dtype("i4"), (None,))).dtype == np.int32


@settings(deadline=None)
@given(st.lists(st.floats(width=32), max_size=20), st.floats(-1e30, 1e30), st.floats(-1e30, 1e30))
def test_nothing_is_left_outside(values: list[float], one: float, other: float) -> None:
    low, high = sorted((one, other))
    block = np.array(values, "f4")
    out = Clip(min=low, max=high).apply(np, block, whole(block))
    kept = out[~np.isnan(out)]
    assert ((kept >= np.float32(low)) & (kept <= np.float32(high))).all()
    np.testing.assert_array_equal(np.isnan(out), np.isnan(block))
    np.testing.assert_array_equal(Clip(min=low, max=high).apply(np, out, whole(out)), out)
