"""A cluster of any size without Dask or time: chunks cut into groups as a run's are, and what may befall their nodes (see discrete.py).

Shipping a chunk costs a latency and its bytes over a rate."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial
from itertools import count, pairwise

import numpy as np

from ci.benchmarks.discrete import Cluster
from gpuflow.cluster.messages import ChunkGroup
from gpuflow.cluster.routing import Waiting
from gpuflow.execution.groups import Cutter, by_holders, in_turn

_LATENCY_SECONDS, _TRANSFER = 0.002, 1.25e9  # of a shipped chunk; bytes/s: 10 Gbit/s
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


class Simulation:
    """One run of a scenario."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario, self._numbers = scenario, count()
        seconds = {"task_seconds": scenario.task_seconds, "look_seconds": scenario.look_seconds}
        self._cluster = Cluster(self._cost, self._ended, **seconds)
        self._speeds = {name(number): scenario.speed(number) for number in range(scenario.nodes)}
        self._capacity: list[tuple[float, float]] = []
        self._groups: dict[object, ChunkGroup] = {}
        self._local, self._tasks = Counter[bool](), 0
        noise = np.random.default_rng((scenario.seed, 2)).normal(0.0, 1.0, scenario.chunks)
        self._seconds = scenario.chunk_seconds * np.exp(scenario.noise * noise)
        self._holders = scenario.holders()
        self._cutters = self._cut()

    def run(self) -> Result:
        """From the submission to the end of the last task."""
        cluster = self._cluster
        for node in self._speeds:
            cluster.join(node, self.scenario.threads)
        self._note_capacity()
        for at, number in self.scenario.joins:
            cluster.at(at, partial(self._join, number))
        for at, number in self.scenario.losses:
            cluster.at(at, partial(self._lose, number))
        self._park([group for _, group in in_turn([cutter.first() for cutter in self._cutters])])
        cluster.run()
        done = self._local.total()
        lost = self.scenario.chunks - done
        return Result(cluster.last_end, self._bound(), self._local[True] / done, self._tasks, lost, cluster.router_seconds)

    # -- the client ---------------------------------------------------------------------------------------------------------------

    def _cut(self) -> list[Cutter]:
        """As a run's batches are: see execution.passes."""
        scenario = self.scenario
        slots = {key: scenario.threads * len(key) for key in set(self._holders)}
        grouped = by_holders(range(scenario.chunks), self._holders, slots, scenario.threads * scenario.nodes)
        return [Cutter(self._group(part), busy, scenario.threads * scenario.nodes) for _, part, busy in grouped]

    def _group(self, chunks: list[int]) -> ChunkGroup:
        zeros, nbytes, work = (0,) * len(chunks), self.scenario.chunk_nbytes, self.scenario.decoded_nbytes
        return ChunkGroup("run", "d", "a", tuple(chunks), zeros, zeros, nbytes * len(chunks), work * len(chunks))

    def _park(self, groups: list[ChunkGroup]) -> None:
        keyed = {next(self._numbers): group for group in groups}
        self._groups.update(keyed)
        self._cluster.park(
            Waiting(key, group.run, self._holders[group.chunks[0]], group.nbytes, group.work) for key, group in keyed.items()
        )

    def _ended(self, task: Waiting, node: str, seconds: float) -> None:
        chunks = len(self._groups[task.key].chunks)
        self._tasks += 1
        self._local[node in task.holders] += chunks
        if self._cutters:
            cutters, self._cutters = self._cutters, []
            rest = in_turn([cutter.rest(seconds / chunks) for cutter in cutters])
            self._cluster.at(self._cluster.now + _CLIENT_SECONDS, lambda: self._park([group for _, group in rest]))

    # -- the nodes ------------------------------------------------------------------------------------------------------------------

    def _cost(self, task: Waiting, node: str) -> float:
        chunks = list(self._groups[task.key].chunks)
        shipping = 0.0 if node in task.holders else _LATENCY_SECONDS * len(chunks) + task.nbytes / _TRANSFER
        return float(self._seconds[chunks].sum()) / self._speeds[node] + shipping

    def _join(self, number: int) -> None:
        """Nodes without a chunk."""
        for joined in range(len(self._speeds), len(self._speeds) + number):
            self._speeds[f"{name(joined)}-joined"] = 1.0
            self._cluster.join(f"{name(joined)}-joined", self.scenario.threads)
        self._note_capacity()

    def _lose(self, number: int) -> None:
        """Nodes that are neither neighbours nor have done nothing."""
        there = sorted(self._speeds)
        for lost in there[:: max(1, len(there) // number)][:number]:
            del self._speeds[lost]
            self._cluster.lose(lost)
        self._note_capacity()

    # -- what was possible ------------------------------------------------------------------------------------------------------------

    def _note_capacity(self) -> None:
        self._capacity.append((self._cluster.now, self.scenario.threads * sum(self._speeds.values())))

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
