"""A progress bar on the terminal, for whatever counts chunks."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class ProgressBar:
    """One bar a pass, on stderr; nothing where stderr is no terminal. Use it in a `with` block."""

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
