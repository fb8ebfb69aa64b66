"""Which waiting chunk task goes to which worker now, and why.

Pure: no Dask, I/O or clock. Local first; a task is shipped to a worker without work of its own as soon as the wait for its holders is
estimated to cost more than shipping its bytes. The estimates come from measured rates, so there is no constant wait to tune
(SPARK-18886 is what a constant does)."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

DEPTH = 2
"""Tasks in a worker's hands per thread: one runs, one is there when it ends (490 against 313 us of scheduler time at 4 and 32)."""

_FIRST_COMPUTE = 200e6  # decoded bytes/s until a task of the run has been measured: zstd decode and encode on one core
_FIRST_TRANSFER = 500e6  # bytes/s until a transfer has been measured: the lower of the loopback figures for plain sends
_TRANSFER_LATENCY_SECONDS = 0.002  # a locate and a fetch: two round trips of 384 us and their scheduling
_WEIGHT = 0.3  # of the newest measurement in the moving averages
_MARGIN_TASKS = 3
"""Shipping must gain more than this many task times: estimates are no better, and what the margin costs at the end of a skewed run is as
many tasks, which are small (see execution.groups)."""
_MARGIN_SECONDS = 0.05
"""At the least: a process that the operating system lets wait for a moment is no hot node."""
_EQUAL_SHARES, _SLOW_SHARE = 1.25, 0.5
"""Where two nodes were given equal shares, the one that is behind must be behind by this part of what the other has done before its chunks
move: on a healthy cluster that is noise, and shipping for noise is how locality is lost."""

LOCAL, HOT_NODE = "local", "hot_node"


@dataclass(frozen=True, slots=True)
class Waiting:
    """A parked task. holders: the nodes it is local to. nbytes: what shipping it would move. work: what its time is proportional to,
    in any unit that the tasks of its run share (decoded bytes). movable: may run elsewhere."""

    key: object
    run: str
    holders: frozenset[str]
    nbytes: int
    work: int
    movable: bool = True


@dataclass(frozen=True, slots=True)
class WorkerView:
    """A running worker as the scheduler sees it. processing: number of tasks in its hands, of whatever kind."""

    address: str
    node: str
    threads: int
    processing: int


@dataclass(frozen=True, slots=True)
class Release:
    """Give task `key` to `worker`. reason: LOCAL or HOT_NODE."""

    key: object
    worker: str
    reason: str


@dataclass(slots=True)
class Rates:
    """Measured costs as moving averages."""

    transfer: float = 1 / _FIRST_TRANSFER
    compute: dict[str, float] = field(default_factory=dict)

    def compute_seconds(self, task: Waiting) -> float:
        """Expected seconds of a task."""
        return task.work * self.compute_rate(task.run)

    def compute_rate(self, run: str) -> float:
        """Expected seconds per unit of work of `run`."""
        return self.compute.get(run, 1 / _FIRST_COMPUTE)

    def transfer_seconds(self, nbytes: int) -> float:
        """Expected seconds to ship `nbytes` to another node."""
        return _TRANSFER_LATENCY_SECONDS + nbytes * self.transfer

    def computed(self, task: Waiting, seconds: float) -> None:
        """A task took `seconds`."""
        rate = seconds / max(task.work, 1)
        self.compute[task.run] = (1 - _WEIGHT) * self.compute.get(task.run, rate) + _WEIGHT * rate

    def transferred(self, nbytes: int, seconds: float) -> None:
        """`nbytes` were shipped in `seconds`."""
        if nbytes:
            self.transfer = (1 - _WEIGHT) * self.transfer + _WEIGHT * seconds / nbytes


@dataclass(slots=True)
class _Queue:
    """Parked tasks with the same holders, in the order in which they came. work: their work by run, kept up so that a look at the
    backlog does not cost a pass over the tasks (with 10^5 of them that was 22 ms a look)."""

    tasks: OrderedDict[object, Waiting] = field(default_factory=OrderedDict)
    work: Counter[str] = field(default_factory=Counter)

    def add(self, task: Waiting) -> None:
        self.tasks[task.key] = task
        self.work[task.run] += task.work

    def remove(self, task: Waiting) -> None:
        del self.tasks[task.key]
        self.work[task.run] -= task.work

    def first(self) -> Waiting:
        return next(iter(self.tasks.values()))

    def last(self) -> Waiting:
        return next(reversed(self.tasks.values()))


