"""Histograms are NumPy's, whatever the chunks."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuflow.reductions.histogram import Histogram


@settings(deadline=None)
@given(
    st.lists(st.one_of(st.floats(-5, 5), st.sampled_from([np.nan, np.inf, -np.inf, 0.0, 3.0])), max_size=60),
    st.integers(1, 9),
    st.integers(1, 5),
)
def test_it_is_numpys(values: list[float], bins: int, count: int) -> None:
    array = np.array(values)
    whole = Histogram.empty((), bins, (-1.0, 3.0))
    for part in np.array_split(array, count):
        whole = whole.merge(Histogram.of(part, (), bins, (-1.0, 3.0)))
    finite = array[np.isfinite(array)]
    np.testing.assert_array_equal(whole.counts, np.histogram(finite, bins, (-1, 3))[0])
    np.testing.assert_array_equal(whole.edges, np.histogram(finite, bins, (-1, 3))[1])
    assert (int(whole.below), int(whole.above)) == (int((array < -1).sum()), int((array > 3).sum()))
    assert int(whole.counts.sum() + whole.below + whole.above) == int((~np.isnan(array)).sum())
    assert Histogram.from_dict(json.loads(json.dumps(whole.to_dict()))) == whole


@pytest.mark.parametrize("dtype", ["?", "u1", "i8", "f2", "f4"])
def test_each_channel_on_its_own(dtype: str) -> None:
    block = np.random.default_rng(1).integers(0, 9, (4, 3, 5)).astype(dtype)
    found = Histogram.of(block, (1,), 4, (1.0, 7.0))
    for channel in range(3):
        expected = np.histogram(block[:, channel].astype("f8"), 4, (1, 7))[0]
        np.testing.assert_array_equal(found.counts[channel], expected)
    placed = Histogram.of(block[:, 1:], (1,), 4, (1.0, 7.0)).embed((3,), (slice(1, 3),))
    assert placed.merge(Histogram.of(block[:, :1], (1,), 4, (1.0, 7.0)).embed((3,), (slice(0, 1),))) == found
