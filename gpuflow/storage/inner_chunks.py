"""Into which inner chunks a shard is cut, so that one sample, or a few small ones, can be read without the rest.

Pure. Samples lie along the first axis. Inner chunks are slabs: the shard is their concatenation, in C order."""

from __future__ import annotations

from collections.abc import Iterable
from math import isqrt, log, prod

SMALLEST_NBYTES, LARGEST_NBYTES = 64 * 2**10, 256 * 2**10
"""Decoded size of an inner chunk: what batched GPU decoders ask for, and what does not yet cost compression."""
_TINY_NBYTES = 16 * 2**10
"""Below this, an inner chunk costs more in overhead than reading what is beside it."""


def inner_chunks(shard_shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Shape of the inner chunks of a shard, which they divide evenly; `shard_shape` itself where it should not be cut.

    One sample; several when it has less than `SMALLEST_NBYTES`; a part of it when it has more than `LARGEST_NBYTES`. Where no divisor of
    an axis leads into this range, the one that comes nearest."""
    if prod(shard_shape) * itemsize <= LARGEST_NBYTES:
        return shard_shape
    large = prod(shard_shape[1:]) * itemsize > LARGEST_NBYTES
    shapes = _parts_of_a_sample(shard_shape) if large else ((size, *shard_shape[1:]) for size in _divisors(shard_shape[0]))
    sized = [(prod(shape) * itemsize, shape) for shape in shapes]
    ranked = sorted((_distance(nbytes), -nbytes if large else nbytes, shape) for nbytes, shape in sized if nbytes >= _TINY_NBYTES)
    return ranked[0][2] if ranked else shard_shape


def _parts_of_a_sample(shape: tuple[int, ...]) -> Iterable[tuple[int, ...]]:
    """The slabs that make one sample: whole, or cut along one axis while those before it are cut to one."""
    yield (1, *shape[1:])
    for axis in range(1, len(shape)):
        for size in _divisors(shape[axis]):
            yield (*(1 for _ in range(axis)), size, *shape[axis + 1 :])


def _distance(nbytes: int) -> float:
    """How far from the wanted range, as a logarithm."""
    return max(0.0, log(SMALLEST_NBYTES / nbytes), log(nbytes / LARGEST_NBYTES))


def _divisors(size: int) -> list[int]:
    """Ascending."""
    small = [number for number in range(1, isqrt(size) + 1) if not size % number]
    return sorted({*small, *(size // number for number in small)})
