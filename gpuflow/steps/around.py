"""Parts of arrays that go around: they begin before the array does, or end beyond it, where they have what lies at its other end.

Pure. Such a part is shorter than the array. Only what is pulled goes around; chunks, and the parts that steps compute, do not."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np
from numpy.typing import NDArray

from gpuflow.steps.base import Region
from gpuflow.steps.spans import Span


def around(first: int, last: int, size: int) -> slice:
    """What lies from `first` to `last` of an axis that goes on at its other end; all of it when that is not longer."""
    if last - first >= size:
        return slice(0, size)
    by = first // size * size if last <= 0 or first >= size else 0
    return slice(first - by, last - by)


def span_around(axis: int | None, starts: NDArray[np.int64], stops: NDArray[np.int64], size: int) -> Span:
    """`around` of many."""
    whole = stops - starts >= size
    by = np.where((stops <= 0) | (starts >= size), starts // max(size, 1) * size, 0)
    return Span(axis, np.where(whole, 0, starts - by), np.where(whole, size, stops - by))


def goes_around(region: Region, shape: tuple[int, ...]) -> bool:
    """Whether it goes on at the other end of an axis."""
    return any(part.start < 0 or part.stop > size for part, size in zip(region, shape, strict=True))


def widened(region: Region, shape: tuple[int, ...]) -> Region:
    """All of the axes along which it goes around."""
    pairs = zip(region, shape, strict=True)
    return tuple(slice(0, size) if part.start < 0 or part.stop > size else part for part, size in pairs)


def span_widened(span: Span, size: int) -> Span:
    """`widened` of many."""
    beyond = (span.starts < 0) | (span.stops > size)
    return Span(span.axis, np.where(beyond, 0, span.starts), np.where(beyond, size, span.stops))


def ends(part: slice, size: int) -> list[tuple[slice, int]]:
    """The one or two pieces of an axis that a part of it has, and where in the part each begins."""
    if part.start < 0:
        return [(slice(part.start + size, size), 0), (slice(0, part.stop), -part.start)]
    if part.stop > size:
        return [(slice(part.start, size), 0), (slice(0, part.stop - size), size - part.start)]
    return [(part, 0)]


def pieces(region: Region, shape: tuple[int, ...]) -> Iterator[tuple[Region, Region]]:
    """The boxes of an array that make up `region`, and where in it each lies."""
    for box in product(*(ends(part, size) for part, size in zip(region, shape, strict=True))):
        yield tuple(part for part, _ in box), tuple(slice(at, at + part.stop - part.start) for part, at in box)


def seen_from(box: Region, region: Region, shape: tuple[int, ...]) -> Region | None:
    """Where in `box` all of `region` lies; None when its ends do not meet there."""
    found = []
    for around_it, part, size in zip(box, region, shape, strict=True):
        starts = (part.start + by - around_it.start for by in (0, -size, size))
        length, room = part.stop - part.start, around_it.stop - around_it.start
        start = next((start for start in starts if 0 <= start <= room - length), None)
        if start is None:
            return None
        found.append(slice(start, start + length))
    return tuple(found)
