"""Sketches: ranks near those of NumPy, the same bits again, and any merge is of all values."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest

from gpuflow.reductions.quantiles import Quantiles

SHARES = (0.001, 0.01, 0.25, 0.5, 0.75, 0.99, 0.999)


def parts(values: np.ndarray, count: int, keep: tuple[int, ...] = ()) -> Quantiles:
    whole = Quantiles.empty(tuple(values.shape[axis] for axis in keep))
    for part in np.array_split(values, count):
        whole = whole.merge(Quantiles.of(part, keep))
    return whole


@pytest.mark.parametrize("count", [1, 7, 60])
@pytest.mark.parametrize("kind", ["normal", "lognormal", "few"])
def test_ranks_are_near(kind: str, count: int) -> None:
    random = np.random.default_rng(5)
    values = {
        "normal": random.normal(280, 12, 60_000),
        "lognormal": random.lognormal(0, 3, 60_000),
        "few": random.integers(0, 4, 60_000),
    }[kind]
    found = parts(values.astype("float32"), count)
    for share in SHARES:
        value = float(found.quantile(share))
        off = 0.0005 if share in (0.001, 0.01, 0.99, 0.999) else 0.004
        assert (values < value).mean() - off <= share <= (values <= value).mean() + off
    assert found.quantile(0) == values.astype("float32").min()
    assert found.quantile(1) == values.astype("float32").max()


def test_the_same_again_to_the_bit() -> None:
    values = np.random.default_rng(2).normal(size=30_000)
    assert parts(values, 9) == parts(values, 9)
    again = pickle.loads(pickle.dumps(parts(values, 9)))
    assert again == parts(values, 9)
    assert Quantiles.from_dict(json.loads(json.dumps(again.to_dict(), allow_nan=False))) == again


def test_each_index_of_the_kept_axes_on_its_own() -> None:
    values = np.random.default_rng(3).normal(size=(400, 3, 2)).astype("float32") * np.array([1, 10, 100])[:, None]
    found = Quantiles.of(values, (1, 2))
    assert (np.abs(found.quantile(0.5) - np.median(values, axis=0)) < [[0.1], [1], [10]]).all()
    assert found.count.tolist() == [[400, 400]] * 3
    placed = Quantiles.of(values[:, 1:], (1, 2)).embed((3, 2), (slice(1, 3), slice(0, 2)))
    assert Quantiles.of(values[:, :1], (1, 2)).embed((3, 2), (slice(0, 1), slice(0, 2))).merge(placed) == found


def test_of_a_whole_array_placed_in_it_and_merged() -> None:
    values = np.random.default_rng(3).normal(size=(6, 50)).astype("float32")
    found = Quantiles.empty(())
    for row in values:
        found = found.merge(pickle.loads(pickle.dumps(Quantiles.of(row, ()).embed((), ()))))
    assert float(found.quantile(0.5)) == pytest.approx(np.median(values), abs=0.05)


def test_nan_is_skipped_and_infinities_have_no_quantiles() -> None:
    values = np.array([[np.nan, 1, np.inf], [np.nan, 3, 0]])
    found = Quantiles.of(values, (1,))
    assert found.count.tolist() == [0, 2, 2]
    np.testing.assert_array_equal(found.quantile(1), [np.nan, 3, np.nan])
    assert found.merge(Quantiles.empty((3,))) == Quantiles.empty((3,)).merge(found) == found


@pytest.mark.parametrize("shape", [(), (0,), (0, 4), (3, 0)])
def test_scalars_and_nothing(shape: tuple[int, ...]) -> None:
    found = Quantiles.of(np.ones(shape), ())
    assert int(found.count) == int(np.prod(shape))
    assert np.isnan(found.quantile(0.5)) == (0 in shape)
