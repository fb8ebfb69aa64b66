"""A cluster of any size without Dask or time: the very same router and cutting into groups, over discrete events.

A node is a worker with threads that take what is in its hands, one task after another. The scheduler is one server: each task that ends
and each look at the nodes cost it some time, and what ends meanwhile waits for the next look. Shipping a chunk costs a latency and its
bytes over a rate."""

from __future__ import annotations

import heapq
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import count, pairwise
from typing import Any, TypeVar

import numpy as np

from gpuflow.cluster.messages import ChunkGroup
from gpuflow.cluster.routing import Router, Waiting, WorkerView
from gpuflow.execution.groups import Cutter, by_holders, in_turn

T = TypeVar("T")

_LATENCY_SECONDS, _TRANSFER = 0.002, 1.25e9  # of a shipped chunk; bytes/s: 10 Gbit/s
_LOOK_AGAIN_SECONDS = 0.02  # as the scheduler's plugin does while threads idle
_CLIENT_SECONDS = 0.05  # from the end of the first task to the others' being there: the client's look, and a round trip


@dataclass(frozen=True)
class Scenario:
    """What happens to `chunks` chunks on `nodes` nodes, all in the same way from the same seed.

    chunk_seconds, chunk_nbytes, decoded_nbytes: of one chunk; 8 MiB at 160 MB/s, about zstd to zstd on one core. noise: sigma of the
    log-normal spread of a chunk's time. skew: share of the chunks that lie on the first tenth of the nodes, on top of their even share.
    slow: share of the nodes that work at half the speed. joins, losses: (seconds, nodes). task_seconds, look_seconds: the scheduler's
    time for a task, and for each node whenever it looks at what can be released."""

    nodes: int = 1000
    chunks: int = 10**6
    threads: int = 1
    chunk_seconds: float = 0.05
    chunk_nbytes: int = 4 * 2**20
    decoded_nbytes: int = 8 * 2**20
    noise: float = 0.1
    skew: float = 0.0
    replicas: int = 1
    slow: float = 0.0
    joins: tuple[tuple[float, int], ...] = ()
    losses: tuple[tuple[float, int], ...] = ()
    task_seconds: float = 0.0005
    look_seconds: float = 2e-6
    seed: int = 0

    def speed(self, number: int) -> float:
        """Of a node, 1 for a healthy one; the slow ones are spread evenly."""
        return 0.5 if int((number + 1) * self.slow) > int(number * self.slow) else 1.0

    def holders(self) -> list[frozenset[str]]:
        """Of every chunk; replicas lie on the nodes that follow."""
        random = np.random.default_rng((self.seed, 1))
        first = np.arange(self.chunks) % self.nodes
        hot = random.random(self.chunks) < self.skew
        first[hot] = random.integers(0, max(1, self.nodes // 10), int(hot.sum()))
        sets = [frozenset(name((n + r) % self.nodes) for r in range(self.replicas)) for n in range(self.nodes)]
        return [sets[number] for number in first.tolist()]


@dataclass
class Result:
    """bound_seconds: no schedule ends before. local: share of the chunks done where they lie. router_seconds: real processor time of the
    router. lost: chunks that no live node held."""

    seconds: float
    bound_seconds: float
    local: float
    tasks: int
    lost: int
    router_seconds: float

    @property
    def ratio(self) -> float:
        return self.seconds / self.bound_seconds


@dataclass
class _Node:
    """assigned: released to it and, for all that the scheduler knows, not ended; arrived: those that it has not begun."""

    speed: float
    assigned: dict[object, Waiting] = field(default_factory=dict)
    arrived: deque[Waiting] = field(default_factory=deque)
    running: int = 0


class Simulation:
    """One run of a scenario."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario, self.router, self.now = scenario, Router(), 0.0
        self.nodes = {name(number): _Node(scenario.speed(number)) for number in range(scenario.nodes)}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        self._capacity: list[tuple[float, float]] = []
        self._groups: dict[object, ChunkGroup] = {}
        self._ended: list[tuple[Waiting, str, _Node, float]] = []
        self._busy_until, self._look_at = 0.0, float("inf")
        self._local, self._tasks, self._router_seconds, self._last_end = Counter[bool](), 0, 0.0, 0.0
        noise = np.random.default_rng((scenario.seed, 2)).normal(0.0, 1.0, scenario.chunks)
        self._seconds = scenario.chunk_seconds * np.exp(scenario.noise * noise)
        self._holders = scenario.holders()
        self._cutters = self._cut()

    def run(self) -> Result:
        """From the submission to the end of the last task."""
        self._note_capacity()
        for at, number in self.scenario.joins:
            self._at(at, partial(self._join, number))
        for at, number in self.scenario.losses:
            self._at(at, partial(self._lose, number))
        self._park([group for _, group in in_turn([cutter.first() for cutter in self._cutters])])
        while self._events:
            self.now, _, happens = heapq.heappop(self._events)
            happens()
        done = self._local.total()
        lost = self.scenario.chunks - done
        return Result(self._last_end, self._bound(), self._local[True] / done, self._tasks, lost, self._router_seconds)

    def _at(self, when: float, happens: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._numbers), happens))

    # -- the client ---------------------------------------------------------------------------------------------------------------

    def _cut(self) -> list[Cutter]:
        """As a run's batches are: see execution.passes."""
        scenario = self.scenario
        slots = {key: scenario.threads * len(key) for key in set(self._holders)}
        grouped = by_holders(range(scenario.chunks), self._holders, slots, scenario.threads * scenario.nodes)
        return [Cutter(self._group(part), busy) for _, part, busy in grouped]

    def _group(self, chunks: list[int]) -> ChunkGroup:
        zeros, nbytes, work = (0,) * len(chunks), self.scenario.chunk_nbytes, self.scenario.decoded_nbytes
        return ChunkGroup("run", "d", "a", tuple(chunks), zeros, zeros, nbytes * len(chunks), work * len(chunks))

    def _cut_rest(self, seconds: float) -> None:
        cutters, self._cutters = self._cutters, []
        self._park([group for _, group in in_turn([cutter.rest(seconds) for cutter in cutters])])

    # -- the scheduler --------------------------------------------------------------------------------------------------------------

    def _park(self, groups: list[ChunkGroup]) -> None:
        for group in groups:
            key = next(self._numbers)
            self._groups[key] = group
            task = Waiting(key, group.run, self._holders[group.chunks[0]], group.nbytes, group.work)
            self._timed(self.router.park, task)
        self._look(self.now)

    def _look(self, at: float) -> None:
        """Look at what can be released: at `at`, or as soon as the scheduler has time."""
        at = max(at, self._busy_until)
        if at < self._look_at:
            self._look_at = at
            self._at(at, partial(self._release, at))

    def _release(self, at: float) -> None:
        if at != self._look_at:
            return  # an earlier look was asked for later
        self._look_at = float("inf")
        self._take_ended()
        views = [WorkerView(name, name, self.scenario.threads, len(node.assigned)) for name, node in self.nodes.items()]
        for release in self._timed(self.router.release, views):
            node, task = self.nodes[release.worker], self._waiting(release.key)
            node.assigned[task.key] = task
            self._tasks += 1
            self._at(self._busy_until, partial(self._arrive, release.worker, node, task))
        idle = any(len(node.assigned) < self.scenario.threads for node in self.nodes.values())
        if self.router.waiting and idle and not self._hopeless():
            self._look(self.now + _LOOK_AGAIN_SECONDS)

    def _waiting(self, key: object) -> Waiting:
        group = self._groups[key]
        return Waiting(key, group.run, self._holders[group.chunks[0]], group.nbytes, group.work)

    def _hopeless(self) -> bool:
        """Nothing runs or comes, and what is parked has no live holder."""
        nothing = not self._events and not any(node.assigned for node in self.nodes.values())
        return nothing and len(self.router.stranded(list(self.nodes))) == self.router.waiting

    def _take_ended(self) -> None:
        ended = [entry for entry in self._ended if self.nodes.get(entry[1]) is entry[2]]  # a lost node's results went with it
        self._ended = []
        for task, name, node, seconds in ended:
            self._timed(self.router.finished, task.key, seconds)
            del node.assigned[task.key]
            self._local[name in task.holders] += len(self._groups[task.key].chunks)
        look_seconds = self.scenario.look_seconds * len(self.nodes)
        self._busy_until = self.now + self.scenario.task_seconds * len(ended) + look_seconds
        if ended:
            each = ended[0][3] / len(self._groups[ended[0][0].key].chunks)
            if self._cutters:
                self._at(self.now + _CLIENT_SECONDS, partial(self._cut_rest, each))

    def _timed(self, call: Callable[..., T], *args: Any) -> T:
        began = time.thread_time()
        answer = call(*args)
        self._router_seconds += time.thread_time() - began
        return answer

    # -- the nodes ------------------------------------------------------------------------------------------------------------------

    def _arrive(self, name: str, node: _Node, task: Waiting) -> None:
        node.arrived.append(task)
        self._begin(name, node)

    def _begin(self, name: str, node: _Node) -> None:
        """Start what the free threads can take."""
        while node.arrived and node.running < self.scenario.threads:
            task = node.arrived.popleft()
            node.running += 1
            chunks = list(self._groups[task.key].chunks)
            seconds = float(self._seconds[chunks].sum()) / node.speed
            if name not in task.holders:
                seconds += _LATENCY_SECONDS * len(chunks) + task.nbytes / _TRANSFER
            self._at(self.now + seconds, partial(self._end, name, node, task, seconds))

    def _end(self, name: str, node: _Node, task: Waiting, seconds: float) -> None:
        if self.nodes.get(name) is not node:
            return
        node.running -= 1
        self._last_end = self.now
        self._ended.append((task, name, node, seconds))
        self._begin(name, node)
        self._look(self.now)

    def _join(self, number: int) -> None:
        """Nodes without a chunk."""
        for joined in range(len(self.nodes), len(self.nodes) + number):
            self.nodes[f"{name(joined)}-joined"] = _Node(1.0)
        self._note_capacity()
        self._look(self.now)

    def _lose(self, number: int) -> None:
        """Nodes that are neither neighbours nor have done nothing; their tasks wait again."""
        there = sorted(self.nodes)
        for lost in there[:: max(1, len(there) // number)][:number]:
            for task in self.nodes.pop(lost).assigned.values():
                self._timed(self.router.park, task)
        self._note_capacity()
        self._look(self.now)

    # -- what was possible ------------------------------------------------------------------------------------------------------------

    def _note_capacity(self) -> None:
        self._capacity.append((self.now, self.scenario.threads * sum(node.speed for node in self.nodes.values())))

    def _bound(self) -> float:
        """Until when all threads that there were would have been at work, had none ever been idle, shipped anything or done it twice."""
        work = float(self._seconds.sum())
        for (since, threads), (until, _) in pairwise([*self._capacity, (float("inf"), 0.0)]):
            if work <= threads * (until - since):
                return since + work / threads
            work -= threads * (until - since)
        return float("inf")


def name(number: int) -> str:
    """Of a node."""
    return f"node{number:05}"
