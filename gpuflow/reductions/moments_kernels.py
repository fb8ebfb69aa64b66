"""Moments of a contiguous block in one pass over memory, compiled by numba.

The block is cut into tiles that stay in cache. A tile is summed twice, for the mean and for the squared deviations from it, lane
by lane in an order of its own, so that the result is the same on every processor; bytes are summed once, exactly. Tiles merge
as in `Moments.merge`. Imported when moments are first taken."""

# mypy: disable-error-code="untyped-decorator, return-value"

from __future__ import annotations

import logging
import os
from math import prod
from typing import Any

import numpy as np
from numba import types
from numba.core import config
from numba.extending import overload
from numpy.typing import NDArray

from gpuflow.backends.lean_numba import njit

logger = logging.getLogger(__name__)

_LANES, _LINES, _BYTE_LINES = 512, 64, 512
"""A tile: 128 KiB of float32, within the second-level cache, or 256 KiB of bytes, whose sums times their number stay below 2**53;
so long that adding up its lanes does not count."""
_LONG = 16 * _LANES
"""A run of values that is cut into lines; a shorter one is a line itself."""


def accumulate(values: NDArray[Any], kept: tuple[bool, ...], fields: tuple[NDArray[Any], ...]) -> None:
    """Adds the moments of a block to `fields` (count, mean, m2, minimum, maximum: flat, one entry per kept index).

    values: C-contiguous, real, not empty; kept: for each axis, whether its indices are on their own."""
    span, period, rows, lanes = _loops(values.shape, kept)
    half = True if values.dtype == np.float16 else None
    flat = values.reshape(-1)
    flat = flat.view(np.uint16) if half else flat.view(np.uint8) if flat.dtype == np.bool_ else flat.view()
    # One type for all, so that it is compiled once.
    flat.flags.writeable = False
    _moments(flat, half, span, period, rows, lanes, *fields)


