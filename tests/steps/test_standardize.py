"""Standardize: whole-array statistics, one per kept index, in a dtype that is announced."""

from __future__ import annotations

import json
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from gpuflow.errors import StatisticsError
from gpuflow.reductions.moments import Moments
from gpuflow.steps.base import ArraySpec, MomentsRequest, StepError
from gpuflow.steps.standardize import Standardize
from tests.backends.samples import whole

from .contract import StepContract


def spec_of(array: np.ndarray, dims: tuple[str | None, ...] | None = None) -> ArraySpec:
    return ArraySpec(array.shape, array.dtype, dims or (None,) * array.ndim)


def resolved(array: np.ndarray, dims: tuple[str | None, ...] | None = None, **params: Any) -> Standardize:
    step, spec = Standardize(**params), spec_of(array, dims)
    request = step.needs(spec)
    assert request is not None
    return step.resolve(spec, Moments.of(array, request.keep), "photos/image")


class TestContract(StepContract):
    steps = (
        Standardize(mean=2, std=0.5),
        Standardize(per=0, mean=[1.0, 2.0, 3.0, 4.0], std=[1, 2, 4, 0.1]),
        Standardize(per="d1", mean=[1, 2, 3], std=[0.3, 2, 4]),
        Standardize(per=["d2", 0], mean=[[1, 2, 3, 4], [5, 6, 7, 8]], std=[[1, 1, 1, 1], [2, 2, 2, 2]]),
        Standardize(per=-1, mean=0, std=3),
    )


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("bool", "f4"), ("u1", "f4"), ("i2", "f4"), ("f2", "f4"), ("f4", "f4"), ("i4", "f8"), ("u8", "f8"), ("f8", "f8")],
)
def test_the_result_has_mean_0_and_std_1_per_channel(dtype: str, expected: str) -> None:
    array = np.random.default_rng(3).integers(0, 2 if dtype == "bool" else 100, (3, 40, 5)).astype(dtype)
    step = resolved(array, ("channel", "y", "x"), per="channel")
    out = step.apply(np, array, whole(array))
    assert out.dtype == expected
    np.testing.assert_allclose(out.mean(axis=(1, 2), dtype="f8"), 0, atol=1e-6)
    np.testing.assert_allclose(out.std(axis=(1, 2), dtype="f8"), 1, atol=1e-6)


def test_nan_is_skipped_and_stays() -> None:
    array = np.array([1.0, np.nan, 3.0])
    out = resolved(array).apply(np, array, whole(array))
    np.testing.assert_array_equal(out, [-1, np.nan, 1])


def test_what_it_needs() -> None:
    array = ArraySpec((4, 3, 8), np.dtype("f4"), ("time", "channel", None))
    assert Standardize().needs(array) == MomentsRequest(())
    assert Standardize(per="channel").needs(array) == MomentsRequest((1,))
    assert Standardize(per=["channel", "time"]).needs(array) == MomentsRequest((0, 1))
    assert Standardize(per=[-1]).needs(array) == MomentsRequest((2,))
    assert Standardize(mean=0, std=1).needs(array) is None


def test_resolved_parameters_are_plain_and_exact() -> None:
    array = np.random.default_rng(4).normal(size=(2, 50, 3)).astype("f4")
    step = resolved(array, ("time", None, "channel"), per=["channel", "time"])
    moments = Moments.of(array, (0, 2))
    assert step.per == (0, 2)
    assert step.to_yaml_value() == {"per": [0, 2], "mean": moments.mean.tolist(), "std": moments.std.tolist()}
    assert Standardize(**json.loads(json.dumps(step.to_yaml_value()))) == step
    assert step.needs(spec_of(array)) is None
    assert step.check(spec_of(array)).dtype == np.float32


def test_binding_turns_names_into_axes() -> None:
    array = ArraySpec((4, 3), np.dtype("f4"), ("time", "channel"))
    step = Standardize(per="channel", mean=[1, 2, 3], std=[1, 1, 1]).bind(array)
    assert step.per == 1
    assert step == Standardize(per=-1, mean=[1, 2, 3], std=[1, 1, 1]).bind(array)
    assert Standardize().bind(array) == Standardize()