class Router:
    """The parked tasks, queued by holder set, and those on their way."""

    def __init__(self) -> None:
        self.rates = Rates()
        self._queues: dict[frozenset[str], _Queue] = {}  # none is empty
        self._waiting: dict[object, Waiting] = {}
        self._parked: Counter[str] = Counter()  # run -> its parked tasks
        self._flying: dict[object, tuple[Waiting, str]] = {}  # released and not finished: task, node it went to
        self._shares: dict[tuple[str, str], float] = {}  # (run, node) -> work that is local to it, as it was parked
        self._done: dict[tuple[str, str], float] = {}  # (run, node) -> work that it has finished

    @property
    def waiting(self) -> int:
        """Number of parked tasks."""
        return len(self._waiting)

    @property
    def stalled(self) -> bool:
        """Tasks are parked and none is on its way: no end of a task will give the occasion to release the next one."""
        return bool(self._waiting) and not self._flying

    def waiting_runs(self) -> set[str]:
        """Runs with parked tasks."""
        return set(self._parked)

    def park(self, task: Waiting) -> None:
        """Queue `task` behind those with the same holders. Parking a task again moves it to where it now belongs."""
        if task.key not in self._waiting and task.key not in self._flying:
            for node in task.holders:
                self._shares[task.run, node] = self._shares.get((task.run, node), 0.0) + task.work / len(task.holders)
        self.discard(task.key)
        self._waiting[task.key] = task
        self._parked[task.run] += 1
        self._queues.setdefault(task.holders, _Queue()).add(task)

    def discard(self, key: object) -> None:
        """Forget a task that ended in whatever way."""
        if key in self._waiting:
            self._take(self._waiting[key])
        self._flying.pop(key, None)

    def finished(self, key: object, seconds: float) -> None:
        """A released task ended well after `seconds` of work."""
        if key in self._flying:
            task, node = self._flying[key]
            self.rates.computed(task, seconds)
            self._done[task.run, node] = self._done.get((task.run, node), 0.0) + task.work
        self.discard(key)

    def ended(self, run: str) -> None:
        """Forget what was learned for `run`."""
        self.rates.compute.pop(run, None)
        for known in (self._shares, self._done):
            for key in [key for key in known if key[0] == run]:
                del known[key]

    def stranded(self, live: Iterable[str]) -> list[object]:
        """Parked tasks none of whose holders is among the `live` nodes."""
        alive = set(live)
        return [key for holders, queue in self._queues.items() if not holders & alive for key in queue.tasks]

    def release(self, workers: Sequence[WorkerView]) -> list[Release]:
        """What to start now. Ties go to the worker with the fewest tasks, then to the smaller address."""
        load = {worker.address: worker.processing for worker in workers}
        released = self._release_local(workers, load)
        return released + self._ship(workers, load)

    def _release_local(self, workers: Sequence[WorkerView], load: dict[str, int]) -> list[Release]:
        released = []
        by_node: dict[str, list[WorkerView]] = {}
        for worker in workers:
            by_node.setdefault(worker.node, []).append(worker)
        for node in sorted(by_node):
            queues = sorted((h for h in self._queues if node in h), key=lambda h: (len(h), sorted(h)))
            for holders in queues:  # what only this node can do comes before what others could do too
                while holders in self._queues:
                    worker = min(by_node[node], key=lambda w: (load[w.address] / w.threads, w.address))
                    if load[worker.address] >= DEPTH * worker.threads:
                        break
                    released.append(self._send(self._queues[holders].first(), worker, load, LOCAL))
        return released

    def _ship(self, workers: Sequence[WorkerView], load: dict[str, int]) -> list[Release]:
        """Work for threads that have none, from the queue that would take longest."""
        released: list[Release] = []
        live = {worker.node for worker in workers}
        threads: dict[str, int] = {}
        for worker in workers:
            threads[worker.node] = threads.get(worker.node, 0) + worker.threads
        idle = [worker for worker in workers for _ in range(load[worker.address], worker.threads)]
        if not idle or not self._waiting:
            return released
        backlog = self._backlog()
        for worker in sorted(idle, key=lambda w: (load[w.address], w.address)):
            worth = {
                holders: gain
                for holders, seconds in backlog.items()
                if holders & live and worker.node not in holders and (gain := self._gain(holders, seconds, worker, threads)) > 0
            }
            if not worth:
                continue
            holders = max(worth, key=lambda holders: (worth[holders], sorted(holders)))
            task = self._queues[holders].last()
            backlog[holders] -= self.rates.compute_seconds(task)
            released.append(self._send(task, worker, load, HOT_NODE))
            if holders not in self._queues:
                del backlog[holders]
        return released

    def _gain(self, holders: frozenset[str], backlog: float, worker: WorkerView, threads: Mapping[str, int]) -> float:
        """Seconds by which the last task of a queue would begin earlier on `worker`, less what that has to be worth."""
        task = self._queues[holders].last()
        if not task.movable:
            return 0.0
        own = self.rates.compute_seconds(task)
        wait = (backlog - own) / sum(threads.get(node, 0) for node in holders)
        gain = wait - self.rates.transfer_seconds(task.nbytes) - max(_MARGIN_TASKS * own, _MARGIN_SECONDS)
        share = sum(self._shares.get((task.run, node), 0.0) / threads[node] for node in sorted(holders) if node in threads)
        if share > _EQUAL_SHARES * self._shares.get((task.run, worker.node), 0.0) / threads[worker.node]:
            return gain
        done = self._done.get((task.run, worker.node), 0.0) / threads[worker.node]
        return gain - _SLOW_SHARE * own * done / max(task.work, 1)

    def _backlog(self) -> dict[frozenset[str], float]:
        """Seconds of work queued at each holder set, with what its nodes already have in hand."""
        flying: dict[str, float] = {}
        for task, node in self._flying.values():
            flying[node] = flying.get(node, 0.0) + self.rates.compute_seconds(task)
        return {
            holders: sum(work * self.rates.compute_rate(run) for run, work in queue.work.items())
            + sum(flying.get(node, 0.0) for node in sorted(holders))
            for holders, queue in self._queues.items()
        }

    def _send(self, task: Waiting, worker: WorkerView, load: dict[str, int], reason: str) -> Release:
        self._take(task)
        self._flying[task.key] = (task, worker.node)
        load[worker.address] += 1
        return Release(task.key, worker.address, reason)

    def _take(self, task: Waiting) -> None:
        """Out of its queue, which goes with its last task."""
        del self._waiting[task.key]
        self._parked[task.run] -= 1
        if not self._parked[task.run]:
            del self._parked[task.run]
        queue = self._queues[task.holders]
        queue.remove(task)
        if not queue.tasks:
            del self._queues[task.holders]
