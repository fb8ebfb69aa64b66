"""The median, smallest or largest value of a window: noise filters, and grey morphology."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from gpuflow.steps.base import Array, ArraySpec
from gpuflow.steps.neighbours import Windowed


class Median(Windowed, frozen=True):
    """The median of each window, as scipy.ndimage.median_filter has it. Same dtype out; NaN has no place among the values."""

    kind: ClassVar[str] = "median"

    def filtered(self, block: Array, array: ArraySpec, dtype: np.dtype[Any]) -> Array:
        from scipy.ndimage import median_filter

        return median_filter(block, size=self.window(array), mode="nearest")


class Minimum(Windowed, frozen=True):
    """The smallest value of each window: grey erosion. Same dtype out."""

    kind: ClassVar[str] = "minimum"

    def filtered(self, block: Array, array: ArraySpec, dtype: np.dtype[Any]) -> Array:
        from scipy.ndimage import minimum_filter

        return minimum_filter(block, size=self.window(array), mode="nearest")


class Maximum(Windowed, frozen=True):
    """The largest value of each window: grey dilation. Same dtype out."""

    kind: ClassVar[str] = "maximum"

    def filtered(self, block: Array, array: ArraySpec, dtype: np.dtype[Any]) -> Array:
        from scipy.ndimage import maximum_filter

        return maximum_filter(block, size=self.window(array), mode="nearest")
