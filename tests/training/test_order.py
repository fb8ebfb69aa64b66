"""Orders: permutations without tables, the same on any number of ranks, and how well they mix."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuflow.errors import ConfigError
from gpuflow.training.keyed import Permutation, key_of, mixed, uniform
from gpuflow.training.order import Batches, Buffered, Full, Order, Plain, Weighted, make_order, mixing

KEYS = st.integers(0, 2**64 - 1)


def whole(order: Order, epoch: int) -> list[int]:
    return order.samples(epoch, np.arange(order.size)).tolist()


class TestPermutation:
    @given(key=KEYS, size=st.integers(1, 5000), data=st.data())
    @settings(deadline=None)
    def test_of_every_size_and_inverted(self, key: int, size: int, data: st.DataObject) -> None:
        permutation = Permutation(key, size)
        values = permutation(np.arange(size))
        assert sorted(values.tolist()) == list(range(size))
        places = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20)))
        assert (permutation.inverse(permutation(places)) == places).all()

    def test_of_a_billion_without_a_table(self) -> None:
        permutation = Permutation(5, 10**9)
        places = np.arange(10**9 - 1000, 10**9)
        assert len(np.unique(permutation(places))) == 1000
        assert (permutation.inverse(permutation(places)) == places).all()

    @pytest.mark.parametrize("size", [5, 12, 60])
    def test_every_place_is_as_likely(self, size: int) -> None:
        """Chi-square of where each value goes, over 4,000 keys: as of NumPy's permutation, within six standard deviations."""
        trials = 4000
        hits = np.zeros((size, size))
        for key in range(trials):
            hits[np.arange(size), Permutation(key_of("test", key), size)(np.arange(size))] += 1
        chi = ((hits - trials / size) ** 2 / (trials / size)).sum()
        freedom = (size - 1) ** 2
        assert abs(chi - freedom) < 6 * np.sqrt(2 * freedom)

    def test_neighbours_are_torn_apart_as_numpy_does_it(self) -> None:
        """Of 10,000: values that follow one another (1 expected), fixed points (1 expected), and the mean way (a third)."""
        size, following, fixed, ways = 10_000, 0, 0, []
        for key in range(40):
            values = Permutation(key_of("n", key), size)(np.arange(size))
            following += int((np.diff(values) == 1).sum())
            fixed += int((values == np.arange(size)).sum())
            ways.append(np.abs(values - np.arange(size)).mean() / size)
        assert 15 < following < 75
        assert 15 < fixed < 75
        assert np.mean(ways) == pytest.approx(1 / 3, abs=0.005)


def test_keys_are_digests_and_not_sums() -> None:
    assert len({key_of(1, 23), key_of(12, 3), key_of(24), key_of("1", 23), key_of(23, 1)}) == 5
    bits = mixed(7, np.arange(10_000))
    ones = np.unpackbits(bits.view(np.uint8)).mean()
    assert ones == pytest.approx(0.5, abs=0.01)
    drawn = uniform(7, np.arange(10_000))
    assert (drawn >= 0).all()
    assert (drawn < 1).all()
    assert drawn.mean() == pytest.approx(0.5, abs=0.01)
    assert drawn.std() == pytest.approx(12**-0.5, abs=0.01)


ORDERS = st.one_of(
    st.builds(Full, st.integers(1, 400), KEYS),
    st.builds(Buffered, st.integers(1, 400), KEYS, st.integers(1, 50), st.integers(1, 9)),
    st.builds(Plain, st.integers(1, 400)),
)


