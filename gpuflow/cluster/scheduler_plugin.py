"""The scheduler's side: park chunk tasks, release each to one worker, keep the inventory.

Thin: what to release is decided in `routing`, who holds what in `inventory`. A chunk task is parked in Dask's state `no-worker` behind a
restriction that no worker satisfies, and released by pinning it to one worker (mechanism and figures: late binding on an unpatched
scheduler). An error in a hook must not let tasks run anywhere: it stops the run, by name."""

from __future__ import annotations

import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from functools import wraps
from typing import Any

import dask
import distributed
import numpy as np
from distributed import Scheduler, SchedulerPlugin, Status
from distributed.scheduler import TaskState, WorkerState

from gpuflow import __version__
from gpuflow.cluster import dashboard, foreign, metrics
from gpuflow.cluster.claims import Claims
from gpuflow.cluster.figures import Figures, WatchFigures
from gpuflow.cluster.fleet import WorkerView
from gpuflow.cluster.foreign import foreign_groups
from gpuflow.cluster.inventory import Inventory
from gpuflow.cluster.members import Members
from gpuflow.cluster.messages import SHIPPED, ChunkGroup, NodeInfo, Transferred, packed_column, unpacked_column
from gpuflow.cluster.places import Places, fits, needs_device
from gpuflow.cluster.recall import Recall
from gpuflow.cluster.residence import Residence
from gpuflow.cluster.routing import LOCAL, Release, Router, Waiting
from gpuflow.cluster.tasks import array_of, compute_seconds, group_of, is_chunk_task, work_of
from gpuflow.cluster.versions import NEWEST, OLDEST, routing_for
from gpuflow.settings import routing_mode

logger = logging.getLogger(__name__)

PARKED = frozenset({"gpuflow://parked"})
_TAKES_NO_TASKS = frozenset({Status.paused, Status.closing_gracefully})
"""Workers that still serve their chunks to others."""
_LOOK_AGAIN_SECONDS = 0.02  # while threads idle beside parked tasks, or nothing runs that could end; completions look at once


def _guarded(hook: Callable[..., None]) -> Callable[..., None]:
    """Dask logs what a hook raises and goes on; remember it, so that the client ends the run with it."""

    @wraps(hook)
    def call(self: GpuflowPlugin, *args: Any, **kwargs: Any) -> None:
        try:
            hook(self, *args, **kwargs)
        except Exception as error:  # noqa: BLE001 - whatever it is, the run must not go on
            self._break(hook.__name__, error)

    return call


