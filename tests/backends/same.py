"""Equal to the bit, but for what a NaN carries, and what nobody defines."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def assert_same(
    actual: NDArray[Any], expected: NDArray[Any], source: np.dtype[Any] | None = None, ulp: int = 0, either_zero: bool = False
) -> None:
    """source: the dtype that was cast; floats in uint32 are then compared where NumPy's own loops agree: they fit or are 0.

    either_zero: the sign of a zero does not count."""
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
    if expected.dtype == np.uint32 and source is not None and source.kind == "f":
        defined = (expected != 0) & (expected != 2**31) & (actual != 0)
        actual, expected = actual[defined], expected[defined]
    if expected.dtype.kind != "f":
        np.testing.assert_array_equal(actual, expected)
        return
    if either_zero:
        actual, expected = actual + 0, expected + 0
    bits = np.dtype(f"i{expected.dtype.itemsize}")
    missing = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(actual), missing)
    one, other = (np.where(missing, expected.dtype.type(0), array).view(bits) for array in (actual, expected))
    if ulp:
        np.testing.assert_array_less(np.abs(_ordered(one) - _ordered(other)), ulp + 1)
    elif not np.array_equal(one, other):
        where = np.flatnonzero(one.ravel() != other.ravel())[:5]
        raise AssertionError(f"{where}: {actual.ravel()[where]} instead of {expected.ravel()[where]}")


def _ordered(bits: NDArray[Any]) -> NDArray[np.int64]:
    """Bits as integers in the order of the floats; both zeros are 0."""
    wide = bits.astype(np.int64)
    return np.where(wide < 0, np.iinfo(bits.dtype).min - wide, wide)