def test_an_unresolved_step_cannot_run() -> None:
    with pytest.raises(StepError, match="resolve"):
        Standardize().apply(np, np.zeros(3), (slice(0, 3),))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([[1, 2], [5, 5]], "channel 1: every value is 5.0, so its standard deviation is 0"),
        ([[1, 2], [np.nan, np.nan]], "channel 1: it has no values"),
        ([[1, 2], [1, np.inf]], "channel 1: it holds infinite values"),
        ([[3, 3], [5, 5]], "channel 0: every value is 3.0, so its standard deviation is 0 (1 more like it)"),
        ([[1, 2], [0, 1e-60]], "channel 1: its mean 5e-61 or standard deviation 5e-61 is out of range"),
    ],
)
def test_unusable_statistics_name_the_array_and_the_channel(values: list[list[float]], reason: str) -> None:
    array = np.array(values, "f8")
    request = MomentsRequest((0,))
    spec = ArraySpec(array.shape, np.dtype("f4"), ("channel", "x"))
    with pytest.raises(StatisticsError) as caught:
        Standardize(per="channel").resolve(spec, Moments.of(array, request.keep), "photos/image")
    assert str(caught.value).startswith("photos/image: cannot standardize ")
    assert reason in str(caught.value)
    assert "give mean and std" in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_an_unnamed_axis_and_a_whole_array_are_named_too() -> None:
    constant = np.ones((2, 3), "f4")
    with pytest.raises(StatisticsError, match="cannot standardize axis 1 0: every value"):
        resolved(constant, per=1)
    with pytest.raises(StatisticsError, match=r"cannot standardize the array: every value is 1\.0"):
        resolved(constant)
    with pytest.raises(StatisticsError, match="it has no values"):
        resolved(np.empty((0, 3)))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"per": "chanel"}, "there is no dimension `chanel`; its dimensions are `y`, `channel`; an axis number from 0 to 2"),
        ({"per": 3}, "there is no axis 3; the array has 3 axes"),
        ({"per": -4}, "there is no axis -4"),
        ({"per": ["channel", 1]}, "axis 1 twice"),
        ({"mean": [1, 2], "std": [1, 2]}, "`mean` has shape (2,); give a single number, or name the dimension"),
        ({"per": "channel", "mean": [1, 2], "std": [1, 2]}, "`mean` has shape (2,); give one entry per index of per, shape (3,)"),
        ({"per": "channel", "mean": 1, "std": [1, 2]}, "`std` has shape (2,)"),
        ({"mean": 1e300, "std": 1}, "`mean` does not fit float32"),
        ({"mean": 0, "std": 1e-60}, "`std` does not fit float32"),
    ],
)
def test_check_refuses(params: dict[str, Any], message: str) -> None:
    with pytest.raises(StepError) as caught:
        Standardize(**params).check(ArraySpec((4, 3, 8), np.dtype("f4"), ("y", "channel", None)))
    assert message in str(caught.value)


def test_check_refuses_complex_and_ambiguous_names() -> None:
    with pytest.raises(StepError, match="complex64"):
        Standardize().check(ArraySpec((4,), np.dtype("c8"), ("x",)))
    with pytest.raises(StepError, match="two dimensions are called `x`"):
        Standardize(per="x").check(ArraySpec((4, 4), np.dtype("f4"), ("x", "x")))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"mean": 1}, "`mean` is given without `std`"),
        ({"std": 1}, "`std` is given without `mean`"),
        ({"mean": 1, "std": 0}, "greater than 0"),
        ({"mean": 1, "std": [1, -1]}, "greater than 0"),
        ({"mean": float("nan"), "std": 1}, "finite"),
        ({"mean": [[1, 2], [3]], "std": 1}, "same length"),
        ({"mean": True, "std": 1}, "must be a number, not true"),
        ({"mean": "0", "std": 1}, "must be a number, not the text '0'"),
        ({"mean": 10**30, "std": 1}, "64-bit"),
        ({"per": 1.5}, "must be a dimension name"),
        ({"per": True}, "must be a dimension name"),
        ({"per": ""}, "must be a dimension name"),
        ({"per": [["a"]]}, "it holds a list"),
        ({"per": ["a", "a"]}, "twice"),
    ],
)
def test_wrong_parameters(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Standardize(**params)


def test_steps_that_have_run_compare() -> None:
    block = np.ones((2, 3), "f4")
    one, other = (Standardize(per=1, mean=[1, 2, 3], std=[1, 1, 1]) for _ in range(2))
    for step in (one, other):
        step.apply(np, block, whole(block))
    assert one == other
    assert one != Standardize(per=1, mean=[1, 2, 4], std=[1, 1, 1])


def test_one_way_to_write_a_thing() -> None:
    assert Standardize(per=["channel"]) == Standardize(per="channel")
    assert Standardize(per=[]) == Standardize()
    assert Standardize().to_yaml_value() == {}
    assert Standardize(per=np.int64(1), mean=np.array([1, 2]), std=np.float32(1)) == Standardize(per=1, mean=[1, 2], std=1)


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 3), st.data())
def test_a_part_is_what_the_whole_is_there(height: int, width: int, seed: int, data: st.DataObject) -> None:
    array = np.random.default_rng(seed).normal(3, 2, (height, width, 6)).astype("f4")
    step = resolved(array, per=data.draw(st.sampled_from([None, 0, 1, [0, 1], [-2]])))
    at_once = step.apply(np, array, whole(array))
    region = tuple(slice(a, data.draw(st.integers(a, size))) for size in array.shape for a in [data.draw(st.integers(0, size))])
    np.testing.assert_array_equal(step.apply(np, array[region], region), at_once[region])
