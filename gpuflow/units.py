"""Bytes, seconds and numbers of things as people read and write them. Pure."""

from __future__ import annotations

import re
from fractions import Fraction

_FACTORS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}


def format_nbytes(nbytes: float) -> str:
    """`1536` -> `1.5 KiB`. Binary units (IEC 80000-13)."""
    if abs(nbytes) < 1024:
        return f"{nbytes:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        nbytes /= 1024
        if abs(nbytes) < 1023.95:  # what rounds to 1024.0 is 1.0 of the next unit
            return f"{nbytes:.1f} {unit}"
    return f"{nbytes / 1024:.1f} TiB"


def format_seconds(seconds: float) -> str:
    """`0.0123` -> `12 ms`, `75` -> `1 min 15 s`."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"


def counted(number: int, what: str) -> str:
    """`1 worker`, `2 workers`, `1,000 chunks`."""
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def parse_nbytes(text: str | int) -> int:
    """`"4 MiB"` -> 4194304. ValueError when it is not a size."""
    if isinstance(text, int):
        return text
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].upper() not in _FACTORS:
        raise ValueError(f"{text!r} is not a size; write it like 4MiB")
    return round(Fraction(match[1]) * _FACTORS[match[2].upper()])
