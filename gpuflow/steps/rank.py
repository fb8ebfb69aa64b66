"""The median, smallest or largest value of a window: noise filters, and grey morphology."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from gpuflow.steps.base import Array, ArraySpec
from gpuflow.steps.neighbours import Windowed


class Median(Windowed, frozen=True):
    """The median of each window, as scipy.ndimage.median_filter has it. Same dtype out; NaN has no place among the values."""

    kind: ClassVar[str] = "median"
    about: ClassVar[str] = "The median of a window around each value."
    examples: ClassVar[tuple[Any, ...]] = ({"size": {"y": 3, "x": 3}},)

    def filtered(self, block: Array, array: ArraySpec, dtype: np.dtype[Any]) -> Array:
        from scipy.ndimage import median_filter

        return median_filter(block, size=self.window(array), mode="nearest")


class Minimum(Windowed, frozen=True):
    """The smallest value of each window: grey erosion. Same dtype out."""

    kind: ClassVar[str] = "minimum"
    about: ClassVar[str] = "The smallest value of a window: erosion."
    examples: ClassVar[tuple[Any, ...]] = ({"size": {"y": 3, "x": 3}},)

    def filtered(self, block: Array, array: ArraySpec, dtype: np.dtype[Any]) -> Array:
        from scipy.ndimage import minimum_filter

        return minimum_filter(block, size=self.window(array), mode="nearest")


class Maximum(Windowed, frozen=True):
    """The largest value of each window: grey dilation. Same dtype out."""

    kind: ClassVar[str] = "maximum"
    about: ClassVar[str] = "The largest value of a window: dilation."
    examples: ClassVar[tuple[Any, ...]] = ({"size": {"y": 3, "x": 3}},)

    def filtered(self, block: Array, array: ArraySpec, dtype: np.dtype[Any]) -> Array:
        from scipy.ndimage import maximum_filter

        return maximum_filter(block, size=self.window(array), mode="nearest")
