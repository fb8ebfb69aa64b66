"""Moments agree with NumPy in float64, merge in any grouping, and do not widen a block."""

from __future__ import annotations

import json
import math
import pickle
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gpuflow.grid import Grid
from gpuflow.reductions import moments as module
from gpuflow.reductions.moments import Moments

DTYPES = ["bool", "int8", "uint16", "int32", "float16", "float32", "float64"]


@st.composite
def blocks(draw: st.DrawFn) -> tuple[np.ndarray, tuple[int, ...]]:
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    elements = None
    if dtype.kind == "f":
        elements = st.one_of(st.just(math.nan), st.floats(-1000, 1000, width=16))
    block = draw(hnp.arrays(dtype, shape, elements=elements))
    keep = tuple(sorted(draw(st.sets(st.integers(0, max(block.ndim - 1, 0)), max_size=block.ndim)))) if block.ndim else ()
    return block, keep


def reference(block: np.ndarray, keep: tuple[int, ...], index: tuple[int, ...]) -> np.ndarray:
    chosen = tuple(index[keep.index(axis)] if axis in keep else slice(None) for axis in range(block.ndim))
    values = np.asarray(block[chosen], np.float64).ravel()
    return values[~np.isnan(values)]


def assert_agrees(moments: Moments, block: np.ndarray, keep: tuple[int, ...]) -> None:
    assert moments.count.shape == tuple(block.shape[axis] for axis in keep)
    for index in np.ndindex(moments.count.shape):
        values = reference(block, keep, index)
        assert moments.count[index] == values.size
        if not values.size:
            assert (moments.mean[index], moments.m2[index]) == (0, 0)
            assert (moments.minimum[index], moments.maximum[index]) == (math.inf, -math.inf)
            assert math.isnan(moments.std[index])
            continue
        scale = np.abs(values).max() + 1e-300
        assert moments.mean[index] == pytest.approx(values.mean(), rel=1e-12, abs=1e-13 * scale)
        assert moments.std[index] == pytest.approx(values.std(), rel=1e-9, abs=1e-12 * scale)
        assert (moments.minimum[index], moments.maximum[index]) == (values.min(), values.max())


@settings(deadline=None)
@given(blocks())
def test_agrees_with_numpy(case: tuple[np.ndarray, tuple[int, ...]]) -> None:
    block, keep = case
    moments = Moments.of(block, keep)
    assert_agrees(moments, block, keep)
    for name in ("count", "mean", "m2", "minimum", "maximum"):
        assert getattr(moments, name).dtype == (np.int64 if name == "count" else np.float64)


@pytest.mark.parametrize("dtype", [*DTYPES, "uint8"])
@pytest.mark.parametrize(
    ("shape", "keep"),
    [
        ((100_003,), ()), ((7, 20_011), (0,)), ((5, 3, 4000), (1,)), ((40, 50, 60, 3), (3,)), ((9, 3, 70), (1,)),
        ((20, 3000), (1,)), ((3, 2, 5, 700), (1, 3)), ((2, 9000, 5), (0, 2)), ((4, 9, 1), (0, 1, 2)), ((3, 40_000, 1), (2,)),
    ],
)  # fmt: skip
def test_the_compiled_moments_are_those_of_numpy(dtype: str, shape: tuple[int, ...], keep: tuple[int, ...]) -> None:
    """Tolerance: 1e-13 of the largest value for the mean, 1e-10 of the spread for m2; counts and extrema are exact."""
    random = np.random.default_rng(len(shape))
    block = (random.normal(50, 20, shape)).astype(dtype)
    if block.dtype.kind == "f":
        block[random.random(shape) < 0.1] = np.nan
    for part in (block, block[::2], block[..., ::-1], np.asfortranarray(block)):
        moments, oracle = Moments.of(part, keep), Moments.by_numpy(part, keep)
        np.testing.assert_array_equal(moments.count, oracle.count)
        np.testing.assert_array_equal(moments.minimum, oracle.minimum)
        np.testing.assert_array_equal(moments.maximum, oracle.maximum)
        largest = np.abs([oracle.minimum, oracle.maximum]).max(where=oracle.count > 0, initial=1)
        np.testing.assert_allclose(moments.mean, oracle.mean, rtol=0, atol=1e-13 * largest)
        np.testing.assert_allclose(moments.m2, oracle.m2, rtol=1e-10, atol=1e-20 * largest**2 * part.size)
        assert moments == Moments.of(part, keep), "the same bits"


def test_every_half_float_is_read() -> None:
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    moments = Moments.of(halves, (0,))
    np.testing.assert_array_equal(moments.count, ~np.isnan(halves))
    np.testing.assert_array_equal(moments.mean[moments.count > 0], halves[moments.count > 0])


def test_a_foreign_byte_order_is_left_to_numpy() -> None:
    assert Moments.of(np.arange(5, dtype=">i4"), ()) == Moments.of(np.arange(5, dtype="i4"), ())


