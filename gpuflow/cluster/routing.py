"""Which waiting chunk task goes to which worker now, and why.

Pure: no Dask, I/O or clock. Local first; a task is shipped to a worker without work of its own as soon as the wait for its holders is
estimated to cost more than shipping its bytes. The estimates come from measured rates, so there is no constant wait to tune
(SPARK-18886 is what a constant does)."""

from __future__ import annotations

import math
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property
from heapq import heapify, heappop, heappush
from itertools import chain, islice

from gpuflow.cluster.fleet import DEPTH, Fleet, WorkerView
from gpuflow.cluster.places import fits
from gpuflow.cluster.rates import Rates

_MARGIN_TASKS, _MARGIN_SECONDS = 0.5, 0.05
"""What shipping must gain, in task times and at the least, where a node was given more than another or is slower: the task that runs
there is half done on average, and an estimate of a few milliseconds is none."""
_EVEN_MARGIN_TASKS, _EVEN_MARGIN_SECONDS = 3, 0.25
"""The same where two nodes were given equal shares and are as fast: a process that the operating system lets wait for a moment is no hot
node."""
_EQUAL_SHARES, _BEHIND = 1.25, 0.5
"""Of two such nodes, the one that is behind must be behind by the second figure, as a part of what the other has done, before its chunks
move: on a healthy cluster that is noise, and shipping for noise is how locality is lost."""
_LOOKED_AT = 4
"""Queues that a thread without work looks at, the longest first: with 1,000 nodes, each at all of them would be a million."""

_MISSES = 32
"""Threads that a look finds nothing for before it leaves the others to the next one: with 500 that idle at a run's end, a look at all of
them took longer than it is to the next end of a task."""

_LEFT_TASKS, _LEFT_SECONDS = 4, 0.25
"""What is left, for each of its threads, to the worker which has the chunks in memory, though another one of its node is idle; the greater
of both. What is read and decoded again takes several times as long as what is there, and who has nothing to do at the moment may be about
to be sent more of his own."""

LOCAL, HOT_NODE, PAUSED, DEVICE = "local", "hot_node", "holder_paused", "device"


@dataclass(frozen=True, slots=True)
class Waiting:
    """A parked task. holders: the nodes it is local to, as `Places` has them, here and below. nbytes: what shipping it would move. work:
    what its time is proportional to, in any unit that the tasks of its run share (decoded bytes). movable: may run elsewhere. device: what
    its worker must have, the same for all tasks of a run with the same holders. warm: address of the worker that has its chunks in
    memory; empty when none has."""

    key: object
    run: str
    holders: frozenset[str]
    nbytes: int
    work: int
    movable: bool = True
    device: str = "cpu"
    warm: str = ""


@dataclass(frozen=True, slots=True)
class Release:
    """Give task `key` to `worker`. reason: LOCAL, or why it is shipped: HOT_NODE; PAUSED when no worker of its holders takes tasks; DEVICE
    when none of them has the device that it needs."""

    key: object
    worker: str
    reason: str


