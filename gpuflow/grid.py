"""The arithmetic of a regular chunk grid: index, key, region, size.

Pure. A chunk here is one *stored object* (a chunk, or a shard where the array is sharded); its linear index counts in C order."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import prod

Box = tuple[range, ...]
"""Chunks that are neighbours: a range of positions along each axis."""


@dataclass(frozen=True)
class Grid:
    """Regular grid of `chunks`-shaped blocks over `shape`. Both have one entry per dimension; edges may be ragged."""

    shape: tuple[int, ...]
    chunks: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.shape) != len(self.chunks):
            raise ValueError(f"shape {self.shape} and chunks {self.chunks} differ in length")
        if any(size < 0 for size in self.shape) or any(size < 1 for size in self.chunks):
            raise ValueError(f"shape {self.shape} must be >= 0 and chunks {self.chunks} >= 1")

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Number of chunks along each dimension."""
        return tuple(-(-size // chunk) for size, chunk in zip(self.shape, self.chunks, strict=True))

    @cached_property
    def size(self) -> int:
        """Number of chunks; 1 for a scalar array, 0 when a dimension is empty."""
        return prod(self.counts)

    @cached_property
    def _is_even(self) -> bool:
        """Whether no chunk reaches over the edge."""
        return all(size % chunk == 0 for size, chunk in zip(self.shape, self.chunks, strict=True))

    def unravel(self, linear: int) -> tuple[int, ...]:
        """Grid position of chunk number `linear` (C order). IndexError outside the grid."""
        if not 0 <= linear < self.size:
            raise IndexError(f"chunk {linear} of a grid of {self.size}")
        index = []
        for count in reversed(self.counts):
            linear, position = divmod(linear, count)
            index.append(position)
        return tuple(reversed(index))

    def ravel(self, index: tuple[int, ...]) -> int:
        """Linear number of the chunk at grid position `index`. IndexError outside the grid."""
        linear = 0
        for position, count in zip(index, self.counts, strict=True):
            if not 0 <= position < count:
                raise IndexError(f"chunk {index} of a grid of {self.counts}")
            linear = linear * count + position
        return linear

    def region(self, linear: int) -> tuple[slice, ...]:
        """The part of the array that chunk number `linear` covers, clipped to the shape."""
        return tuple(
            slice(position * chunk, min((position + 1) * chunk, size))
            for position, chunk, size in zip(self.unravel(linear), self.chunks, self.shape, strict=True)
        )

    def extent(self, linear: int) -> tuple[int, ...]:
        """Shape of the valid part of chunk number `linear`."""
        if self._is_even and 0 <= linear < self.size:
            return self.chunks
        return tuple(part.stop - part.start for part in self.region(linear))

    def boxes(self, chunks: Iterable[int]) -> list[Box]:
        """`chunks` as few boxes of neighbours, each a range of positions along every axis; greedy, in C order of their first chunks."""
        left = dict.fromkeys(self.unravel(chunk) for chunk in sorted(chunks))
        found = []
        while left:
            first = next(iter(left))
            box = [range(position, position + 1) for position in first]
            for axis in reversed(range(len(box))):
                while all(index in left for index in self._beyond(box, axis)):
                    box[axis] = range(box[axis].start, box[axis].stop + 1)
            for index in product(*box):
                del left[index]
            found.append(tuple(box))
        return found

    def _beyond(self, box: list[range], axis: int) -> Iterable[tuple[int, ...]]:
        """The positions that follow `box` along `axis`; one outside the grid where it ends there."""
        return product(*box[:axis], [box[axis].stop], *box[axis + 1 :])

    def region_of(self, box: Box) -> tuple[slice, ...]:
        """The part of the array that a box of chunks covers, clipped to the shape."""
        return tuple(
            slice(part.start * chunk, min(part.stop * chunk, size))
            for part, chunk, size in zip(box, self.chunks, self.shape, strict=True)
        )

    def chunks_of(self, box: Box) -> list[int]:
        """Linear numbers of the chunks in a box, in C order."""
        return [self.ravel(index) for index in product(*box)]
