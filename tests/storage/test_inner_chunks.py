"""Inner chunks are slabs of a size for samples, or the shard is not cut."""

from __future__ import annotations

from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuflow.storage.inner_chunks import LARGEST_NBYTES, SMALLEST_NBYTES, inner_chunks

shapes = st.lists(st.one_of(st.integers(1, 40), st.sampled_from([64, 96, 127, 256, 1009, 4096])), min_size=0, max_size=4).map(
    tuple
)


@pytest.mark.parametrize(
    ("shard", "itemsize", "wanted"),
    [
        ((1, 256, 256), 4, (1, 256, 256)),  # 256 KiB: not cut
        ((8, 256, 256, 3), 1, (1, 256, 256, 3)),  # a sample has a good size
        ((84, 128, 128, 3), 1, (2, 128, 128, 3)),  # two samples
        ((4, 721, 1440), 4, (1, 7, 1440)),  # 721 = 7 * 103 rows: 39 KiB is nearer than 580 KiB
        ((1, 1024, 2048), 4, (1, 32, 2048)),
        ((1, 2, 1024, 1024), 4, (1, 1, 64, 1024)),
        ((2**21,), 4, (2**14,)),
        ((2, 512, 1, 512), 2, (1, 256, 1, 512)),
        ((101, 1024), 4, (101, 1024)),  # 101 samples of 4 KiB: too many, too small
        ((1009, 5120), 4, (1, 5120)),  # 20 KiB are still good
        ((4, 277, 277), 4, (1, 277, 277)),  # 300 KiB: a sample is better than rows of 1 KiB
        ((1_000_003,), 4, (1_000_003,)),
        ((), 16, ()),
    ],
)
def test_known_shapes(shard: tuple[int, ...], itemsize: int, wanted: tuple[int, ...]) -> None:
    assert inner_chunks(shard, itemsize) == wanted


@given(shapes, st.sampled_from([1, 2, 4, 8, 16]))
def test_they_are_slabs_that_divide_the_shard(shard: tuple[int, ...], itemsize: int) -> None:
    inner = inner_chunks(shard, itemsize)
    assert len(inner) == len(shard)
    assert not any(size % part for size, part in zip(shard, inner, strict=True))
    cut = [axis for axis, (size, part) in enumerate(zip(shard, inner, strict=True)) if size != part]
    if not cut:
        return
    nbytes = prod(inner) * itemsize
    assert all(part == 1 for part in inner[: cut[-1]])
    assert prod(shard) * itemsize > LARGEST_NBYTES
    assert nbytes >= 16 * 1024
    sample_nbytes = prod(shard[1:]) * itemsize
    if SMALLEST_NBYTES <= sample_nbytes <= LARGEST_NBYTES:
        assert inner == (1, *shard[1:])
    elif sample_nbytes < SMALLEST_NBYTES:
        assert inner[1:] == shard[1:]
    else:
        assert inner[0] == 1


@given(st.lists(st.sampled_from([1, 2, 4, 8, 32, 256]), min_size=1, max_size=4).map(tuple), st.sampled_from([1, 2, 4, 8]))
def test_where_there_are_divisors_the_size_is_in_range(shard: tuple[int, ...], itemsize: int) -> None:
    if prod(shard) * itemsize > LARGEST_NBYTES:
        assert SMALLEST_NBYTES <= prod(inner_chunks(shard, itemsize)) * itemsize <= LARGEST_NBYTES
