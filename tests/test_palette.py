"""The colours: what is drawn upon a colour is told from it without seeing colours."""

from __future__ import annotations

import pytest

from gpuflow.palette import IN_MEMORY, MISSING, PALETTE


def luminance(colour: str) -> float:
    """WCAG 2.2's relative luminance."""
    parts = (int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5))
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("colour", [*PALETTE, MISSING])
def test_a_dot_is_seen_on_it(colour: str) -> None:
    lighter, darker = sorted((luminance(colour), luminance(IN_MEMORY)), reverse=True)
    assert (lighter + 0.05) / (darker + 0.05) >= 3
