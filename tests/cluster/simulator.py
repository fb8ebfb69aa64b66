"""A cluster without Dask or time: workers with threads take what the router releases, and shipping costs bytes over a rate."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import count

from gpuflow.cluster.routing import LOCAL, Release, Router, Waiting, WorkerView

COMPUTE, TRANSFER, LATENCY = 100e6, 500e6, 0.002
"""bytes/s, bytes/s, s: close to what the router assumes before it has measured, so that the tests are about its decisions."""
LOOK_AGAIN = 0.02
"""As the scheduler's plugin does while threads idle."""


@dataclass
class Simulation:
    """`threads` of each node; every node has one worker of the same name. seconds: what a task takes on its own node."""

    threads: Mapping[str, int]
    seconds: Callable[[Waiting], float]
    router: Router = field(default_factory=Router)
    now: float = 0.0
    reasons: Counter[str] = field(default_factory=Counter)
    by_node: Counter[str] = field(default_factory=Counter)
    log: list[Release] = field(default_factory=list)
    slow: Mapping[str, float] = field(default_factory=dict)
    """How much longer a task takes on a node than on the others."""

    def run(self, tasks: list[Waiting]) -> float:
        """Makespan of the tasks."""
        parked = {task.key: task for task in tasks}
        for task in tasks:
            self.router.park(task)
        queued: dict[str, list[Waiting]] = {node: [] for node in self.threads}
        running: dict[str, int] = dict.fromkeys(self.threads, 0)
        events: list[tuple[float, int, str, Waiting, float]] = []
        numbers = count()
        while parked:
            views = [WorkerView(n, n, t, len(queued[n]) + running[n]) for n, t in sorted(self.threads.items())]
            for release in self.router.release(views):
                self._note(release)
                queued[release.worker].append(parked[release.key])
            for node, threads in self.threads.items():
                while queued[node] and running[node] < threads:
                    task = queued[node].pop(0)
                    running[node] += 1
                    cost = self.seconds(task) * self.slow.get(node, 1.0) + (
                        0.0 if node in task.holders else LATENCY + task.nbytes / TRANSFER
                    )
                    heapq.heappush(events, (self.now + cost, next(numbers), node, task, cost))
            idle = any(running[node] < threads for node, threads in self.threads.items())
            if idle and self.router.waiting and (not events or events[0][0] > self.now + LOOK_AGAIN):
                self.now += LOOK_AGAIN
                assert self.now < 1e4, "nothing goes on"
                continue
            self.now, _, node, task, cost = heapq.heappop(events)
            running[node] -= 1
            self.by_node[node] += 1
            del parked[task.key]
            self.router.finished(task.key, cost)
        return self.now

    def _note(self, release: Release) -> None:
        self.reasons[release.reason] += 1
        self.log.append(release)

    @property
    def local_share(self) -> float:
        return self.reasons[LOCAL] / self.reasons.total()


def chunks(*holders: str | frozenset[str], seconds: float = 0.05, run: str = "r", movable: bool = True) -> list[Waiting]:
    """One task for each entry, whose nodes hold it, of `seconds` at the rate COMPUTE."""
    work = round(seconds * COMPUTE)
    sets = [frozenset([holder]) if isinstance(holder, str) else holder for holder in holders]
    return [Waiting((run, i), run, nodes, work // 2, work, movable) for i, nodes in enumerate(sets)]


def even(task: Waiting) -> float:
    """Every task takes what its work says."""
    return task.work / COMPUTE