@dataclass(slots=True)
class _Queue:
    """Parked tasks with the same holders, by run, in the order in which they came; no run without one. work: their work by run, kept up
    so that a look at the backlog does not cost a pass over the tasks (with 10^5 of them that was 22 ms a look). by_warm: the same tasks
    by the worker that has their chunks in memory, for runs where one has."""

    runs: dict[str, OrderedDict[object, Waiting]] = field(default_factory=dict)
    work: Counter[str] = field(default_factory=Counter)
    by_warm: dict[str, dict[str, OrderedDict[object, Waiting]]] = field(default_factory=dict)

    def add(self, task: Waiting) -> None:
        self.runs.setdefault(task.run, OrderedDict())[task.key] = task
        self.work[task.run] += task.work
        if task.warm and task.run not in self.by_warm:
            self.by_warm[task.run] = {"": OrderedDict(self.runs[task.run])}
            del self.by_warm[task.run][""][task.key]
        if task.run in self.by_warm:
            self.by_warm[task.run].setdefault(task.warm, OrderedDict())[task.key] = task

    def remove(self, task: Waiting) -> None:
        del self.runs[task.run][task.key]
        self.work[task.run] -= task.work
        if task.run in self.by_warm:
            lots = self.by_warm[task.run]
            del lots[task.warm][task.key]
            if not lots[task.warm]:
                del lots[task.warm]
        if not self.runs[task.run]:
            del self.runs[task.run], self.work[task.run]
            self.by_warm.pop(task.run, None)

    def all_keys(self) -> Iterator[object]:
        return chain.from_iterable(self.runs.values())

    def first(self, run: str) -> Waiting:
        return next(iter(self.runs[run].values()))

    def next_for(self, run: str, worker: str, left: Callable[[str], int]) -> Waiting | None:
        """What `worker` does first: what it has in memory, then what nobody has, then what others have, of him who has most of it waiting.
        None when all of it is to be `left` to them: so many tasks to a worker, none to one that takes none."""
        lots = self.by_warm.get(run)
        if lots is None:
            return self.first(run)
        if lot := lots.get(worker) or lots.get(""):
            return next(iter(lot.values()))
        over = {other: len(lot) - left(other) for other, lot in lots.items()}
        most = max(over, key=lambda other: (over[other], other))
        return next(reversed(lots[most].values())) if over[most] > 0 else None

    def last(self, run: str) -> Waiting:
        return next(reversed(self.runs[run].values()))

    def movable(self, device: str | None = None) -> list[str]:
        """Runs whose last task may be shipped, to a worker with `device`."""
        last = ((run, self.last(run)) for run in self.runs)
        return [run for run, task in last if task.movable and (device is None or fits(device, task.device))]


