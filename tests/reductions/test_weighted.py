"""Weighted moments and histograms are NumPy's, whatever the chunks and the order in which they merge."""

from __future__ import annotations

import json
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuflow.grid import Grid
from gpuflow.reductions import weighted
from gpuflow.reductions.moments import Moments
from gpuflow.reductions.requests import HistogramRequest, MomentsRequest, Several, unweighted
from gpuflow.reductions.weighted import WeightedMoments, Weights

SHAPE = (5, 9, 7)


def field(dtype: str = "f8") -> Any:
    rng = np.random.default_rng(3)
    values = (rng.normal(280, 12, SHAPE) if dtype[0] == "f" else rng.integers(0, 2 if dtype == "?" else 200, SHAPE)).astype(dtype)
    if dtype[0] == "f":
        values[rng.random(SHAPE) < 0.2] = np.nan
    return values


def weights_along(axes: tuple[int, ...]) -> Weights:
    values = np.random.default_rng(4).random([SHAPE[axis] for axis in axes])
    values[values < 0.2] = 0
    return Weights.of("lat", axes, values)


def whole(request: Any, values: Any, chunks: tuple[int, ...]) -> Any:
    """Merged over ragged chunks."""
    grid, keep = Grid(SHAPE, chunks), request.keep
    kept = tuple(SHAPE[axis] for axis in keep)
    total = request.empty(kept)
    for chunk in range(grid.size):
        region = grid.region(chunk)
        part = request.of(values[region], region)
        total = total.merge(part.embed(kept, tuple(region[axis] for axis in keep)))
    return total


def expected(values: Any, keep: tuple[int, ...], weights: Weights) -> dict[str, Any]:
    """By np.average, index by index."""
    every = np.broadcast_to(weights.at((slice(None),) * 3), SHAPE)
    turned, theirs = np.moveaxis(values.astype("f8"), keep, range(len(keep))), np.moveaxis(every, keep, range(len(keep)))
    shape = turned.shape[: len(keep)]
    found = {name: np.full(shape, np.nan) for name in ("weight", "mean", "std", "minimum", "maximum")}
    for index in np.ndindex(shape):
        there = ~np.isnan(turned[index])
        x, w = turned[index][there], theirs[index][there]
        found["weight"][index], found["minimum"][index], found["maximum"][index] = w.sum(), x.min(), x.max()
        if w.sum():
            mean = np.average(x, weights=w)
            found["mean"][index], found["std"][index] = mean, np.sqrt(np.average((x - mean) ** 2, weights=w))
    return found


@pytest.mark.parametrize("dtype", ["f4", "f8", ">f4", "u1", "i8", "?"])
@pytest.mark.parametrize("axes", [(1,), (0, 1), (0, 1, 2)])
@pytest.mark.parametrize(("keep", "long"), [((), 1), ((), 10**6), ((0,), 7), ((0,), 10**6), ((0, 2), 10**6), ((1, 2), 10**6)])
def test_they_are_numpys(
    dtype: str, axes: tuple[int, ...], keep: tuple[int, ...], long: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """long: from where on the compiled moments are taken."""
    values, weights = field(dtype), weights_along(axes)
    monkeypatch.setattr(weighted, "_LONG", long)
    monkeypatch.setattr(weighted, "_MOST_VALUES", 50)
    for chunks in (SHAPE, (2, 4, 7), (5, 2, 3)):
        found, reference = whole(MomentsRequest(keep, weights), values, chunks), expected(values, keep, weights)
        some = found.weight > 0
        np.testing.assert_allclose(np.where(some, found.mean, np.nan), reference["mean"], rtol=1e-12)
        for name in ("weight", "std", "minimum", "maximum"):
            np.testing.assert_allclose(getattr(found, name), reference[name], rtol=1e-9, atol=1e-12)
        np.testing.assert_array_equal(found.count, Moments.of(values, keep).count)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.floats(-1e9, 1e9) | st.just(np.nan), st.floats(0, 1e6)), min_size=1, max_size=40), st.integers(1, 5))