class GpuflowPlugin(SchedulerPlugin):
    """Install with `install(scheduler)`; once a scheduler."""

    name = "gpuflow"

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.inventory, self.residence, self.router = Inventory(), Residence(), Router()
        self.routing = routing_for(distributed.__version__, routing_mode())
        self.broken = self._refusal()
        self.members = Members()
        self.places = Places()
        self.groups: dict[object, ChunkGroup] = {}
        self.reasons: dict[str, Counter[str]] = defaultdict(Counter)  # run -> why its tasks went where they went
        self.idle_seconds: dict[str, float] = defaultdict(float)  # run -> thread-seconds without work while it had tasks parked
        self._tasks: Counter[str] = Counter()  # run -> its tasks that Dask knows
        self._cursors: dict[str, int] = {}  # node -> sequence number up to which its manifest was read
        self._epoch = 0  # of the cursors: what was asked for before they went back to 0 says nothing about them
        self._recall = Recall(scheduler)
        self._claims = Claims()
        self.transferred: tuple[float, ...] = (0, 0, 0.0)  # between workers, by all runs
        self.figures = Figures()
        self._seen: dict[str, WorkerView] = {}  # by worker address
        self._idle_since: tuple[float, int, set[str]] | None = None
        self._timer: Any = None  # of the next look
        self._freeing: Any = None  # timer of the next look for users' tasks that no node can do
        self._soon = False  # whether that is as soon as the event loop gets to it
        if self.routing == "strict":
            logger.warning(
                "distributed %s is outside the tested range %s to %s: chunk tasks are restricted to their holders, nothing is shipped",
                distributed.__version__,
                ".".join(map(str, OLDEST)),
                ".".join(map(str, NEWEST[:2])),
            )

    def _refusal(self) -> str:
        if dask.config.get("distributed.scheduler.no-workers-timeout") is None:
            return ""
        return "distributed.scheduler.no-workers-timeout is set, which would fail parked chunk tasks; unset it on the scheduler"

    def _break(self, where: str, error: Exception) -> None:
        logger.error("gpuflow scheduler plugin: %s", where, exc_info=error)
        self.broken = f"{type(error).__name__} in {where}: {error}"
        self._kick(_LOOK_AGAIN_SECONDS)  # users' own tasks must not wait for ours

    # -- Dask's hooks ---------------------------------------------------------------------------------------------------------

    @_guarded
    def update_graph(self, scheduler: Scheduler, *, tasks: Iterable[Any], **kwargs: Any) -> None:
        """Before the first transition of new tasks: restrictions set here hold for all of them."""
        mine = [key for key in tasks if is_chunk_task(key) and key not in self.groups]
        for key in mine:  # first of all, so that no later error lets one run anywhere
            scheduler.tasks[key].worker_restrictions = set(PARKED)
        for key in mine:
            group = group_of(scheduler.tasks[key].run_spec)
            if group is None:
                raise TypeError(f"chunk task {key} holds no ChunkGroup")
            self._enter(key, group)
        if self.routing == "late" and not self.broken:
            others = (key for key in tasks if not is_chunk_task(key) and key not in self.groups)
            for key, group in foreign_groups(scheduler, others).items():
                if self._holders(group):
                    self._enter(key, group)

    def _enter(self, key: Any, group: ChunkGroup) -> None:
        self.groups[key] = group
        self._tasks[group.run] += 1
        self.figures.entered(group, time.monotonic())
        self._restrict(key)

    @_guarded
    def transition(self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        if key not in self.groups:
            if start == "processing" and self.router.waiting:  # somebody else's task made room
                self._kick()
            return
        if finish == "forgotten":
            self.router.discard(key)
            self._forget_task(key)
        elif finish == "memory":
            self.figures.finished(self.groups[key], time.monotonic(), local=self.router.is_local(key))
            self.router.finished(key, compute_seconds(kwargs.get("startstops") or ()))
        elif finish == "erred":
            self.router.discard(key)
        elif finish == "released":
            self._restrict(key)  # its worker is gone, while running it or holding its result; or it is not wanted any more
        elif finish == "no-worker":
            self._park(key)  # here and not above: what is released may be wanted again later, or never
        if start == "processing" or finish == "no-worker":
            self._kick()

    def _forget_task(self, key: Any) -> None:
        run = self.groups.pop(key).run
        self._tasks[run] -= 1
        if not self._tasks[run]:
            del self._tasks[run]
            self.router.ended(run)
            self.figures.ended(run, time.monotonic())
            if run.startswith(foreign.RUN):
                self.idle_seconds.pop(run, None)
                self.reasons[foreign.RUN].update(self.reasons.pop(run, {}))

    @_guarded
    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        answer = scheduler.workers[worker].extra.get("gpuflow")
        if answer is None:
            return
        if not self.members.join(worker, answer):
            logger.error("worker %s may not join: %s", worker, self.members.refused[worker])
            scheduler.loop.add_callback(self._send_away, worker)
            return
        info = self.members.nodes[worker]
        if self.places.add(info.node, info.device):
            self._park_anew(self.router.parked_at(set(self.places.live({info.node}))))
        orphaned = self.members.has_moved(worker) and self._forget_node(self.members.nodes[worker].node)
        for other in self.members.nodes if orphaned else [worker]:
            scheduler.loop.add_callback(self._sync_and_kick, other)

    def _send_away(self, worker: str) -> None:
        if worker in self.scheduler.stream_comms:
            message = {"op": "close", "reason": f"gpuflow's scheduler plugin refused it: {self.members.refused[worker]}"}
            self.scheduler.stream_comms[worker].send(message)

    @_guarded
    def remove_worker(self, scheduler: Scheduler, worker: str, **kwargs: Any) -> None:
        self._seen.pop(worker, None)
        self.residence.forget(worker)
        info = self.members.nodes.get(worker)
        if info is not None and needs_device(info.device):
            self._free_later()
        if self.members.leave(worker, time.monotonic()):
            self._rehome()
        self._kick()

    @_guarded
    def log_event(self, topic: str, msg: Any) -> None:
        """The only hook that tells of a worker's status; Dask calls it before it has changed all that goes with it."""
        if topic in self.members.nodes and isinstance(msg, dict) and msg.get("action") == "worker-status-change":
            self.scheduler.loop.add_callback(self._status_changed, topic)

    @_guarded
    def _status_changed(self, worker: str) -> None:
        state = self.scheduler.workers.get(worker)
        if state is not None and state.status in _TAKES_NO_TASKS:
            self._recall.ask(worker, self.groups.__contains__)
        self._kick()

    def valid_workers_downscaling(self, scheduler: Scheduler, workers: list[WorkerState]) -> list[WorkerState]:
        """All but one worker of each node that alone has what tasks still need."""
        try:
            kept = self._indispensable()
        except Exception as error:  # noqa: BLE001 - as in the other hooks; meanwhile all stay
            self._break("valid_workers_downscaling", error)
            return []
        return [worker for worker in workers if worker.address not in kept]

    def _indispensable(self) -> set[str]:
        there: dict[str, list[WorkerState]] = defaultdict(list)
        for address, info in self.members.nodes.items():
            if self.scheduler.workers[address].status in (Status.running, Status.paused):
                there[info.node].append(self.scheduler.workers[address])
        alone = {node for holders in self._holder_sets() if len(live := holders & there.keys()) == 1 for node in live}
        busiest = [max(there[node], key=lambda w: (w.status == Status.running, len(w.processing), w.address)) for node in alone]
        return {worker.address for worker in busiest}

    def _holder_sets(self) -> set[frozenset[str]]:
        """Of tasks that have not ended: nodes."""
        if self.routing == "late":
            return set(map(self.places.nodes_of, self.router.holder_sets()))
        tasks = self.scheduler.tasks
        return {self._holders(group) for key, group in self.groups.items() if tasks[key].state not in ("memory", "erred")}

    # -- parking and releasing --------------------------------------------------------------------------------------------------

    def _holders(self, group: ChunkGroup) -> frozenset[str]:
        live = self.members.workers_of.keys()
        if group.homes:
            return frozenset(group.homes).intersection(live) or frozenset(live)
        return frozenset([group.node]) if group.node else self.inventory.local_to(array_of(group), group.chunks, live)

    def _warm(self, group: ChunkGroup) -> str:
        """The worker that has most of the group's chunks in memory, where its run takes them from there."""
        return self.residence.home(array_of(group), group.chunks) if group.takes and not group.homes else ""

    def _restrict(self, key: Any) -> None:
        """Where the task may run: nowhere until it is released, or in strict mode on its holders' workers."""
        addresses: set[str] = set()
        if self.routing == "strict":
            group = self.groups[key]
            holders, wanted = self._holders(group), group.device
            able = {address for address, info in self.members.nodes.items() if fits(info.device, wanted)}
            addresses = {address for address in able if self.members.nodes[address].node in holders}
            if not addresses and needs_device(wanted) and group.movable and holders & self.members.workers_of.keys():
                addresses = able
        self.scheduler.tasks[key].worker_restrictions = addresses or set(PARKED)

    def _park(self, key: Any) -> None:
        if self.routing == "late":
            group = self.groups[key]
            holders = self._holders(group)
            where = self.places.of(holders, group.device)
            task = Waiting(key, group.run, where, group.nbytes, work_of(group), group.movable, group.device, self._warm(group))
            self.router.park(task)
            live = self.members.workers_of.keys()
            if foreign.is_foreign(group) and not (holders & live and self._has_device(group)):
                self._free_later()

    def _has_device(self, group: ChunkGroup) -> bool:
        """Whether there is a worker that has what the group wants."""
        return not needs_device(group.device) or any(fits(info.device, group.device) for info in self.members.nodes.values())

    def _free_later(self) -> None:
        if self._freeing is None:
            self._freeing = self.scheduler.loop.call_later(foreign.GRACE_SECONDS, self._free_stranded)

    @_guarded
    def _free_stranded(self) -> None:
        """Users' tasks whose chunks no live node has, or whose device no worker has, may run anywhere: nobody else would end their
        waiting."""
        self._freeing = None
        stranded = set(self._stranded())
        users = [(key, group) for key, group in self.groups.items() if foreign.is_foreign(group)]
        self._free([key for key, group in users if key in stranded or not self._has_device(group)])

    def _free(self, keys: list[Any]) -> None:
        """Leave parked tasks to Dask."""
        keys = [key for key in keys if self._is_parked(key)]
        for key in keys:
            self.router.discard(key)
            self._forget_task(key)
            self.scheduler.tasks[key].worker_restrictions = set()
        self.scheduler.transitions(dict.fromkeys(keys, "processing"), stimulus_id=f"gpuflow-free-{time.time()}")

    def _stuck(self) -> list[Any]:
        """Strict mode's tasks that no worker may take."""
        states = ((key, self.scheduler.tasks.get(key)) for key in self.groups)
        return [key for key, task in states if task is not None and task.state == "no-worker"]

    def _stranded(self) -> list[Any]:
        """Tasks that wait for a node which is not there."""
        live = self.members.workers_of.keys()
        if self.routing == "late":
            return self.router.stranded(self.places.live(live))
        return [key for key in self._stuck() if not self._holders(self.groups[key]) & live]

    def _kick(self, delay: float = 0.0) -> None:
        """Look at what can be released: as soon as may be, also where a later look is due; or after `delay` seconds at the latest."""
        if self.routing != "late" or (self._timer is not None and (delay or self._soon)):
            return
        if self._timer is not None:
            self.scheduler.loop.remove_timeout(self._timer)
        self._soon = not delay
        self._timer = self.scheduler.loop.call_later(delay, self._release)

    @_guarded
    def _release(self) -> None:
        self._timer = None
        if self.broken:
            self._free([key for key, group in self.groups.items() if foreign.is_foreign(group)])
        released = [] if self.broken else [release for release in self.router.release(self._views()) if self._pin(release)]
        self._count_idle()
        if released:
            states = {release.key: "processing" for release in released}
            self.scheduler.transitions(states, stimulus_id=f"gpuflow-release-{time.time()}")
        if self._idle_since is not None or self.router.stalled:
            self._kick(_LOOK_AGAIN_SECONDS)

    def _is_parked(self, key: Any) -> bool:
        task = self.scheduler.tasks.get(key)
        return task is not None and task.state == "no-worker"

    def _pin(self, release: Release) -> bool:
        task = self.scheduler.tasks.get(release.key)
        if task is None or not self._is_parked(release.key):
            self.router.discard(release.key)
            return False
        group = self.groups[release.key]
        if release.reason == LOCAL and self.members.nodes[release.worker].node not in self._holders(group):
            self._park(release.key)  # its node turned out not to have the chunks, or others have newer ones
            self._kick()
            return False
        task.worker_restrictions = {release.worker}
        self._tell_holders(task, group, release)
        self.reasons[group.run][release.reason] += len(group.chunks)
        return True

    def _tell_holders(self, task: TaskState, group: ChunkGroup, release: Release) -> None:
        """Have the task say why its worker does not hold its chunks, and who does: it need not ask."""
        task.annotations = {name: value for name, value in (task.annotations or {}).items() if name != SHIPPED}
        if release.reason != LOCAL and not group.homes:
            holders = set(self.inventory.holders(array_of(group), group.chunks))
            nodes = frozenset.intersection(*holders) & self.members.workers_of.keys()
            addresses = sorted(address for node in nodes for address in self.members.workers_of[node])
            task.annotations[SHIPPED] = (release.reason, addresses)

    def _views(self) -> list[WorkerView]:
        views = [view for address, info in self.members.nodes.items() if (view := self._view(address, info)) is not None]
        live = self.members.workers_of.keys()
        return [*views, *self.places.stand_ins(live, {view.node for view in views})] if self.places.live(live) != live else views

    def _view(self, address: str, info: NodeInfo) -> WorkerView | None:
        """The same object as before, if nothing has changed. None when the worker neither works nor serves."""
        state = self.scheduler.workers.get(address)
        if state is None or (state.status != Status.running and state.status not in _TAKES_NO_TASKS):
            return None
        threads, processing, known = state.nthreads, len(state.processing), self._seen.get(address)
        if state.status != Status.running:
            threads = 0
        if known is None or known.processing != processing or known.threads != threads:
            place = self.places.of_worker(info.node, info.device)
            known = self._seen[address] = WorkerView(address, place, threads, processing, info.device)
        return known

    def _count_idle(self) -> None:
        """Count the time since the last look, and remember how many threads idle now, beside parked tasks of which runs."""
        now = time.monotonic()
        if self._idle_since is not None:
            since, threads, runs = self._idle_since
            for run in runs:
                self.idle_seconds[run] += threads * (now - since) / len(runs)
        runs = self.router.waiting_runs() if self.router.idle_threads else set()
        self._idle_since = (now, self.router.idle_threads, runs) if runs else None

    # -- inventory --------------------------------------------------------------------------------------------------------------

    async def _sync_and_kick(self, worker: str) -> None:
        try:
            await self._sync(worker)
            self._rehome()
        except OSError:  # it went away again; when it comes back it is asked again
            logger.info("worker %s left before it reported its chunks", worker)
        except Exception as error:  # noqa: BLE001 - nobody awaits this
            self._break("_sync", error)
        self._kick()

    async def _sync(self, worker: str) -> None:
        """Read what the worker's node committed since it was last asked. OSError when the worker is gone."""
        if worker not in self.members.nodes:
            raise OSError(f"worker {worker} has left")
        node = self.members.nodes[worker].node
        epoch = self._epoch
        report = await self.scheduler.rpc(worker).gf_changes(since=self._cursors.get(node, 0))
        for dataset, array, chunks, generations in report["arrays"]:
            columns = (np.frombuffer(column, np.uint32) for column in (chunks, generations))
            self.inventory.report(node, (dataset, array), *columns)
        self.residence.forget(worker)
        self.handle_tiers(worker, report.get("ram", ()))
        if epoch == self._epoch:
            self._cursors[node] = max(self._cursors.get(node, 0), report["newest"])

    def _forget_node(self, node: str) -> bool:
        """What the node reported. Whether the others have to report anew what they have, since it alone had the newest of something."""
        self._cursors.pop(node, None)
        if not self.inventory.forget(node):
            return False
        self._cursors.clear()
        self._epoch += 1
        return True

    def _give_up(self) -> bool:
        """Forget nodes that have been gone for long: older generations that others have of their chunks are then the newest that live.
        Whether there were such."""
        gone = self.members.given_up(time.monotonic())
        for node in gone:
            logger.warning("node %s is gone: what others have of its chunks counts until it is back", node)
            self._forget_node(node)
        return bool(gone)

    def _rehome(self) -> None:
        """Parked tasks whose holders are now known otherwise go to the queue where they belong."""
        if self.routing == "late":
            self._park_anew(self.router.stranded(self.places.live(self.members.workers_of)))
            return
        stuck = self._stuck()
        for key in stuck:
            self._restrict(key)
        free = {key: "processing" for key in stuck if self.scheduler.tasks[key].worker_restrictions != PARKED}
        self.scheduler.transitions(free, stimulus_id=f"gpuflow-rehome-{time.time()}")

    def _park_anew(self, keys: list[Any]) -> None:
        """Where they now belong."""
        for key in keys:
            self._park(key)

    @_guarded
    def handle_delta(self, worker: str, node: str, commits: list[Any], transfer: Transferred) -> None:
        """A worker committed chunks: [(dataset, array, chunks, generations), ...]; it fetched `transfer`."""
        for dataset, array, chunks, generations in commits:
            self.inventory.report(node, (dataset, array), np.asarray(chunks, np.uint32), np.asarray(generations, np.uint32))
            self.residence.changed((dataset, array), chunks)
        chunks, nbytes, seconds = transfer
        self.router.rates.transferred(nbytes, seconds)
        self.figures.received(chunks, nbytes, time.monotonic())
        self.transferred = tuple(a + b for a, b in zip(self.transferred, transfer, strict=True))

    @_guarded
    def handle_tiers(self, worker: str, changes: Iterable[Any]) -> None:
        """A worker has other chunks decoded in memory: [(dataset, array, columns of those that came, and went), ...]."""
        if worker in self.members.nodes:
            for dataset, array, came, went in changes:
                self.residence.report(worker, (dataset, array), *(unpacked_column(each).tolist() for each in (came, went)))

    @_guarded
    def handle_lacks(self, worker: str, node: str, dataset: str, array: str, chunks: list[int]) -> None:
        """A worker found that its node cannot serve `chunks`. Tasks go to the other live nodes that hold them from now on; of the only
        one that is known to hold a chunk nothing is withdrawn: its error tells most."""
        others = self.members.workers_of.keys() - {node}
        holders = self.inventory.holders((dataset, array), chunks)
        gone = [chunk for chunk, nodes in zip(chunks, holders, strict=True) if node in nodes and nodes & others]
        if gone:
            logger.warning("node %s cannot serve %d chunks of %s/%s that it reported: others do", node, len(gone), dataset, array)
            self.inventory.withdraw(node, (dataset, array), gone)

    # -- what clients and workers ask ---------------------------------------------------------------------------------------------

    async def handle_sync(self) -> None:
        """Read what every node committed since it was last asked: another cluster may have used the same roots."""
        self._give_up()
        synced = set()
        for address, info in list(self.members.nodes.items()):
            if info.node in synced:
                continue
            try:
                await self._sync(address)
                synced.add(info.node)
            except OSError:  # another worker of its node is asked, or its next one when it joins
                logger.info("worker %s did not report its chunks", address)
        self._rehome()

    async def handle_withdraw(self, node: str, dataset: str, array: str, chunks: list[int]) -> None:
        """A node gave up its replicas of `chunks`."""
        self.inventory.withdraw(node, (dataset, array), chunks)

    async def handle_drop(self, dataset: str, array: str | None = None) -> None:
        """A dataset, or an array of it, was removed from the nodes."""
        self.inventory.drop(dataset, array)
        for worker in self.residence.drop(dataset, array) & self.members.nodes.keys():
            try:
                await self.scheduler.rpc(worker).gf_forget(dataset=dataset, array=array)
            except OSError:  # it is gone, and what it had with it
                logger.info("worker %s left before it forgot %s", worker, dataset)

    async def handle_wrote(self, node: str, commits: list[Any]) -> None:
        """A client committed chunks to a node's store that is on its machine."""
        self.handle_delta("", node, commits, (0, 0, 0.0))

    async def handle_info(self) -> Mapping[str, Any]:
        """Version, mode, what was transferred so far, and the nodes with their workers."""
        return {
            "version": __version__,
            "routing": self.routing,
            "broken": self.broken,
            "transferred": self.transferred,
            "workers": {
                address: {**asdict(info), "threads": state.nthreads}
                for address, info in self.members.nodes.items()
                if (state := self.scheduler.workers.get(address)) is not None
            },
            "foreign": sorted(set(self.scheduler.workers) - set(self.members.nodes) - set(self.members.refused)),
            "refused": dict(self.members.refused),
        }

    async def handle_locate(self, dataset: str, array: str, chunks: list[int], named: bool = False) -> list[list[Any]]:
        """Addresses of live workers on nodes that hold each of `chunks`; named: each with its node."""
        addresses: dict[str, list[Any]] = defaultdict(list)
        for address, info in sorted(self.members.nodes.items()):
            addresses[info.node].append((address, info.node) if named else address)
        return [
            [address for node in sorted(holders) for address in addresses[node]]
            for holders in self.inventory.holders((dataset, array), chunks)
        ]

    async def handle_claim(self, node: str, dataset: str, array: str, chunks: list[int], most: int) -> list[int]:
        """Those of `chunks` that `node` may keep a copy of."""
        holders = self.inventory.holders((dataset, array), chunks)
        return self._claims.grant(node, (dataset, array), chunks, holders, most, time.monotonic())

    async def handle_holders(self, dataset: str, array: str, count: int) -> list[list[str]]:
        """Nodes that hold the newest generation of chunks 0 to count - 1."""
        return [sorted(holders) for holders in self.inventory.holders((dataset, array), range(count))]

    async def handle_whereabouts(self, dataset: str, array: str, count: int) -> Mapping[str, Any]:
        """What lies where of an array, in compact columns: for 10^6 chunks 2 MB."""
        generations, holders, sets = self.inventory.columns((dataset, array), count)
        packed = {"generations": packed_column(generations), "holders": packed_column(holders)}
        return {**packed, "sets": [sorted(nodes) for nodes in sets]}

    async def handle_resident(
        self, dataset: str, array: str, among: tuple[str, bytes] | None = None
    ) -> list[tuple[str, str, tuple[str, bytes]]]:
        """Worker, its node, and a column of the chunks of an array that it has decoded in memory. among: a column; of these alone."""
        asked = None if among is None else set(unpacked_column(among).tolist())
        nodes, found = self.members.nodes, self.residence.of((dataset, array), asked)
        return [
            (worker, nodes[worker].node, packed_column(np.array(chunks)))
            for worker, chunks in sorted(found.items())
            if worker in nodes
        ]

    async def handle_watching(self, watch: Mapping[str, Any]) -> None:
        """The watcher of a pipeline tells how it fares: fields of WatchFigures."""
        self.figures.watched(WatchFigures(**watch, told=time.monotonic()))

    async def handle_run(self, run: str) -> Mapping[str, Any]:
        """How a run fares: what broke, why its chunks went where, its stranded tasks."""
        if self._stranded() and self._give_up():
            await self.handle_sync()
        return {
            "broken": self.broken,
            "reasons": dict(self.reasons[run]),
            "idle_seconds": self.idle_seconds[run],
            "transferred": self.transferred,
            "stranded": [key for key in self._stranded() if self.groups[key].run == run],
            "paused": [(sorted(nodes), tasks) for nodes, tasks in self._held_up(run).items()],
            "unfit": self._unfit(run),
        }

    def _held_up(self, run: str) -> Mapping[frozenset[str], int]:
        """Tasks that must stay on nodes all of whose workers are paused, by these nodes."""
        workers, nodes = self.scheduler.workers, self.members.workers_of
        paused = {node for node, there in nodes.items() if all(workers[address].status in _TAKES_NO_TASKS for address in there)}
        if not paused:
            return {}
        found = self.router.waiting_for(set(self.places.live(paused)), set(self.places.live(nodes.keys())), run)
        return {self.places.nodes_of(places): tasks for places, tasks in found.items()}

    def _unfit(self, run: str) -> int:
        """Tasks that wait for a device which no worker has."""
        return self.router.unfit(run)


def install(scheduler: Scheduler) -> GpuflowPlugin:
    """Add the plugin and its handlers to a scheduler."""
    plugin = GpuflowPlugin(scheduler)
    scheduler.handlers["gf_sync"] = plugin.handle_sync
    scheduler.handlers["gf_info"] = plugin.handle_info
    scheduler.handlers["gf_withdraw"] = plugin.handle_withdraw
    scheduler.handlers["gf_drop"] = plugin.handle_drop
    scheduler.handlers["gf_wrote"] = plugin.handle_wrote
    scheduler.handlers["gf_locate"] = plugin.handle_locate
    scheduler.handlers["gf_claim"] = plugin.handle_claim
    scheduler.handlers["gf_holders"] = plugin.handle_holders
    scheduler.handlers["gf_whereabouts"] = plugin.handle_whereabouts
    scheduler.handlers["gf_resident"] = plugin.handle_resident
    scheduler.handlers["gf_run"] = plugin.handle_run
    scheduler.handlers["gf_watching"] = plugin.handle_watching
    scheduler.stream_handlers["gf_delta"] = plugin.handle_delta
    scheduler.stream_handlers["gf_tiers"] = plugin.handle_tiers
    scheduler.stream_handlers["gf_lacks"] = plugin.handle_lacks
    scheduler.add_plugin(plugin)
    dashboard.install(plugin)
    metrics.install(plugin)
    for worker in list(scheduler.workers):  # a restarted scheduler may have been found before it had the plugin
        plugin.add_worker(scheduler, worker)
    return plugin