class Router:
    """The parked tasks, queued by holder set, and those on their way.

    Runs share a node's time evenly as long as both have tasks that are local to it, whoever came first and however many tasks he has:
    it is the turn of the run that was given less."""

    def __init__(self) -> None:
        self.rates, self.fleet = Rates(), Fleet()
        self._queues: dict[frozenset[str], _Queue] = {}  # none is empty
        self._of_node: dict[str, dict[str, dict[frozenset[str], None]]] = {}  # node -> run -> those of its queues that are local
        self._served: dict[str, dict[str, float]] = {}  # node -> run -> seconds that it was given there
        self._given: Counter[str] = Counter()  # run -> tasks that were released
        self._waiting: dict[object, Waiting] = {}
        self._parked: Counter[str] = Counter()  # run -> its parked tasks
        self._flying: dict[object, tuple[Waiting, str, str]] = {}  # released and not finished: task, node and worker it went to
        self._at: Counter[str] = Counter()  # worker -> tasks that are on their way there
        self._hands: dict[str, Counter[str]] = {}  # node -> run -> work that is on its way there
        self._shares: dict[str, Counter[frozenset[str]]] = {}  # run -> holders -> work that is local to them, as it was parked
        self._done: dict[tuple[str, str], float] = {}  # (run, node) -> work that it has finished
        self._missed = 0  # threads that looks have found nothing for
        self.idle_threads = 0  # after the last look that found tasks waiting

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
            self._shares.setdefault(task.run, Counter())[task.holders] += task.work
        self.discard(task.key)
        self._waiting[task.key] = task
        self._parked[task.run] += 1
        queue = self._queues.setdefault(task.holders, _Queue())
        if task.run not in queue.runs:
            for node in task.holders:
                self._enter(task.run, task.holders, node)
        queue.add(task)

    def _enter(self, run: str, holders: frozenset[str], node: str) -> None:
        """Among a node's queues. A run that had none there is owed nothing for that time."""
        runs, served = self._of_node.setdefault(node, {}), self._served.setdefault(node, {})
        if run not in runs:
            served[run] = max(served.get(run, 0.0), min((served[other] for other in runs), default=0.0))
        runs.setdefault(run, {})[holders] = None

    def _turn(self, runs: Iterable[str], node: str) -> str:
        """Whose turn it is on `node`: of those that were given the same there, that of who was given less elsewhere."""
        served = self._served.get(node, {})
        return min(runs, key=lambda run: (served.get(run, 0.0), self._given[run], run))

    def discard(self, key: object) -> None:
        """Forget a task that ended in whatever way."""
        if key in self._waiting:
            self._take(self._waiting[key])
        elif key in self._flying:
            task, node, worker = self._flying.pop(key)
            self._at[worker] -= 1
            if not self._at[worker]:
                del self._at[worker]
            self._hands[node][task.run] -= task.work
            if not self._hands[node][task.run]:
                del self._hands[node][task.run]
            if not self._hands[node]:
                del self._hands[node]

    def finished(self, key: object, seconds: float) -> None:
        """A released task ended well after `seconds` of work."""
        if key in self._flying:
            task, node, _ = self._flying[key]
            shipping = 0.0 if node in task.holders else self.rates.transfer_seconds(task.nbytes)
            self.rates.computed(task.run, node, task.work, max(seconds - shipping, 0.0))
            self._done[task.run, node] = self._done.get((task.run, node), 0.0) + task.work
        self.discard(key)

    def ended(self, run: str) -> None:
        """Forget what was learned for `run`."""
        self.rates.ended(run)
        self._shares.pop(run, None)
        self._given.pop(run, None)
        for served in self._served.values():
            served.pop(run, None)
        for key in [key for key in self._done if key[0] == run]:
            del self._done[key]

    def stranded(self, live: Iterable[str]) -> list[object]:
        """Parked tasks none of whose holders is among the `live` nodes."""
        alive = set(live)
        return [key for holders, queue in self._queues.items() if not holders & alive for key in queue.all_keys()]

    def waiting_for(self, paused: Set[str], live: Set[str], run: str) -> dict[frozenset[str], int]:
        """How many parked tasks of a run may be done only by nodes that are all `paused`, by these nodes."""
        found: Counter[frozenset[str]] = Counter()
        for holders, queue in self._queues.items():
            able = frozenset(holders & live)
            if able and able <= paused and run in queue.runs and not queue.last(run).movable:
                found[able] += len(queue.runs[run])
        return found

    def parked_at(self, nodes: Set[str]) -> list[object]:
        """Parked tasks that are local to one of `nodes`."""
        return [key for holders, queue in self._queues.items() if holders & nodes for key in queue.all_keys()]

    def unfit(self, run: str) -> int:
        """Parked tasks of a run for a device that no worker has which may take them, as workers were at the last look."""
        there = {view.device for view in self.fleet.views() if not view.stands_in}
        hopeless = 0
        for holders, queue in self._queues.items():
            if run in queue.runs:
                task = queue.last(run)
                near = holders & self.fleet.reachable.keys()
                able = (
                    any(fits(one, task.device) for one in there) if task.movable else not near or bool(near - self.fleet.lacking)
                )
                hopeless += 0 if able else len(queue.runs[run])
        return hopeless

    def queued(self) -> Counter[str]:
        """Parked tasks by node; one that is local to several counts at each of them."""
        return Counter(
            {
                node: sum(len(self._queues[holders].runs[run]) for run, queues in runs.items() for holders in queues)
                for node, runs in self._of_node.items()
            }
        )

    def is_local(self, key: object) -> bool:
        """Whether a task that is on its way went to a node that it is local to. Of others nothing else is known."""
        task, node, _ = self._flying.get(key, (None, "", ""))
        return task is None or node in task.holders

    def holder_sets(self) -> set[frozenset[str]]:
        """Of the tasks that are parked or on their way."""
        return {*self._queues, *(task.holders for task, *_ in self._flying.values())}

    def release(self, workers: Sequence[WorkerView]) -> list[Release]:
        """What to start now. Ties go to the worker with the fewest tasks, then to the smaller address.

        A thread's first task comes before another's second one, wherever it lies, and among equals what is local comes first."""
        if not self._waiting:
            return []
        self.fleet.see(workers)
        self.idle_threads = self.fleet.idle
        look = _Look(self)
        for depth in range(1, DEPTH + 1):
            look.release_local(depth)
            look.ship(depth)
        return look.released

    def _send(self, task: Waiting, node: str, worker: str) -> None:
        self._take(task)
        self._flying[task.key] = (task, node, worker)
        self._at[worker] += 1
        self._given[task.run] += 1
        served = self._served.setdefault(node, {})
        served[task.run] = served.get(task.run, 0.0) + task.work * self.rates.compute_rate(task.run, node)
        self._hands.setdefault(node, Counter())[task.run] += task.work

    def _take(self, task: Waiting) -> None:
        """Out of its queue, which goes with its last task."""
        del self._waiting[task.key]
        self._parked[task.run] -= 1
        if not self._parked[task.run]:
            del self._parked[task.run]
        queue = self._queues[task.holders]
        queue.remove(task)
        if task.run not in queue.runs:
            for node in task.holders:
                self._leave(task.run, task.holders, node)
        if not queue.runs:
            del self._queues[task.holders]

    def _leave(self, run: str, holders: frozenset[str], node: str) -> None:
        runs = self._of_node[node]
        del runs[run][holders]
        if not runs[run]:
            del runs[run]
        if not runs:
            del self._of_node[node]


