"""How far a call is, as a card that a notebook keeps up to date meanwhile. Nothing but IPython is needed, which a notebook has."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from gpuflow.display.card import bar, card, line
from gpuflow.palette import PALETTE
from gpuflow.units import counted, format_seconds

_EVERY_SECONDS = 0.25
_DONE, _LEFT = "done", "to do"
_COLOURS = {_DONE: PALETTE[2], _LEFT: "#88888844"}


class LiveCard:
    """Of passes over chunks, told as `Progress`. show: takes HTML in place of the last; clock: seconds.

    When its `with` block ends, the card makes room for what the call returns; after an error it stays, and says how far the call came."""

    def __init__(self, title: str, show: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._title, self._show, self._clock = title, show, clock
        self._passes: list[list[Any]] = []  # title, chunks, ended, began, lasted
        self._drawn = -_EVERY_SECONDS

    def begin(self, title: str, chunks: int) -> None:
        """A pass over `chunks` chunks begins."""
        self._passes.append([title, chunks, 0, self._clock(), 0.0])
        self._draw()

    def advance(self, chunks: int) -> None:
        """So many more have ended."""
        now, current = self._clock(), self._passes[-1]
        current[2] += chunks
        current[4] = now - current[3]
        if now - self._drawn >= _EVERY_SECONDS or current[2] >= current[1]:
            self._draw()

    def _draw(self) -> None:
        self._drawn = self._clock()
        parts = []
        for title, chunks, ended, _, seconds in self._passes:
            parts.append(line(f"{title}: {ended:,} of {counted(chunks, 'chunk')}{_times(ended, chunks, seconds)}"))
            parts.append(bar({_DONE: float(ended), _LEFT: float(max(chunks - ended, 0))}, _COLOURS))
        self._show(card(self._title, *parts))

    def __enter__(self) -> LiveCard:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is None and self._passes:
            self._show("")


def _times(ended: int, chunks: int, seconds: float) -> str:
    """What it took, and about what is left at that pace."""
    if not ended:
        return ""
    left = f", about {format_seconds(seconds / ended * (chunks - ended))} to go" if ended < chunks else ""
    return f" in {format_seconds(seconds)}{left}"


def in_notebook() -> Callable[[str], None]:
    """Shows HTML below the cell that runs, in place of what it showed before."""
    from IPython.display import HTML, display

    shown: list[Any] = []

    def show(html: str) -> None:
        if shown:
            shown[0].update(HTML(html))
        else:
            shown.append(display(HTML(html), display_id=True))

    return show
