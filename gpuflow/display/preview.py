"""A chunk's values as a picture and a histogram; several side by side, such as before and after a pipeline. Needs matplotlib."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuflow.errors import ConfigError, Problem

_BINS = 64
_CHANNELS = (3, 4)
"""Lengths of a last axis that is taken for colours."""


@dataclass(frozen=True)
class Side:
    """A block with what is known of it. dims: of the block's axes; units: of its values."""

    title: str
    block: NDArray[Any]
    dims: Sequence[str | None] = ()
    units: str = ""


class Preview:
    """Shown by a notebook as an image; `figure` is matplotlib's, `save` writes it."""

    def __init__(self, sides: Sequence[Side]) -> None:
        self.sides = list(sides)

    @cached_property
    def figure(self) -> Any:
        """A column for each side: a picture of the first sample where there is one to be seen, and a histogram. ConfigError without
        matplotlib."""
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ConfigError([Problem("a preview needs matplotlib", hint="pip install 'gpuflow[notebook]'")]) from error
        pictures = [picture_of(side.block, side.dims) for side in self.sides]
        rows = 2 if any(picture is not None for picture in pictures) else 1
        figure = Figure(figsize=(4.6 * len(self.sides), 3.4 * rows), layout="constrained")
        axes = figure.subplots(rows, len(self.sides), squeeze=False)
        for column, (side, picture) in enumerate(zip(self.sides, pictures, strict=True)):
            axes[0, column].set_title(side.title, fontsize="medium")
            if rows == 2:
                _draw_picture(figure, axes[0, column], side, picture)
            _draw_histogram(axes[rows - 1, column], side)
        return figure

    def save(self, path: str) -> None:
        """As an image, of the kind that the file's name says."""
        self.figure.savefig(path)

    def _repr_png_(self) -> bytes:
        data = io.BytesIO()
        self.figure.savefig(data, format="png", dpi=96)
        return data.getvalue()


Picture = tuple[NDArray[Any], str, str, bool]
"""Values (rows, columns) or (rows, columns, channels); names of rows and columns; whether the last axis is colours."""


def picture_of(block: NDArray[Any], dims: Sequence[str | None]) -> Picture | None:
    """The two last axes of the first sample, or these and the colours behind them. None where there are no two. Pure."""
    names = [name or "" for name in dims] or [""] * block.ndim
    colours = block.ndim >= 3 and block.shape[-1] in _CHANNELS
    used = 3 if colours else 2
    if block.ndim < used or not block.size or block.dtype.kind not in "biuf":
        return None
    image = block[(0,) * (block.ndim - used)]
    rows, columns = names[-used], names[1 - used]
    return image, rows, columns, colours


def _draw_picture(figure: Any, axes: Any, side: Side, picture: Picture | None) -> None:
    if picture is None:
        axes.set_axis_off()
        return
    image, rows, columns, colours = picture
    values = np.asarray(image, np.float64 if image.dtype.kind == "f" else image.dtype)
    if colours:
        axes.imshow(values if image.dtype == np.uint8 else _stretched(values[..., :3]), interpolation="nearest")
    else:
        drawn = axes.imshow(values, cmap="viridis", interpolation="nearest", aspect="auto")
        figure.colorbar(drawn, ax=axes, label=side.units)
    axes.set_xlabel(columns)
    axes.set_ylabel(rows)


def _stretched(values: NDArray[Any]) -> NDArray[Any]:
    """To 0..1, as colours have to be."""
    low, high = np.nanmin(values), np.nanmax(values)
    return np.asarray((values - low) / (high - low or 1))


def _draw_histogram(axes: Any, side: Side) -> None:
    values = np.asarray(side.block).ravel()
    if values.dtype.kind not in "biuf":
        axes.set_axis_off()
        return
    values = values.astype(np.float64)
    finite = values[np.isfinite(values)]
    if len(finite):
        axes.hist(finite, bins=_BINS, color="#440154")
    left_out = len(values) - len(finite)
    axes.set_xlabel(side.units + (f"  ({left_out} not finite left out)" if left_out else ""))
    axes.set_ylabel(f"values of {side.block.dtype}")
