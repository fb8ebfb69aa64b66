"""What lies beyond the edges of an array, by SciPy's names, and blocks with so much of it around them as is asked for.

Pure. Source of the modes: scipy.ndimage's documentation, of `reflect` (d c b a | a b c d | d c b a) and the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gpuflow.steps.around import around, span_around
from gpuflow.steps.base import Array, ArraySpec, Namespace, Region
from gpuflow.steps.spans import Span, Spans

Mode = Literal["reflect", "constant", "nearest", "mirror", "wrap"]

_OF_NUMPY = {"reflect": "symmetric", "constant": "constant", "nearest": "edge", "mirror": "reflect", "wrap": "wrap"}

Widths = int | NDArray[np.int64]
Halo = Sequence[tuple[int, int]]
"""By axis: how many values before and after a place its result depends on."""


def with_halo(array: ArraySpec, region: Region, halo: Halo, mode: Mode) -> Region:
    """`region` with its halo, and what the values beyond an edge are taken from, as far as it lies within the array; in the mode wrap it
    goes around."""
    parts = []
    for part, size, (before, after) in zip(region, array.shape, halo, strict=True):
        first, last = part.start - before, part.stop + after
        if mode == "wrap":
            parts.append(around(first, last, size))
            continue
        under, over = max(0, -first), max(0, last - size)
        if mode in ("reflect", "mirror"):
            first, last = min(first, size - over - 1) if over else first, max(last, under + 1) if under else last
        # At least the place at the edge, also for a region that lies beyond it.
        parts.append(slice(max(0, min(first, size - 1)), min(size, max(last, 1))))
    return tuple(parts)


def spans_with_halo(array: ArraySpec, spans: Spans, halo: Sequence[tuple[Widths, Widths]], mode: Mode) -> Spans:
    """`with_halo` of many regions at once; the halo too may be another for each."""
    parts = []
    for span, size, (before, after) in zip(spans, array.shape, halo, strict=True):
        first, last = span.starts - before, span.stops + after
        if mode == "wrap":
            parts.append(span_around(span.axis, first, last, size))
            continue
        under, over = np.maximum(0, -first), np.maximum(0, last - size)
        if mode in ("reflect", "mirror"):
            mirrored = np.minimum(first, size - over - 1), np.maximum(last, under + 1)
            first, last = np.where(over > 0, mirrored[0], first), np.where(under > 0, mirrored[1], last)
        parts.append(Span(span.axis, np.maximum(0, np.minimum(first, size - 1)), np.minimum(size, np.maximum(last, 1))))
    return tuple(parts)


def padded(xp: Namespace, block: Array, array: ArraySpec, region: Region, halo: Halo, mode: Mode, value: float = 0.0) -> Array:
    """The part `region` of the array with its halo all around. block: the part `with_halo` of it. value: beyond the edges in the mode
    constant."""
    widths, inner = [], []
    have = with_halo(array, region, halo, mode)
    for part, there, size, (before, after) in zip(region, have, array.shape, halo, strict=True):
        first, last = part.start - before, part.stop + after
        if mode == "wrap" and last - first < size:  # it is all there
            widths.append((0, 0))
            inner.append(slice(0, last - first))
            continue
        widths.append((max(0, -first), max(0, last - size)))
        offset = first - there.start + widths[-1][0]
        inner.append(slice(offset, offset + last - first))
    options = {"constant_values": value} if mode == "constant" else {}
    wide = xp.pad(block, widths, mode=_OF_NUMPY[mode], **options) if any(map(any, widths)) else block
    return wide[tuple(inner)]
