"""Tasks that a worker was given and has not begun, taken back when it pauses or is about to leave.

Dask moves such tasks by stealing, but never one that is pinned to its worker. So we ask the worker what stealing asks, in its protocol:
it gives the task back if it has not begun it, and what has begun goes on to its end. Who asked is seen by the stimulus."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

from distributed import Scheduler

_STIMULUS = "gpuflow-recall-"
_GIVEN_BACK = frozenset({"ready", "constrained", "waiting", "released", None})
"""States in which a worker has a task that it will not run; with the last two it never had it, or does not remember."""


class Recall:
    """One a scheduler. Answers to stealing's own questions go where they went before."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._former: Callable[..., Any] | None = scheduler.stream_handlers.get("steal-response")
        self._numbers = count()
        scheduler.stream_handlers["steal-response"] = self._answered

    def ask(self, worker: str, is_mine: Callable[[Any], bool]) -> None:
        """Have `worker` give back its tasks whose keys are mine."""
        for task in list(self._scheduler.workers[worker].processing):
            if is_mine(task.key):
                question = {"op": "steal-request", "key": task.key, "stimulus_id": f"{_STIMULUS}{next(self._numbers)}"}
                self._scheduler.stream_comms[worker].send(question)

    def _answered(self, *, key: Any, state: str | None, stimulus_id: str, worker: str) -> None:
        if not stimulus_id.startswith(_STIMULUS):
            if self._former is not None:
                self._former(key=key, state=state, stimulus_id=stimulus_id, worker=worker)
            return
        task = self._scheduler.tasks.get(key)
        if state not in _GIVEN_BACK or task is None or task.processing_on is None or task.processing_on.address != worker:
            return
        self._scheduler.transitions({key: "released"}, stimulus_id=stimulus_id)
