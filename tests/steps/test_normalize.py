"""Normalize: extrema from the data or as given, over the whole array or each channel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from gpuflow.errors import StatisticsError
from gpuflow.reductions.moments import Moments
from gpuflow.reductions.quantiles import Quantiles
from gpuflow.reductions.requests import QuantilesRequest
from gpuflow.steps.base import ArraySpec, MomentsRequest, StepError
from gpuflow.steps.normalize import Normalize
from tests.backends.samples import whole

from .contract import StepContract


class TestContract(StepContract):
    steps = (
        Normalize(min=-2, max=7.5),
        Normalize(min=0, max=255, range=(-1, 1)),
        Normalize(per=0, min=[-1, -2, -3, -4], max=[1, 2, 3, 4], range=(0, 100)),
        Normalize(per="d1", min=[-1] * 6, max=[1, 2, 3, 4, 5, 6]),
    )


def spec_of(array: np.ndarray) -> ArraySpec:
    return ArraySpec(array.shape, array.dtype, ("y", "channel"))


def resolved(step: Normalize, array: np.ndarray) -> Normalize:
    request = step.needs(spec_of(array))
    assert request is not None
    return step.resolve(spec_of(array), Moments.of(array, request.keep), "a/b")


@pytest.mark.parametrize(("dtype", "out"), [("u1", "f4"), ("i2", "f4"), ("f2", "f4"), ("f4", "f4"), ("i4", "f8"), ("f8", "f8")])
def test_each_channel_fills_the_range(dtype: str, out: str) -> None:
    array = np.random.default_rng(3).integers(0, 100, (50, 3)).astype(dtype)
    step = resolved(Normalize(per="channel", range=(-1, 1)), array)
    assert step.needs(spec_of(array)) is None
    result = step.apply(np, array, whole(array))
    assert result.dtype == np.dtype(out)
    np.testing.assert_array_equal(result.min(axis=0), [-1, -1, -1])
    np.testing.assert_allclose(result.max(axis=0), [1, 1, 1], rtol=1e-6)
    low, high = array.min(axis=0).astype("f8"), array.max(axis=0).astype("f8")
    np.testing.assert_allclose(result, (array - low) / (high - low) * 2 - 1, atol=1e-6)


def test_nan_is_skipped_and_stays() -> None:
    array = np.array([[1, np.nan], [3, 5], [2, 9]], "f4")
    step = resolved(Normalize(), array)
    np.testing.assert_array_equal(step.apply(np, array, whole(array)), (array - 1) / 8)
    assert Normalize(per="channel").needs(spec_of(array)) == MomentsRequest((1,))


@pytest.mark.parametrize(
    ("column", "reason"),
    [
        ([4, 4], "cannot normalize channel 1: every value is 4.0, so there is nothing to stretch"),
        ([np.nan, np.nan], "channel 1: it has no values"),
        ([0, np.inf], "channel 1: it holds infinite values"),
        ([-3e38, 3e38], r"channel 1: its values from -3\S+ to 3\S+ are out of range"),
    ],
)
def test_channels_without_a_range(column: list[float], reason: str) -> None:
    array = np.stack([np.array([1, 2], "f4"), np.array(column, "f4")], axis=1)
    with pytest.raises(StatisticsError, match=reason) as caught:
        resolved(Normalize(per="channel"), array)
    assert "a/b" in str(caught.value)
    assert "give min and max in the step" in str(caught.value)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"min": 1}, "`min` is given without `max`"),
        ({"min": 2, "max": 2}, "`min` is not below `max` everywhere"),
        ({"per": 0, "min": [0, 5], "max": [1, 4]}, "`min` is not below `max` everywhere"),
        ({"range": [1, 1]}, r"must rise: 1\.0 is not below 1\.0"),
        ({"range": 1}, r"two numbers such as \[0, 1\], not the number 1"),
        ({"range": [0, 1, 2]}, "two numbers"),
        ({"range": [0, 1e39]}, "beyond what float32 holds"),
        ({"range": [0, float("nan")]}, "must be a finite number"),
    ],
)
def test_wrong_parameters(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Normalize(**params)


def test_a_span_that_the_dtype_does_not_hold_is_refused() -> None:
    with pytest.raises(StepError, match="normalize: `max` does not fit float32"):
        Normalize(min=0, max=1e-50).check(ArraySpec((2,), np.dtype("f4"), (None,)))


@settings(deadline=None)
@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=2, max_size=20, unique=True))
def test_the_order_stays_and_the_ends_are_met(values: list[int]) -> None:
    array = np.array(values, "i4").reshape(-1, 1)
    out = resolved(Normalize(), array).apply(np, array, whole(array))
    assert (out.min(), out.max()) == (0, 1)
    np.testing.assert_array_equal(np.argsort(out[:, 0]), np.argsort(array[:, 0]))


def test_quantiles_in_place_of_the_extrema() -> None:
    array = np.random.default_rng(4).normal(50, 5, (4000, 2)).astype("f4")
    array[0] = [1e6, -1e6]
    step = Normalize(per="channel", quantiles=(0.01, 0.99))
    request = step.needs(spec_of(array))
    assert request == QuantilesRequest((1,))
    found = step.resolve(spec_of(array), Quantiles.of(array, (1,)), "a/b")
    assert found.quantiles is None
    assert found.needs(spec_of(array)) is None
    low, high = np.quantile(array, [0.01, 0.99], axis=0)
    np.testing.assert_allclose(found.arrays["min"], low, rtol=2e-3)
    np.testing.assert_allclose(found.arrays["max"], high, rtol=2e-3)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([3, 3, 3, 3], "its quantiles \\[0.25, 0.75\\] are both 3.0"),
        ([np.nan] * 4, "it has no values"),
        ([1, 2, np.inf, 4], "it holds infinite values"),
    ],
)
def test_quantiles_that_cannot_be_used(values: list[float], reason: str) -> None:
    array = np.array([values, values], "f4").T
    step = Normalize(per="channel", quantiles=(0.25, 0.75))
    with pytest.raises(StatisticsError, match=reason):
        step.resolve(spec_of(array), Quantiles.of(array, (1,)), "a/b")


def test_too_many_sketches_are_refused() -> None:
    with pytest.raises(StepError, match="quantiles of 5000 indices of `per` are too many; at most 64"):
        Normalize(per=0, quantiles=(0.1, 0.9)).needs(ArraySpec((5000, 2), np.dtype("f4"), (None, None)))