class TestOrders:
    @given(order=ORDERS, epoch=st.integers(0, 5))
    @settings(deadline=None)
    def test_each_sample_once_an_epoch(self, order: Order, epoch: int) -> None:
        assert sorted(whole(order, epoch)) == list(range(order.size))

    @given(order=ORDERS, epoch=st.integers(0, 5), size=st.integers(20, 60))
    @settings(max_examples=50, deadline=None)
    def test_batches_are_looked_up_in_any_order(self, order: Order, epoch: int, size: int) -> None:
        batches = Batches(order, size)
        backwards = [batches.samples(epoch, batch)[0].tolist() for batch in reversed(range(batches.count))]
        assert [sample for batch in reversed(backwards) for sample in batch] == whole(order, epoch)

    def test_epochs_differ(self) -> None:
        for order in (Full(100, 1), Buffered(100, 1, 10, 3)):
            assert whole(order, 0) != whole(order, 1)
            assert whole(order, 0) == whole(order, 0)
        assert whole(Full(100, 1), 0) != whole(Full(100, 2), 0)

    @given(size=st.integers(1, 300), key=KEYS, block=st.integers(1, 20), window=st.integers(1, 6))
    @settings(deadline=None)
    def test_buffered_has_few_blocks_in_use(self, size: int, key: int, block: int, window: int) -> None:
        blocks = np.array(whole(Buffered(size, key, block, window), 0)) // block
        for number in np.unique(blocks):
            first, last = np.flatnonzero(blocks == number)[[0, -1]]
            assert last - first < window * block

    def test_weighted(self) -> None:
        order = Weighted(4, 9, np.array([1.0, 0.0, 2.0, 0.0]))
        drawn = Counter(sample for epoch in range(2000) for sample in whole(order, epoch))
        assert set(drawn) == {0, 2}
        assert drawn[2] / drawn[0] == pytest.approx(2, rel=0.1)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"name": "shuffled"}, "'shuffled' is unknown; use full, buffered, none or weighted"),
            ({"name": "weighted"}, "without weights; give weights="),
            ({"name": "full", "weights": [1] * 9}, "with weights; use order='weighted'"),
            ({"name": "weighted", "weights": [1] * 8}, "8 weights for 9 samples"),
            ({"name": "weighted", "weights": [0] * 9}, "not all 0"),
            ({"name": "weighted", "weights": [float("nan")] * 9}, "must be finite"),
            ({"name": "buffered", "window": 0}, "a window of 0 blocks"),
        ],
    )
    def test_bad_options(self, options: dict[str, object], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            make_order(count=9, key=1, **options)  # type: ignore[arg-type]


class TestLast:
    @given(size=st.integers(1, 100), batch_size=st.integers(1, 100))
    @settings(deadline=None)
    def test_rest(self, size: int, batch_size: int) -> None:
        whole_batches, rest = divmod(size, batch_size)
        keep, drop, pad = (Batches(Full(size, 3), batch_size, last) for last in ("keep", "drop", "pad"))  # type: ignore[arg-type]
        assert (keep.count, drop.count, pad.count) == (whole_batches + (rest > 0), whole_batches, whole_batches + (rest > 0))
        if rest:
            samples, count = pad.samples(0, whole_batches)
            assert (len(samples), count) == (batch_size, rest)
            assert samples[:rest].tolist() == keep.samples(0, whole_batches)[0].tolist()


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        (Full(100_000, 1), 1.0),
        (Buffered(100_000, 1, 100, 256), 0.91),
        (Buffered(100_000, 1, 100, 64), 0.65),
        (Plain(100_000), 0.026),
    ],
)
def test_mixing_as_stated(order: Order, expected: float) -> None:
    assert mixing(Batches(order, 64), block=100) == pytest.approx(expected, abs=0.02)


def test_full_mixes_labels_as_numpy_does() -> None:
    """Data sorted by ten labels: the variance of a label's count in a batch, over that of NumPy's permutations."""
    size, batch = 10_000, 100
    labels = np.arange(size) // 1000

    def variance(orders: list[np.ndarray]) -> float:
        return float(np.mean([np.var((labels[order].reshape(-1, batch) == 3).sum(axis=1)) for order in orders]))

    ours = variance([np.array(whole(Full(size, 11), epoch)) for epoch in range(30)])
    theirs = variance([np.random.default_rng(seed).permutation(size) for seed in range(30)])
    assert ours / theirs == pytest.approx(1, abs=0.1)
