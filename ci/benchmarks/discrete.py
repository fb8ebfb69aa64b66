"""Discrete events: the very same router as the scheduler's, over nodes whose threads take what is in their hands, one task after another.

The scheduler is one server: each task that ends and each look at the nodes cost it some time, and what ends meanwhile waits for the next
look. Same input, same events: there is no clock and no chance in it."""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from typing import Any, TypeVar

from gpuflow.cluster.fleet import WorkerView
from gpuflow.cluster.routing import Release, Router, Waiting

T = TypeVar("T")

_LOOK_AGAIN_SECONDS = 0.02  # as the scheduler's plugin does while threads idle


@dataclass
class _Node:
    """assigned: released to it and, for all that the scheduler knows, not ended; arrived: those of them that it has not begun."""

    threads: int
    view: WorkerView
    assigned: dict[object, Waiting] = field(default_factory=dict)
    arrived: deque[Waiting] = field(default_factory=deque)
    running: int = 0


class Cluster:
    """seconds: what a task takes on a node, shipping included. ended: called with each task that ends, the node and its seconds, when the
    scheduler sees it. task_seconds, look_seconds: the scheduler's for a task, and for each node whenever it looks at what to release.

    router_seconds: real processor time of the router."""

    def __init__(
        self,
        seconds: Callable[[Waiting, str], float],
        ended: Callable[[Waiting, str, float], None],
        *,
        task_seconds: float = 0.0,
        look_seconds: float = 0.0,
    ) -> None:
        self._seconds, self._ended_at, self._task_seconds, self._look_seconds = seconds, ended, task_seconds, look_seconds
        self.router, self.now, self.last_end, self.router_seconds = Router(), 0.0, 0.0, 0.0
        self.log: list[Release] = []
        self._nodes: dict[str, _Node] = {}
        self._tasks: dict[object, Waiting] = {}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        self._ended: list[tuple[Waiting, str, _Node, float]] = []
        self._busy_until, self._look_at = 0.0, float("inf")

    def at(self, when: float, happens: Callable[[], None]) -> None:
        """Have something happen."""
        heapq.heappush(self._events, (when, next(self._numbers), happens))

    def run(self) -> None:
        """Until nothing happens any more."""
        while self._events:
            self.now, _, happens = heapq.heappop(self._events)
            happens()

    # -- nodes and tasks that come and go -------------------------------------------------------------------------------------------

    def join(self, name: str, threads: int, device: str = "cpu") -> None:
        """A node with one worker of the same name."""
        self._nodes[name] = _Node(threads, WorkerView(name, name, threads, 0, device))
        self._look(self.now)

    def lose(self, name: str) -> None:
        """Its tasks wait again, those too whose end the scheduler has not yet seen."""
        for task in self._nodes.pop(name).assigned.values():
            self._timed(self.router.park, task)
        self._look(self.now)

    def park(self, tasks: Iterable[Waiting]) -> None:
        """Tasks arrive at the scheduler."""
        for task in tasks:
            self._tasks[task.key] = task
            self._timed(self.router.park, task)
        self._look(self.now)

    # -- the scheduler --------------------------------------------------------------------------------------------------------------

    def _look(self, at: float) -> None:
        """Look at what can be released: at `at`, or as soon as the scheduler has time."""
        at = max(at, self._busy_until)
        if at < self._look_at:
            self._look_at = at
            self.at(at, partial(self._release, at))

    def _release(self, at: float) -> None:
        if at != self._look_at:
            return  # an earlier look was asked for later
        self._look_at = float("inf")
        self._take_ended()
        for release in self._timed(self.router.release, [self._view(name, node) for name, node in self._nodes.items()]):
            self.log.append(release)
            node, task = self._nodes[release.worker], self._tasks[release.key]
            node.assigned[task.key] = task
            self.at(self._busy_until, partial(self._arrive, release.worker, node, task))
        idle = any(len(node.assigned) < node.threads for node in self._nodes.values())
        if self.router.waiting and idle and not self._hopeless():
            self._look(self.now + _LOOK_AGAIN_SECONDS)

    def _view(self, name: str, node: _Node) -> WorkerView:
        if node.view.processing != len(node.assigned):
            node.view = replace(node.view, processing=len(node.assigned))
        return node.view

    def _hopeless(self) -> bool:
        """Nothing runs or comes, and what is parked has no live holder."""
        nothing = not self._events and not any(node.assigned for node in self._nodes.values())
        return nothing and len(self.router.stranded(list(self._nodes))) == self.router.waiting

    def _take_ended(self) -> None:
        ended = [entry for entry in self._ended if self._nodes.get(entry[1]) is entry[2]]  # a lost node's results went with it
        self._ended = []
        for task, name, node, seconds in ended:
            self._timed(self.router.finished, task.key, seconds)
            del node.assigned[task.key]
            self._ended_at(self._tasks.pop(task.key), name, seconds)
        self._busy_until = self.now + self._task_seconds * len(ended) + self._look_seconds * len(self._nodes)

    def _timed(self, call: Callable[..., T], *args: Any) -> T:
        began = time.thread_time()
        answer = call(*args)
        self.router_seconds += time.thread_time() - began
        return answer

    # -- the nodes ------------------------------------------------------------------------------------------------------------------

    def _arrive(self, name: str, node: _Node, task: Waiting) -> None:
        if self._nodes.get(name) is node:
            node.arrived.append(task)
            self._begin(name, node)

    def _begin(self, name: str, node: _Node) -> None:
        """Start what the free threads can take."""
        while node.arrived and node.running < node.threads:
            task = node.arrived.popleft()
            node.running += 1
            seconds = self._seconds(task, name)
            self.at(self.now + seconds, partial(self._end, name, node, task, seconds))

    def _end(self, name: str, node: _Node, task: Waiting, seconds: float) -> None:
        if self._nodes.get(name) is not node:
            return
        node.running -= 1
        self.last_end = self.now
        self._ended.append((task, name, node, seconds))
        self._begin(name, node)
        self._look(self.now)