def _none(worker: str) -> int:
    """Tasks that are left to a worker which has their chunks in memory, where there is other work than these."""
    return 0


class _Look:
    """One look at the cluster: the workers as they are, and what this look has already given them."""

    def __init__(self, router: Router) -> None:
        self.router, self.threads, self.reachable = router, router.fleet.threads, router.fleet.reachable
        self.released: list[Release] = []
        self.room = sorted(router.fleet.room.values(), key=lambda worker: worker.address)
        self.load = {worker.address: worker.processing for worker in self.room}
        self.by_node: dict[str, list[WorkerView]] = {}  # those with room
        for worker in self.room:
            self.by_node.setdefault(worker.node, []).append(worker)
        self._busy: dict[str, float] = {}
        self._known_shares: dict[str, defaultdict[str, float]] = {}

    # -- local ----------------------------------------------------------------------------------------------------------------------

    def release_local(self, depth: int) -> None:
        """Give every thread up to `depth` tasks whose chunks are there."""
        for node in sorted(self.by_node):
            while self._has_room(node, depth) and (found := self._next_queue(node)) is not None:
                run, holders = found
                worker, task = self._next(node, run, holders, depth)
                if task is None or worker is None:
                    break
                if depth > 1 and (self._leave_to_others(task, node) or self._may_be_slow(task, worker)):
                    break
                if self._ends_sooner_elsewhere(task, worker):
                    break
                self._send(task, worker, LOCAL)

    def _next(self, node: str, run: str, holders: frozenset[str], depth: int) -> tuple[WorkerView, Waiting] | tuple[None, None]:
        """Of a queue of a node, the next task and which of its workers takes it; nothing when none has room for it. Where it is all that
        the node has to do, a worker may leave what another has in memory to that one."""
        queue, workers = self.router._queues[holders], self.by_node[node]
        if run not in queue.by_warm:
            worker = workers[0] if len(workers) == 1 else min(workers, key=self._load)
            return (worker, queue.first(run)) if self.load[worker.address] < depth * worker.threads else (None, None)
        queues = self.router._of_node[node]
        leaves = self._left_of(run, node, queue) if len(queues) == 1 and len(queues[run]) == 1 else _none
        for worker in sorted(workers, key=self._load):
            if self.load[worker.address] >= depth * worker.threads:
                break
            if (task := queue.next_for(run, worker.address, leaves)) is not None:
                return worker, task
        return None, None

    def _has_room(self, node: str, depth: int) -> bool:
        """Whether one of its workers takes another task: asked first, since whose turn it is takes longer to find out."""
        return any(self.load[worker.address] < depth * worker.threads for worker in self.by_node[node])

    def _load(self, worker: WorkerView) -> tuple[float, str]:
        """For the least loaded first."""
        return self.load[worker.address] / worker.threads, worker.address

    def _left_of(self, run: str, node: str, queue: _Queue) -> Callable[[str], int]:
        """How many tasks are left to a worker that has their chunks in memory: none while it is busy with what is not ours, which may take
        long."""
        router = self.router
        seconds = max(queue.first(run).work * router.rates.compute_rate(run, node), 1e-6)
        each = max(_LEFT_TASKS, round(_LEFT_SECONDS / seconds))

        def left(worker: str) -> int:
            foreign = router.fleet.processing_of(worker) > router._at.get(worker, 0)
            return 0 if foreign else each * router.fleet.threads_of(worker)

        return left

    def _next_queue(self, node: str) -> tuple[str, frozenset[str]] | None:
        """Whose turn it is, and his queue: what only this node can do comes before what others could do too; and that in which the others
        would be the latest."""
        runs = self.router._of_node.get(node)
        if not runs:
            return None
        run = self.router._turn(runs, node) if len(runs) > 1 else next(iter(runs))
        queues = runs[run]
        if len(queues) == 1:
            return run, next(iter(queues))
        fewest = min(map(len, queues))
        equal = sorted((holders for holders in queues if len(holders) == fewest), key=sorted)
        return run, max(equal, key=lambda holders: self._others_wait(holders, node)) if len(equal) > 1 else equal[0]

    def _others_wait(self, holders: frozenset[str], node: str) -> float:
        """Infinite when there are no others."""
        return min((self.busy(other) for other in holders if other != node and other in self.threads), default=math.inf)

    def _leave_to_others(self, task: Waiting, node: str) -> bool:
        """Whether a slow node has what it can do, now that faster ones have nothing of their own: what is in its hands is not shipped."""
        rates, run = self.router.rates, task.run
        if not task.movable or not rates.is_below_average(run, node):  # which costs less to ask
            return False
        return any(rates.is_slower(run, node, other) for other in self._without_own)

    def _may_be_slow(self, task: Waiting, worker: WorkerView) -> bool:
        """Whether it is not yet known how much longer this CPU takes than a device beside it: it is given one task to find out."""
        if len(task.holders) == 1 or worker.device != "cpu" or self.router.rates.is_known(task.run, worker.node):
            return False
        return not self.router.fleet.devices.keys().isdisjoint(task.holders)

    def _ends_sooner_elsewhere(self, task: Waiting, worker: WorkerView) -> bool:
        """Whether a faster holder would have done this task, after all else that is local to it, before this slow worker could end it: a
        CPU beside a GPU must not hold up the end of a run."""
        rates, run, node = self.router.rates, task.run, worker.node
        if len(task.holders) == 1 or not rates.is_below_average(run, node):
            return False
        rounds = 1 + self.load[worker.address] // worker.threads
        own = rounds * task.work * rates.compute_rate(run, node)
        others = (other for other in task.holders if other != node and other in self.threads)
        return any(rates.is_slower(run, node, other) and self._all_done(other) <= own for other in others)

    def _all_done(self, node: str) -> float:
        """Seconds until a live node would have done what it has in hand and all that is local to it, by itself."""
        router, rate = self.router, self.router.rates.compute_rate
        seconds = sum(work * rate(run, node) for run, work in router._hands.get(node, {}).items())
        for run, queues in router._of_node.get(node, {}).items():
            seconds += rate(run, node) * sum(router._queues[holders].work[run] for holders in queues)
        return seconds / self.threads[node]

    @cached_property
    def _without_own(self) -> set[str]:
        """Live nodes to which no parked task is local."""
        return self.threads.keys() - self.router._of_node.keys()

    # -- shipped --------------------------------------------------------------------------------------------------------------------

    def ship(self, depth: int) -> None:
        """Tasks for threads that have less than `depth` and nothing local: the last of the queue that would take longest."""
        free = [worker for worker in self.room if worker.node not in self.router._of_node]
        hungry = [worker for worker in free for _ in range(self.load[worker.address], depth * worker.threads)]
        missed = 0
        for worker in self._some(sorted(hungry, key=lambda w: (self.load[w.address] / w.threads, w.address))):
            if missed == _MISSES:
                break
            for holders in islice(self._longest(), _LOOKED_AT):
                queue, wait = self.router._queues[holders], self._wait(holders)
                if not (runs := queue.movable(worker.device)):
                    continue
                task = queue.last(self.router._turn(runs, worker.node))
                if self._gain(task, wait, worker) > 0:
                    self._send(task, worker, HOT_NODE if math.isfinite(wait) else self._why_not_there(holders))
                    break
            else:
                missed += 1
        self.router._missed += missed

    def _why_not_there(self, holders: frozenset[str]) -> str:
        """Of holders none of which takes tasks."""
        return DEVICE if holders & self.reachable.keys() <= self.router.fleet.lacking else PAUSED

    def _some(self, hungry: list[WorkerView]) -> list[WorkerView]:
        """All, beginning after those that the last looks found nothing for, where there are too many for one look."""
        start = self.router._missed % len(hungry) if len(hungry) > _MISSES else 0
        return hungry[start:] + hungry[:start]

    def _wait(self, holders: frozenset[str]) -> float:
        """Seconds until the first of the holders has done all that is queued for it; infinite when none of them takes tasks."""
        return min((self.busy(node) for node in holders if node in self.threads), default=math.inf)

    @cached_property
    def _by_wait(self) -> list[tuple[float, list[str], frozenset[str]]]:
        """A heap of the queues that have a live holder, the longest wait first. Waits only get shorter while this look ships."""
        heap = [(-self._wait(h), sorted(h), h) for h in self.router._queues if not self.reachable.keys().isdisjoint(h)]
        heapify(heap)
        return heap

    def _longest(self) -> Iterator[frozenset[str]]:
        """Queues for which shipping could pay, the longest wait first. The heap is as before when the iterator is closed, without those
        that are empty."""
        seen, heap = [], self._by_wait
        try:
            while heap and -heap[0][0] > _MARGIN_SECONDS:
                known, names, holders = heappop(heap)
                if holders not in self.router._queues:
                    continue
                if -self._wait(holders) > known:  # it has become shorter
                    heappush(heap, (-self._wait(holders), names, holders))
                    continue
                seen.append((known, names, holders))
                if self.router._queues[holders].movable():
                    yield holders
        finally:
            for item in seen:
                heappush(heap, item)

    def _gain(self, task: Waiting, wait: float, worker: WorkerView) -> float:
        """Seconds by which a task would end earlier on `worker` than on its holders, which would end it in `wait` seconds, less what
        that has to be worth."""
        rates = self.router.rates
        own = task.work * rates.compute_rate(task.run, worker.node)
        gain = wait - rates.transfer_seconds(task.nbytes) - own
        second = self.load[worker.address] >= worker.threads
        if self._has_reason(task, worker):
            delay = max(self.busy(worker.node), own) if second else 0.0
            return gain - delay - max(_MARGIN_TASKS * own, _MARGIN_SECONDS)
        done = self.router._done.get((task.run, worker.node), 0.0) / self.threads[worker.node]
        behind = _BEHIND * own * done / max(task.work, 1)
        return 0.0 if second else gain - behind - max(_EVEN_MARGIN_TASKS * own, _EVEN_MARGIN_SECONDS)

    def _has_reason(self, task: Waiting, worker: WorkerView) -> bool:
        """Whether the holders are behind the worker's node because they have more to do, or are slower; else it is noise."""
        run, shares = task.run, self._shares(task.run)
        live = [node for node in task.holders if node in self.threads]
        if not live:
            return True
        share = sum(shares[node] for node in sorted(live)) / len(live)
        more = share > _EQUAL_SHARES * shares[worker.node]
        return more or all(self.router.rates.is_slower(run, node, worker.node) for node in live)

    def _shares(self, run: str) -> Mapping[str, float]:
        """Work for each thread of a live node, had every node done its part of what was local to it from the start."""
        if run not in self._known_shares:
            shares = self._known_shares[run] = defaultdict(float)
            for holders, work in self.router._shares.get(run, Counter()).items():
                for node in holders:
                    if node in self.threads:
                        shares[node] += self._part(holders, work, node)
        return self._known_shares[run]

    # -- how busy a node is -----------------------------------------------------------------------------------------------------------

    def busy(self, node: str) -> float:
        """Seconds until a live node has done what it has in hand and its part of what is queued for it."""
        if node not in self._busy:
            router, rate = self.router, self.router.rates.compute_rate
            seconds = sum(work * rate(run, node) for run, work in router._hands.get(node, {}).items()) / self.threads[node]
            for run, queues in router._of_node.get(node, {}).items():
                parts = (self._part(holders, router._queues[holders].work[run], node) for holders in queues)
                seconds += rate(run, node) * sum(parts)
            self._busy[node] = seconds
        return self._busy[node]

    def _part(self, holders: frozenset[str], work: float, node: str) -> float:
        """What of `work` that is local to `holders` falls to a thread of one of them; the dead ones do nothing."""
        return work / sum(holder in self.threads for holder in holders) / self.threads[node]

    def _send(self, task: Waiting, worker: WorkerView, reason: str) -> None:
        rate = self.router.rates.compute_rate
        for node in task.holders & self._busy.keys():
            self._busy[node] -= rate(task.run, node) * self._part(task.holders, task.work, node)
        if worker.node in self._busy:
            self._busy[worker.node] += rate(task.run, worker.node) * task.work / self.threads[worker.node]
        self.router._send(task, worker.node, worker.address)
        self.router.idle_threads -= self.load[worker.address] < worker.threads
        self.load[worker.address] += 1
        self.released.append(Release(task.key, worker.address, reason))
