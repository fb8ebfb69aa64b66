"""What a doctor finds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """problem: what is wrong, in words; items: the files, chunks or datasets that it is wrong with; remedy: what to do.

    serious: whether data or work is in danger; else something is merely slower, or is settled by itself later."""

    problem: str
    remedy: str
    items: tuple[str, ...] = ()
    serious: bool = True


def found(problem: str, remedy: str, items: Sequence[str], *, serious: bool = True) -> list[Finding]:
    """One finding about all `items`, none when there are none."""
    return [Finding(problem, remedy, tuple(items), serious)] if items else []
