"""A progress bar on the terminal or in a notebook, for whatever counts chunks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class ProgressBar:
    """One bar a pass, on stderr; nothing where that is neither a terminal nor a notebook. Use it in a `with` block."""

    def __init__(self, console: Console | None = None) -> None:
        console = console or Console(stderr=True)
        columns = (
            TextColumn("{task.description:>10}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("chunks"),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=console, disable=not (console.is_terminal or console.is_jupyter))
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
def shown(progress: Any) -> Iterator[Any]:
    """What a call of the library counts its chunks with: `progress`; by default a bar in a notebook that can show one, else nothing."""
    if progress is None and Console().is_jupyter and find_spec("ipywidgets"):
        with ProgressBar(Console()) as bar:
            yield bar
    else:
        yield progress
