"""Which Dask versions late binding was tested with. Pure."""

from __future__ import annotations

import re

OLDEST, NEWEST = (2026, 7, 1), (2026, 8, 999)


def parse(version: str) -> tuple[int, ...]:
    """`"2026.8.0+12.gabc"` -> (2026, 8, 0)."""
    match = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", version)
    return tuple(int(part or 0) for part in match.groups()) if match else ()


def routing_for(version: str, asked: str = "auto") -> str:
    """`late` (park and release) or `strict` (restrict each task to its holders) for a version of distributed."""
    if asked != "auto":
        return asked
    return "late" if OLDEST <= parse(version) <= NEWEST else "strict"
