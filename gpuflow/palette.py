"""Colours that people with colour blindness tell apart (Paul Tol, "Colour schemes", 2021), for cards and the dashboard."""

from __future__ import annotations

from collections.abc import Sequence

PALETTE = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#994455", "#997700", "#6699cc", "#bbbbbb")
"""Further ones repeat."""
MISSING = "#d00000"
IN_MEMORY = "#000000"
"""Of the dot on a chunk that is in a worker's memory: lightness alone tells it from each of PALETTE, as WCAG 2.2 asks (3:1 or more)."""


def colours_of(names: Sequence[str]) -> dict[str, str]:
    """A colour for each, by its place."""
    return {name: PALETTE[number % len(PALETTE)] for number, name in enumerate(names)}
