"""How the loops of a kernel run over a block: long rows of contiguous elements, over which parameters are constant or repeat.

Pure. Axes that the same parameters keep are one axis; so channels may be first, last or in the middle, of any number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

_LONG = 1024
"""Elements of a row from which on starting it costs nothing: about 50 ns against 200 ns for the cheapest kernel."""
_REPEAT = 4096
"""Elements over which a short pattern of parameters is repeated: 16 KiB of float32, half a first-level cache."""
_WIDEST = 2**16
"""Elements of a repeated pattern at most."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Element `i` lies in row `i // span`; within a row the parameters repeat every `period` elements.

    varying: whether they differ within a row at all. parameters: for each, `rows` (row number -> index into `values`) and
    `values` (one line per index; one column, or `period` columns when varying)."""

    span: int
    period: int
    varying: bool
    parameters: tuple[tuple[NDArray[np.int64], NDArray[Any]], ...]


def plan(shape: tuple[int, ...], parameters: Sequence[tuple[NDArray[Any], tuple[int, ...]]]) -> Layout:
    """The layout of a block of `shape`, not empty. parameters: values for the block, one axis per kept axis of it."""
    keeps = [frozenset(axes) for _, axes in parameters]
    groups = _groups(shape, keeps)
    first, span, period, varying = _inner(groups)
    outer, inner = groups[:first], groups[first:]
    found = []
    for number, (values, _) in enumerate(parameters):
        sizes = [size if number in kept else 1 for size, kept in outer]
        index = np.arange(prod(sizes), dtype=np.int64).reshape(sizes)
        rows = np.broadcast_to(index, [size for size, _ in outer]).ravel()
        lines = values.reshape([prod(sizes), *(size if number in kept else 1 for size, kept in inner)])
        found.append((rows, _lines(lines, [size for size, _ in inner], period, varying)))
    return Layout(span, period, varying, tuple(found))


def _groups(shape: tuple[int, ...], keeps: Sequence[frozenset[int]]) -> list[tuple[int, frozenset[int]]]:
    """(size, numbers of the parameters that keep it) of runs of neighbouring axes that the same parameters keep."""
    groups: list[tuple[int, frozenset[int]]] = []
    for axis, size in enumerate(shape):
        kept = frozenset(number for number, axes in enumerate(keeps) if axis in axes)
        if size == 1:
            continue
        if groups and groups[-1][1] == kept:
            groups[-1] = (groups[-1][0] * size, kept)
        else:
            groups.append((size, kept))
    return groups


def _inner(groups: list[tuple[int, frozenset[int]]]) -> tuple[int, int, int, bool]:
    """(number of the first group that belongs to a row, span, period, varying)."""
    size, kept = groups[-1] if groups else (1, frozenset())
    if not kept and (size >= _LONG or len(groups) < 2):
        return max(len(groups) - 1, 0), size, size, False
    first, period = len(groups), 1
    while first and period < _LONG:
        size, kept = groups[first - 1]
        if period * size > _WIDEST and not kept:
            # Only a part of it: the pattern repeats along the rest.
            return first - 1, period * size, period * max(1, _REPEAT // period), True
        if period * size > _WIDEST and period > 1:
            break
        first, period = first - 1, period * size
    varying = any(kept for _, kept in groups[first:])
    return first, period, period, varying


def _lines(values: NDArray[Any], inner: list[int], period: int, varying: bool) -> NDArray[Any]:
    """values: (lines, *sizes of the inner groups, 1 where not kept) -> (lines, period), or (lines, 1) when they do not vary."""
    lines = values.shape[0]
    if not varying:
        return np.ascontiguousarray(values.reshape(lines, 1))
    whole = prod(inner)
    if period == whole:
        return np.ascontiguousarray(np.broadcast_to(values, [lines, *inner]).reshape(lines, period))
    # The first inner group is not kept and only partly in a period.
    pattern = np.broadcast_to(values[:, 0], [lines, *inner[1:]]).reshape(lines, -1)
    return np.ascontiguousarray(np.tile(pattern, (1, period // pattern.shape[1])))