def test_order_and_parts_change_rounding_only(pairs: list[tuple[float, float]], parts: int) -> None:
    x, w = (np.array(column) for column in zip(*pairs, strict=True))
    total = WeightedMoments.empty(())
    for some in np.array_split(np.arange(len(x)), parts):
        total = total.merge(WeightedMoments.of(x[some], (), w[some]))
    there = ~np.isnan(x)
    assert total.count == there.sum()
    assert total.weight == pytest.approx(w[there].sum())
    if w[there].sum() > 1e-300:
        mean = np.average(x[there], weights=w[there])
        scale = np.abs(x[there]).max() + 1e-300
        assert float(total.mean) == pytest.approx(mean, rel=1e-9, abs=1e-9 * scale)
        std = np.sqrt(np.average((x[there] - mean) ** 2, weights=w[there]))
        assert float(total.std) == pytest.approx(std, rel=1e-6, abs=1e-7 * scale)
    elif not w[there].any():
        assert np.isnan(total.std)
    assert WeightedMoments.from_dict(json.loads(json.dumps(total.to_dict()))) == total


def test_what_weighs_nothing_changes_nothing() -> None:
    values = np.array([[1.0, np.inf], [3.0, -np.inf]])
    found = WeightedMoments.of(values, (), np.array([[1.0, 0.0]]))
    assert (float(found.mean), float(found.std), int(found.count)) == (2.0, 1.0, 4)
    assert (float(found.minimum), float(found.maximum)) == (-np.inf, np.inf)
    same = WeightedMoments.of(np.full((3, 4), 0.1), (), np.array([[0.3], [0.1], [7.0]]))
    assert float(same.std) == 0
    assert WeightedMoments.of(np.zeros((0, 2)), (1,), np.zeros((0, 1))) == WeightedMoments.empty((2,))
    assert found.merge(WeightedMoments.empty(())) == WeightedMoments.empty(()).merge(found) == found


@pytest.mark.parametrize("dtype", ["f4", "u1", "?"])
@pytest.mark.parametrize("keep", [(), (1,), (0, 2)])
def test_weighted_histograms(dtype: str, keep: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    values, weights = field(dtype), weights_along((0, 1))
    monkeypatch.setattr("gpuflow.reductions.histogram.slab_shape", lambda shape: (1, 2, *shape[2:]))
    bounds = (0.0, 1.0) if dtype == "?" else (100.0, 290.0)
    request = HistogramRequest(keep, 6, bounds, weights)
    found = whole(request, values, (2, 4, 7))
    every = np.broadcast_to(weights.at((slice(None),) * 3), SHAPE)
    turned, theirs = np.moveaxis(values.astype("f8"), keep, range(len(keep))), np.moveaxis(every, keep, range(len(keep)))
    for index in np.ndindex(found.below.shape):
        x, w = turned[index].ravel(), theirs[index].ravel()
        np.testing.assert_allclose(found.counts[index], np.histogram(x, 6, bounds, weights=w)[0], atol=1e-12)
        assert found.below[index] == pytest.approx(w[x < bounds[0]].sum())
        assert found.above[index] == pytest.approx(w[x > bounds[1]].sum())
    assert request.read(json.loads(json.dumps(found.to_dict()))) == found


def test_two_weights_never_share_a_key() -> None:
    one, other = weights_along((1,)), Weights.of("lat", (1,), np.ones(9))
    keys = [MomentsRequest((0,), weights).key() for weights in (None, one, other, Weights.of("lat", (2,), np.ones(9)))]
    keys += [HistogramRequest((0,), 3, (0.0, 1.0), weights).key() for weights in (None, one, other)]
    assert len({json.dumps(key) for key in keys}) == 7
    request = Several((MomentsRequest((0,), one), HistogramRequest((0,), 3, (0.0, 1.0), one)))
    assert pickle.loads(pickle.dumps(request)) == request
    assert request.weights == one
    assert unweighted(request).key() == Several((MomentsRequest((0,)), HistogramRequest((0,), 3, (0.0, 1.0)))).key()
