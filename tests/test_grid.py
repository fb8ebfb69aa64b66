"""The grid's arithmetic, against NumPy and against its own inverses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuflow.grid import Grid


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    ndim = draw(st.integers(0, 4))
    shape = draw(st.lists(st.integers(0, 9), min_size=ndim, max_size=ndim))
    chunks = draw(st.lists(st.integers(1, 12), min_size=ndim, max_size=ndim))
    return Grid(tuple(shape), tuple(chunks))


@given(grids())
def test_the_regions_tile_the_array(grid: Grid) -> None:
    times_covered = np.zeros(grid.shape, dtype=int)
    for linear in range(grid.size):
        times_covered[grid.region(linear)] += 1
        assert times_covered[grid.region(linear)].shape == grid.extent(linear)
    assert (times_covered == 1).all()


@given(grids())
def test_linear_numbers_count_in_c_order(grid: Grid) -> None:
    positions = [grid.unravel(linear) for linear in range(grid.size)]
    assert positions == list(np.ndindex(*grid.counts))
    assert [grid.ravel(position) for position in positions] == list(range(grid.size))


def test_a_scalar_is_one_chunk_and_an_empty_array_none() -> None:
    assert Grid((), ()).size == 1
    assert Grid((), ()).region(0) == ()
    assert Grid((0, 5), (2, 2)).size == 0


@pytest.mark.parametrize("linear", [-1, 6])
def test_a_number_outside_the_grid_is_an_index_error(linear: int) -> None:
    with pytest.raises(IndexError, match=f"chunk {linear} of a grid of 6"):
        Grid((5, 4), (2, 2)).unravel(linear)


@pytest.mark.parametrize("index", [(3, 0), (0, 2), (-1, 0)])
def test_a_position_outside_the_grid_is_an_index_error(index: tuple[int, ...]) -> None:
    with pytest.raises(IndexError):
        Grid((5, 4), (2, 2)).ravel(index)


@pytest.mark.parametrize(("shape", "chunks"), [((4,), ()), ((4,), (0,)), ((-1,), (2,))])
def test_a_grid_that_is_none_is_refused(shape: tuple[int, ...], chunks: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="chunks"):
        Grid(shape, chunks)


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 3)), min_size=1, max_size=3).map(
        lambda axes: Grid(tuple(size for size, _ in axes), tuple(chunk for _, chunk in axes))
    ),
    st.sets(st.integers(0, 200)),
)
def test_boxes_hold_each_chunk_once(grid: Grid, numbers: set[int]) -> None:
    chunks = {number % grid.size for number in numbers}
    boxes = grid.boxes(chunks)
    assert sorted(chunk for box in boxes for chunk in grid.chunks_of(box)) == sorted(chunks)
    for box in boxes:
        regions = [grid.region(chunk) for chunk in grid.chunks_of(box)]
        hull = tuple(slice(min(p.start for p in axis), max(p.stop for p in axis)) for axis in zip(*regions, strict=True))
        assert grid.region_of(box) == hull
    assert len(grid.boxes(range(grid.size))) == (1 if grid.size else 0)
