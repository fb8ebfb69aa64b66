"""Tasks on a simulated cluster whose scheduler takes no time, so that what is seen are the router's decisions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ci.benchmarks.discrete import Cluster
from gpuflow.cluster.routing import LOCAL, Release, Router, Waiting

COMPUTE, TRANSFER, LATENCY = 100e6, 500e6, 0.002
"""bytes/s, bytes/s, s: close to what the router assumes before it has measured, so that the tests are about its decisions."""


@dataclass
class Simulation:
    """`threads` of each node; every node has one worker of the same name. seconds: what a task takes on its own node. slow: how much
    longer it takes on a node than on the others."""

    threads: Mapping[str, int]
    seconds: Callable[[Waiting], float]
    slow: Mapping[str, float] = field(default_factory=dict)
    devices: Mapping[str, str] = field(default_factory=dict)
    by_node: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._cluster = Cluster(self._cost, self._ended)
        for node, threads in self.threads.items():
            self._cluster.join(node, threads, self.devices.get(node, "cpu"))

    @property
    def router(self) -> Router:
        return self._cluster.router

    @property
    def log(self) -> list[Release]:
        return self._cluster.log

    @property
    def reasons(self) -> Counter[str]:
        return Counter(release.reason for release in self.log)

    @property
    def local_share(self) -> float:
        return self.reasons[LOCAL] / self.reasons.total()

    def run(self, tasks: list[Waiting]) -> float:
        """Makespan of the tasks."""
        self._cluster.park(tasks)
        self._cluster.run()
        assert self.by_node.total() == len(tasks)
        return self._cluster.last_end

    def _cost(self, task: Waiting, node: str) -> float:
        shipping = 0.0 if node in task.holders else LATENCY + task.nbytes / TRANSFER
        return self.seconds(task) * self.slow.get(node, 1.0) + shipping

    def _ended(self, task: Waiting, node: str, seconds: float) -> None:
        self.by_node[node] += 1


def chunks(*holders: str | frozenset[str], seconds: float = 0.05, run: str = "r", movable: bool = True) -> list[Waiting]:
    """One task for each entry, whose nodes hold it, of `seconds` at the rate COMPUTE."""
    work = round(seconds * COMPUTE)
    sets = [frozenset([holder]) if isinstance(holder, str) else holder for holder in holders]
    return [Waiting((run, i), run, nodes, work // 2, work, movable) for i, nodes in enumerate(sets)]


def even(task: Waiting) -> float:
    """Every task takes what its work says."""
    return task.work / COMPUTE
