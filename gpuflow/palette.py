"""Colours that people with colour blindness tell apart (Paul Tol, "Colour schemes", 2021), for cards and the dashboard."""

from __future__ import annotations

from collections.abc import Sequence

PALETTE = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#994455", "#997700", "#6699cc", "#bbbbbb")
"""Further ones repeat."""
MISSING = "#d00000"


def colours_of(names: Sequence[str]) -> dict[str, str]:
    """A colour for each, by its place."""
    return {name: PALETTE[number % len(PALETTE)] for number, name in enumerate(names)}