@pytest.mark.parametrize("slab", [1, 3, 7])
def test_slabs_change_nothing(monkeypatch: pytest.MonkeyPatch, slab: int) -> None:
    monkeypatch.setattr(module, "_SLAB_SIZE", slab)
    block = np.random.default_rng(1).normal(5, 3, (4, 3, 5)).astype("f4")
    block[1, 2] = np.nan
    for keep in [(), (0,), (1,), (2,), (0, 2), (0, 1, 2)]:
        assert_agrees(Moments.of(block, keep), block, keep)


@settings(deadline=None)
@given(blocks(), st.data())
def test_chunks_embedded_and_merged_are_the_whole(case: tuple[np.ndarray, tuple[int, ...]], data: st.DataObject) -> None:
    block, keep = case
    grid = Grid(block.shape, tuple(data.draw(st.integers(1, 5)) for _ in block.shape))
    shape = tuple(block.shape[axis] for axis in keep)
    total = Moments.empty(shape)
    for linear in range(grid.size):
        region = grid.region(linear)
        part = Moments.of(block[region], keep).embed(shape, tuple(region[axis] for axis in keep))
        total = total.merge(part)
    assert_agrees(total, block, keep)


@settings(deadline=None)
@given(blocks())
def test_a_side_without_values_is_neutral_to_the_bit(case: tuple[np.ndarray, tuple[int, ...]]) -> None:
    moments = Moments.of(*case)
    empty = Moments.empty(moments.count.shape)
    for merged in (moments.merge(empty), empty.merge(moments)):
        assert merged == moments
        assert merged.mean.tobytes() == moments.mean.tobytes()


@settings(deadline=None)
@given(blocks())
def test_json_round_trip_is_exact(case: tuple[np.ndarray, tuple[int, ...]]) -> None:
    moments = Moments.of(*case)
    text = json.dumps(moments.to_dict(), allow_nan=False)
    assert Moments.from_dict(json.loads(text)) == moments
    assert pickle.loads(pickle.dumps(moments)) == moments


def test_infinite_values_are_kept_and_do_not_warn() -> None:
    moments = Moments.of(np.array([1.0, np.inf]), ())
    assert moments.mean == np.inf
    assert math.isnan(moments.std)
    assert Moments.from_dict(json.loads(json.dumps(moments.to_dict(), allow_nan=False))) == moments
    both = moments.merge(Moments.of(np.array([-np.inf]), ()))
    assert (both.minimum, both.maximum) == (-np.inf, np.inf)


def test_a_constant_has_no_spread_at_all() -> None:
    # 0.1 summed a million times is not a million tenths; the spread must be 0 all the same.
    assert Moments.of(np.full(300_001, 0.1), ()).std == 0


def test_a_large_offset_does_not_cancel() -> None:
    values = np.random.default_rng(2).normal(1e9, 1, 400_000)
    assert Moments.of(values, ()).std == pytest.approx(values.std(), rel=1e-9)


def test_half_floats_do_not_overflow() -> None:
    moments = Moments.of(np.full((2, 70_000), 60_000, np.float16), (0,))
    assert moments.mean.tolist() == [60_000.0, 60_000.0]


def test_billions_of_values_merge() -> None:
    many = Moments(*(np.asarray(value) for value in (np.int64(2**40), 1.0, 3.0, 0.0, 2.0)))
    merged = many.merge(many)
    assert (merged.count, merged.mean, merged.m2) == (2**41, 1.0, 6.0)


def test_a_big_block_is_not_widened() -> None:
    block = np.zeros((2048, 2048), np.float16)
    tracemalloc.start()
    Moments.of(block, (0,))
    peak_nbytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_nbytes < block.size * 8 / 4


@pytest.mark.parametrize("keep", [(1, 0), (0, 0), (2,), (-1,)])
def test_keep_has_to_be_ascending_axes(keep: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="ascending"):
        Moments.of(np.zeros((2, 2)), keep)


def test_complex_values_have_no_moments() -> None:
    with pytest.raises(TypeError, match="complex64"):
        Moments.of(np.zeros(2, np.complex64), ())


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=30), st.integers(1, 29))
def test_merge_is_nearly_symmetric(values: list[float], cut: int) -> None:
    left, right = Moments.of(np.array(values[:cut]), ()), Moments.of(np.array(values[cut:]), ())
    one, other = left.merge(right), right.merge(left)
    assert one.count == other.count
    assert float(one.mean) == pytest.approx(float(other.mean), rel=1e-12, abs=1e-9)
    assert float(one.m2) == pytest.approx(float(other.m2), rel=1e-9, abs=1e-6)


@pytest.mark.parametrize("lines", [1, 2, 5])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_infinities_of_both_signs_are_not_missing(dtype: str, lines: int) -> None:
    """Their sum is NaN, too."""
    block = np.zeros(512 * 16 * lines + 7, dtype)
    block[[100, -1, 7]] = math.inf, -math.inf, math.nan
    with np.errstate(invalid="ignore"):
        found = Moments.of(block, ())
    assert (found.count, found.minimum, found.maximum) == (block.size - 1, -math.inf, math.inf)
    block[100] = block[-1] = 1
    found = Moments.of(block, ())
    assert (found.count, found.mean, found.maximum) == (block.size - 1, pytest.approx(2 / (block.size - 1)), 1)
