"""What many parts of a result are computed from, at once: along each axis by itself.

Pure. The parts are all combinations of one range along each axis, as the chunks of a grid are. Where what an operation pulls along an axis
depends on one axis of the part alone, the ranges along all axes say it for every part, and there are few of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


class Coupled(Exception):
    """What is pulled along all axes depends on where along `axis` of the result the part lies: one place there must be taken at a time."""

    def __init__(self, axis: int) -> None:
        super().__init__(axis)
        self.axis = axis


class Inseparable(Exception):
    """What is pulled cannot be said axis by axis."""


@dataclass(frozen=True, slots=True, eq=False)
class Span:
    """Ranges along one axis, one for each place along the result's axis number `axis`; one for all of them where it is None."""

    axis: int | None
    starts: NDArray[np.int64]
    stops: NDArray[np.int64]

    @classmethod
    def fixed(cls, start: int, stop: int) -> Span:
        """The same range for all parts."""
        return cls(None, np.array([start], np.int64), np.array([stop], np.int64))

    def moved(self, by: int) -> Span:
        """All of it, so far to the right."""
        return Span(self.axis, self.starts + by, self.stops + by)

    def around(self, other: Span) -> Span:
        """The smallest ranges around both. Inseparable when they depend on different axes."""
        if None not in (self.axis, other.axis) and self.axis != other.axis:
            raise Inseparable
        axis = other.axis if self.axis is None else self.axis
        return Span(axis, np.minimum(self.starts, other.starts), np.maximum(self.stops, other.stops))

    def pieces(self, size: int) -> tuple[Span, ...]:
        """The same within an axis of this length: where some go around (see around.py), what they have at its other end comes second,
        which is empty for the others."""
        if not ((self.starts < 0) | (self.stops > size)).any():
            return (self,)
        by = np.where(self.starts < 0, size, 0)
        stops = self.stops + by
        one = Span(self.axis, self.starts + by, np.minimum(stops, size))
        return one, Span(self.axis, np.zeros_like(stops), np.maximum(stops - size, 0))

    def at(self, places: Mapping[int, range]) -> Span:
        """At some places along the result's axes only."""
        if self.axis is None:
            return self
        part = slice(places[self.axis].start, places[self.axis].stop)
        return Span(self.axis, self.starts[part], self.stops[part])


Spans = tuple[Span, ...]
"""One for each axis of an array."""
