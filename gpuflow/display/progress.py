"""How far what counts chunks is: a progress bar on the terminal, a card in a notebook."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from gpuflow.display.live_card import LiveCard, in_notebook


class ProgressBar:
    """One bar a pass, on stderr; nothing where that is no terminal. Use it in a `with` block."""

    def __init__(self, console: Console | None = None) -> None:
        console = console or Console(stderr=True)
        columns = (
            TextColumn("{task.description:>10}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("chunks"),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self._task: TaskID | None = None

    def begin(self, title: str, chunks: int) -> None:
        """A pass over `chunks` chunks begins."""
        self._task = self._progress.add_task(title, total=chunks)

    def advance(self, chunks: int) -> None:
        """So many more have ended."""
        if self._task is not None:
            self._progress.advance(self._task, chunks)

    def __enter__(self) -> ProgressBar:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()


@contextmanager
def shown(progress: Any, title: str) -> Iterator[Any]:
    """What a call of the library counts its chunks with: `progress`; by default a card of that title in a notebook, else nothing."""
    if progress is None and Console().is_jupyter:
        with LiveCard(title, in_notebook()) as live:
            yield live
    else:
        yield progress