def _loops(shape: tuple[int, ...], kept: tuple[bool, ...]) -> tuple[int, int, NDArray[np.int64], NDArray[np.int64]]:
    """(elements per row, elements per line, kept index at which each row starts, kept index of each lane within it)."""
    groups: list[list[Any]] = []
    for size, keep in zip(shape, kept, strict=True):
        if groups and groups[-1][1] == keep:
            groups[-1][0] *= size
        else:
            groups.append([size, keep])
    first, period = len(groups), 1
    if groups and not groups[-1][1] and groups[-1][0] >= _LONG:
        return groups[-1][0], _LANES, _index(groups[:-1], 1), np.zeros(_LANES, np.int64)
    while first and period < _LANES:
        size, keep = groups[first - 1]
        if not keep and period * size > _LONG:
            break
        first, period = first - 1, period * size
    lanes = _index(groups[first:], 1)
    stride = prod(size for size, keep in groups[first:] if keep)
    span = period
    if first and not groups[first - 1][1]:
        # Lines of a few short patterns each.
        span, first = period * groups[first - 1][0], first - 1
        lanes = np.tile(lanes, max(1, _LANES // period))
    return span, lanes.size, _index(groups[:first], stride), lanes


def _index(groups: list[list[Any]], stride: int) -> NDArray[np.int64]:
    """The kept index of each combination of indices of `groups`, times `stride`."""
    index = np.zeros(1, np.int64)
    for size, keep in reversed(groups):
        steps = np.arange(size, dtype=np.int64) * stride if keep else np.zeros(size, np.int64)
        index = (steps[:, np.newaxis] + index).ravel()
        stride *= size if keep else 1
    return index


def _compiled(function: Any) -> Any:
    """Compiles per dtype when called; kept in `GPUFLOW_CACHE` if set, else where numba keeps what it compiles."""
    options = {"nogil": True, "error_model": "numpy"}
    before, config.CACHE_DIR = config.CACHE_DIR, os.environ.get("GPUFLOW_CACHE") or config.CACHE_DIR
    try:
        return njit(cache=True, **options)(function)
    except (RuntimeError, OSError) as error:
        logger.warning("moments are compiled again in every process: %s", error)
        return njit(**options)(function)
    finally:
        config.CACHE_DIR = before


def _value(element: Any, half: Any) -> Any:
    """An element as float64."""


@overload(_value, strict=False)
def _value_of(element: Any, half: Any) -> Any:
    if isinstance(half, types.NoneType):
        return lambda element, half: np.float64(element)
    return lambda element, half: np.float64(_half(element))


def _compared(element: Any, half: Any) -> Any:
    """An element as what it is compared as: float32 as it is, of which a vector has twice as many."""


@overload(_compared, strict=False)
def _compared_of(element: Any, half: Any) -> Any:
    if element == types.float32:
        return lambda element, half: element
    return lambda element, half: _value(element, half)


def _rows(x: Any, lanes: int) -> Any:
    """Three rows of lanes for what elements of x are compared as."""


@overload(_rows, strict=False)
def _rows_of(x: Any, lanes: int) -> Any:
    if x.dtype == types.float32:
        return lambda x, lanes: np.empty((3, lanes), np.float32)
    return lambda x, lanes: np.empty((3, lanes))


@njit(error_model="numpy")
def _half(bits: int) -> float:
    """The value of a half float: its exponent and mantissa moved into those of a float32, and scaled."""
    magnitude = np.int32((bits & 0x7FFF) << 13).view(np.float32) * np.float32(2.0**112)
    if (bits & 0x7C00) == 0x7C00:
        magnitude = np.float32(np.nan) if bits & 0x3FF else np.float32(np.inf)
    return -magnitude if bits & 0x8000 else magnitude


@njit(error_model="numpy")
def _sum_all(x: Any, half: Any, start: int, stride: int, lines: int, total: Any) -> bool:
    """Per lane: sum of all. Returns whether none is NaN, for certain."""
    total[:] = 0.0
    for line in range(lines):
        values = x[start + line * stride : start + line * stride + total.size]
        for lane in range(total.size):
            total[lane] += _value(values[lane], half)
    whole = 0.0
    for lane in range(total.size):
        whole += total[lane]
    return whole == whole


@njit(error_model="numpy")
def _sum_lines(x: Any, half: Any, start: int, stride: int, lines: int, total: Any) -> int:
    """Per lane: sum of what is not NaN. Returns the number of NaN.

    Loops here update one or two arrays, by way of local names: LLVM vectorizes no others, since the arrays might overlap."""
    total[:] = 0.0
    missing = 0
    for line in range(lines):
        values = x[start + line * stride : start + line * stride + total.size]
        for lane in range(total.size):
            value = _value(values[lane], half)
            total[lane] += value if value == value else 0.0
        for lane in range(total.size):
            value = _value(values[lane], half)
            missing += value != value
    return missing


@njit(error_model="numpy")
def _count_lines(x: Any, half: Any, start: int, stride: int, lines: int, count: Any) -> None:
    """Per lane: how many are not NaN."""
    count[:] = 0.0
    for line in range(lines):
        values = x[start + line * stride : start + line * stride + count.size]
        for lane in range(count.size):
            value = _value(values[lane], half)
            count[lane] += 1.0 if value == value else 0.0


@njit(error_model="numpy")
def _extreme_lines(x: Any, half: Any, start: int, stride: int, lines: int, low: Any, high: Any, other: Any) -> None:
    """Per lane: least and greatest; a NaN is neither. `other` is room for lanes.

    Of two lines at once, by way of `other`: where the same place is read and written, LLVM leaves out writing what is there already, by
    masked stores, which take six times as long."""
    low[:], high[:] = np.inf, -np.inf
    for line in range(0, lines, 2):
        first = start + line * stride
        second = first + stride if line + 1 < lines else first
        values, others = x[first : first + low.size], x[second : second + low.size]
        for lane in range(low.size):
            value, least = _compared(values[lane], half), low[lane]
            other[lane] = value if value < least else least
        for lane in range(low.size):
            value, least = _compared(others[lane], half), other[lane]
            low[lane] = value if value < least else least
        for lane in range(low.size):
            value, greatest = _compared(values[lane], half), high[lane]
            other[lane] = value if value > greatest else greatest
        for lane in range(low.size):
            value, greatest = _compared(others[lane], half), other[lane]
            high[lane] = value if value > greatest else greatest


@njit(error_model="numpy")
def _square_all(x: Any, half: Any, start: int, stride: int, lines: int, mean: Any, total: Any) -> None:
    """Per lane: sum of squared deviations from `mean`."""
    total[:] = 0.0
    for line in range(lines):
        values = x[start + line * stride : start + line * stride + total.size]
        for lane in range(total.size):
            deviation = _value(values[lane], half) - mean[lane]
            total[lane] += deviation * deviation


@njit(error_model="numpy")
def _square_lines(x: Any, half: Any, start: int, stride: int, lines: int, mean: Any, total: Any) -> None:
    """Per lane: sum of squared deviations from `mean`, of what is not NaN."""
    total[:] = 0.0
    for line in range(lines):
        values = x[start + line * stride : start + line * stride + total.size]
        for lane in range(total.size):
            value, sum_before = _value(values[lane], half), total[lane]
            deviation = value - mean[lane]
            total[lane] = sum_before + (deviation * deviation if value == value else 0.0)


@njit(error_model="numpy")
def _sum_byte_lines(x: Any, start: int, stride: int, lines: int, total: Any, square: Any, low: Any, high: Any) -> None:
    """Per lane of one-byte integers: exact sums of values and squares, extrema."""
    total[:], square[:], low[:], high[:] = 0, 0, 255, -128
    for line in range(lines):
        values = x[start + line * stride : start + line * stride + total.size]
        for lane in range(total.size):
            value = np.int32(values[lane])
            total[lane] += value
        for lane in range(total.size):
            value = np.int32(values[lane])
            square[lane] += np.int32(value * value)
        for lane in range(total.size):
            small, least, greatest = np.int16(values[lane]), low[lane], high[lane]
            low[lane] = small if small < least else least
            high[lane] = small if small > greatest else greatest


def _tile(x: Any, half: Any, start: Any, stride: Any, lines: Any, lanes: Any, part: Any, work: Any) -> Any:
    """Adds a tile to `part` (rows: count, sum, squares, least, greatest, rest of the sum) at the indices that `lanes` names.

    Returns whether the squares are of the values themselves, and not of their deviations from the mean."""


@overload(_tile)
def _tile_of(x: Any, half: Any, start: Any, stride: Any, lines: Any, lanes: Any, part: Any, work: Any) -> Any:
    return _byte_tile if x.dtype.bitwidth == 8 else _wide_tile


def _wide_tile(x: Any, half: Any, start: Any, stride: Any, lines: Any, lanes: Any, part: Any, work: Any) -> Any:
    size = lanes.size
    sums, extremes = work
    total, count, rests, mean = sums[0][:size], sums[1][:size], sums[2][:size], sums[3][:size]
    low, high, other = extremes[0][:size], extremes[1][:size], extremes[2][:size]
    missing = 0 if _sum_all(x, half, start, stride, lines, total) else _sum_lines(x, half, start, stride, lines, total)
    _extreme_lines(x, half, start, stride, lines, low, high, other)
    if missing:
        _count_lines(x, half, start, stride, lines, count)
    else:
        count[:] = lines
    _fold(lanes, count, part[0])
    _fold(lanes, total, part[1])
    _fold_extremes(lanes, low, high, part[3], part[4])
    for lane in range(size):
        mean[lane] = part[1][lanes[lane]] / max(part[0][lanes[lane]], 1.0)
    # What rounding took from a sum of many lanes: it would not be small against the spread around a large mean.
    for lane in range(size):
        rest = total[lane] - count[lane] * mean[lane]
        rests[lane] = rest if abs(rest) < np.inf else 0.0
    _fold(lanes, rests, part[5])
    for lane in range(size):
        mean[lane] += part[5][lanes[lane]] / max(part[0][lanes[lane]], 1.0)
    if missing:
        _square_lines(x, half, start, stride, lines, mean, total)
    else:
        _square_all(x, half, start, stride, lines, mean, total)
    _fold(lanes, total, part[2])
    return False


def _byte_tile(x: Any, half: Any, start: Any, stride: Any, lines: Any, lanes: Any, part: Any, work: Any) -> Any:
    sums, extremes = np.empty((2, lanes.size), np.int32), np.empty((2, lanes.size), np.int16)
    _sum_byte_lines(x, start, stride, lines, sums[0], sums[1], extremes[0], extremes[1])
    count = work[0][0]
    count[:] = lines
    _fold(lanes, count, part[0])
    _fold(lanes, sums[0], part[1])
    _fold(lanes, sums[1], part[2])
    _fold_extremes(lanes, extremes[0], extremes[1], part[3], part[4])
    return True


@njit(error_model="numpy")
def _fold(lanes: Any, values: Any, sums: Any) -> None:
    """Adds lanes up by their kept index, neighbours with the same one first."""
    lane = 0
    while lane < lanes.size:
        index, total = lanes[lane], 0.0
        while lane < lanes.size and lanes[lane] == index:
            total += values[lane]
            lane += 1
        sums[index] += total


@njit(error_model="numpy")
def _fold_extremes(lanes: Any, low: Any, high: Any, lows: Any, highs: Any) -> None:
    lane = 0
    while lane < lanes.size:
        index, least, greatest = lanes[lane], np.inf, -np.inf
        while lane < lanes.size and lanes[lane] == index:
            least, greatest = min(least, float(low[lane])), max(greatest, float(high[lane]))
            lane += 1
        lows[index], highs[index] = min(lows[index], least), max(highs[index], greatest)


@njit(error_model="numpy")
def _merge(index: int, at: int, squares: bool, part: Any, fields: Any) -> None:
    """`Moments.merge` of entry `at` of a tile into entry `index`; the tile's is empty after it."""
    count, mean, m2, minimum, maximum = fields
    right, left = part[0, at], float(count[index])
    if right > 0:
        here = part[1, at] / right + part[5, at] / right
        # Of bytes: whole numbers below 2**53, rounded in the division only.
        spread = (right * part[2, at] - part[1, at] * part[1, at]) / right if squares else part[2, at]
        if left == 0:
            mean[index], m2[index] = here, spread
        else:
            share, delta = right / (left + right), here - mean[index]
            mean[index] += delta * share
            m2[index] += spread + delta * delta * (left * share)
        count[index] += np.int64(right)
        minimum[index] = min(minimum[index], part[3, at])
        maximum[index] = max(maximum[index], part[4, at])
    part[0, at], part[1, at], part[2, at], part[3, at], part[4, at], part[5, at] = 0.0, 0.0, 0.0, np.inf, -np.inf, 0.0


@njit(error_model="numpy")
def _band(
    x: Any, half: Any, start: int, lines: int, width: int, stride: int, row: int, lanes: Any, scratch: Any, fields: Any
) -> None:
    """A few whole lines, or a broken one, tile by tile."""
    part, work = scratch
    for lane in range(0, width, _LANES):
        some = lanes[lane : min(lane + _LANES, width)]
        squares = _tile(x, half, start + lane, stride, lines, some, part, work)
        for number, at in enumerate(some):
            if not number or at != some[number - 1]:
                _merge(row + at, at, squares, part, fields)


@_compiled
def _moments(x, half, span, period, rows, lanes, count, mean, m2, minimum, maximum):  # type: ignore[no-untyped-def]
    part = np.zeros((6, lanes.max() + 1))
    part[3, :], part[4, :] = np.inf, -np.inf
    scratch, fields = (part, (np.empty((4, _LANES)), _rows(x, _LANES))), (count, mean, m2, minimum, maximum)
    most = _BYTE_LINES if x.itemsize == 1 else _LINES
    for number in range(rows.size):
        position = 0
        while position < span:
            # Whole lines, and at the end a broken one.
            lines, width = min(most, (span - position) // period), period
            if lines == 0:
                lines, width = 1, span - position
            _band(x, half, number * span + position, lines, width, period, rows[number], lanes, scratch, fields)
            position += lines * width
