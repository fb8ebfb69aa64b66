"""Sums over the boxes that many parts pull, axis by axis; and which chunks they pull.

Pure. A sum over a range is the difference of two running totals, whatever its length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuflow.grid import Grid
from gpuflow.steps.spans import Inseparable, Span, Spans

Columns = Callable[[tuple[slice, ...]], NDArray[np.float64]]
"""Of a part of a grid of chunks: some numbers of each chunk, along one more axis."""


def sums_over(spans: Spans, grid: Grid, axes: int, columns: Columns) -> NDArray[np.float64]:
    """For each part the sum of its chunks' columns, each times the number of values that it pulls of the chunk. Exact below 2**53.

    grid: of the array that is pulled; axes: of the result. Out: one axis for each of them, of the length 1 where the spans do not depend
    on it, and the columns."""
    _check(spans)
    parts = [span.pieces(size) for span, size in zip(spans, grid.shape, strict=True)]
    reach = [slice(_first(each, size), _last(each, size)) for each, size in zip(parts, grid.chunks, strict=True)]
    values = columns(tuple(reach))
    # Axes that shrink come first, so that what is in between stays small.
    order = sorted(range(len(spans)), key=lambda axis: len(spans[axis].starts) / max(1, values.shape[axis]))
    for axis in order:
        size, ahead = grid.chunks[axis], np.moveaxis(values, axis, 0)
        begin = reach[axis].start * size
        each = [_along(ahead, piece.starts - begin, piece.stops - begin, size) for piece in parts[axis]]
        values = np.moveaxis(sum(each[1:], each[0]), 0, axis)
    places = {span.axis: number for number, span in enumerate(spans) if span.axis is not None}
    fixed = [number for number, span in enumerate(spans) if span.axis is None]
    lengths = [values.shape[places[axis]] if axis in places else 1 for axis in range(axes)]
    values = values.transpose([*(places[axis] for axis in range(axes) if axis in places), *fixed, len(spans)])
    return values.reshape((*lengths, values.shape[-1]))


def _along(values: NDArray[np.float64], starts: NDArray[np.int64], stops: NDArray[np.int64], size: int) -> NDArray[np.float64]:
    """values: of each chunk, along the first axis; `size` values of the array are in one."""
    totals = np.zeros((len(values) + 1, *values.shape[1:]))
    np.cumsum(values, axis=0, out=totals[1:])

    def below(edges: NDArray[np.int64]) -> NDArray[np.float64]:
        number, rest = np.divmod(edges, size)
        found: NDArray[np.float64] = totals[number] * size
        within = np.flatnonzero(rest)
        found[within] += values[number[within]] * rest[within].reshape((-1,) + (1,) * (values.ndim - 1))
        return found

    return below(np.maximum(starts, stops)) - below(starts)


def needed_by(spans: Spans, grid: Grid, parts: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which chunks of `grid` are pulled by any of the `parts`."""
    _check(spans)
    used = [span.axis for span in spans if span.axis is not None]
    marks: NDArray[Any] = np.asarray(parts.any(axis=tuple(axis for axis in range(parts.ndim) if axis not in used)))
    kept = [axis for axis in range(parts.ndim) if axis in used]
    marks = marks.transpose([kept.index(axis) for axis in used])
    marks = marks.reshape([1 if span.axis is None else len(span.starts) for span in spans])
    for number in sorted(range(len(spans)), key=lambda axis: grid.counts[axis] / max(1, marks.shape[axis])):
        size = grid.chunks[number]
        ahead = np.moveaxis(marks, number, 0).astype(np.int64)
        edges = np.zeros((grid.counts[number] + 1, *ahead.shape[1:]), np.int64)
        for piece in spans[number].pieces(grid.shape[number]):
            first, last = piece.starts // size, -(-piece.stops // size)
            np.add.at(edges, first, ahead)
            np.subtract.at(edges, np.maximum(first, last), ahead)
        marks = np.moveaxis(np.cumsum(edges[:-1], axis=0) > 0, 0, number)
    return marks


def _first(pieces: Sequence[Span], size: int) -> int:
    return min(int(piece.starts.min(initial=2**62)) for piece in pieces) // size if len(pieces[0].starts) else 0


def _last(pieces: Sequence[Span], size: int) -> int:
    return -(-max(int(piece.stops.max(initial=0)) for piece in pieces) // size)


def _check(spans: Spans) -> None:
    """Inseparable when two axes depend on the same one of the result."""
    axes = [span.axis for span in spans if span.axis is not None]
    if len(set(axes)) < len(axes):
        raise Inseparable
