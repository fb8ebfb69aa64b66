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

from gpuflow import __version__
from gpuflow.cluster.inventory import Inventory
from gpuflow.cluster.messages import PREFIX, ChunkGroup, NodeInfo
from gpuflow.cluster.routing import Release, Router, Waiting, WorkerView
from gpuflow.cluster.versions import NEWEST, OLDEST, routing_for
from gpuflow.settings import routing_mode

logger = logging.getLogger(__name__)

PARKED = frozenset({"gpuflow://parked"})
_CHUNK_WORK = 2**20
"""What a chunk costs whatever its size, as so many decoded bytes: else one of 42 bytes makes all others look slow."""
_NOTHING: Mapping[str, int] = {}
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
        self.inventory, self.router = Inventory(), Router()
        self.routing = routing_for(distributed.__version__, routing_mode())
        self.broken = self._refusal()
        self.nodes: dict[str, NodeInfo] = {}  # by worker address
        self.groups: dict[object, ChunkGroup] = {}
        self.reasons: dict[str, Counter[str]] = defaultdict(Counter)  # run -> why its tasks went where they went
        self.idle_seconds: dict[str, float] = defaultdict(float)  # run -> thread-seconds without work while it had tasks parked
        self._tasks: Counter[str] = Counter()  # run -> its tasks that Dask knows
        self._cursors: dict[str, int] = {}  # node -> sequence number up to which its manifest was read
        self._idle_since: tuple[float, int, set[str]] | None = None
        self._timer: Any = None  # of the next look
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

    # -- Dask's hooks ---------------------------------------------------------------------------------------------------------

    @_guarded
    def update_graph(self, scheduler: Scheduler, *, tasks: Iterable[Any], **kwargs: Any) -> None:
        """Before the first transition of new tasks: restrictions set here hold for all of them."""
        mine = [key for key in tasks if _is_chunk_task(key) and key not in self.groups]
        for key in mine:  # first of all, so that no later error lets one run anywhere
            scheduler.tasks[key].worker_restrictions = set(PARKED)
        for key in mine:
            group = _group_of(scheduler.tasks[key].run_spec)
            if group is None:
                raise TypeError(f"chunk task {key} holds no ChunkGroup")
            self.groups[key] = group
            self._tasks[group.run] += 1
            self._restrict(key)

    @_guarded
    def transition(self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        if key not in self.groups:
            if start == "processing" and self.router.waiting:  # somebody else's task made room
                self._kick()
            return
        if finish == "forgotten":
            self.router.discard(key)
            run = self.groups.pop(key).run
            self._tasks[run] -= 1
            if not self._tasks[run]:
                del self._tasks[run]
                self.router.ended(run)
        elif finish == "memory":
            self.router.finished(key, _compute_seconds(kwargs.get("startstops") or ()))
        elif finish == "erred":
            self.router.discard(key)
        elif finish == "released":
            self._restrict(key)  # its worker is gone, while running it or holding its result; or it is not wanted any more
        elif finish == "no-worker":
            self._park(key)  # here and not above: what is released may be wanted again later, or never
        if start == "processing" or finish == "no-worker":
            self._kick()

    @_guarded
    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        info = scheduler.workers[worker].extra.get("gpuflow")
        if info is not None:
            self.nodes[worker] = NodeInfo(**info)
            scheduler.loop.add_callback(self._sync_and_kick, worker)

    @_guarded
    def remove_worker(self, scheduler: Scheduler, worker: str, **kwargs: Any) -> None:
        self.nodes.pop(worker, None)
        self._kick()

    # -- parking and releasing --------------------------------------------------------------------------------------------------

    def _holders(self, group: ChunkGroup) -> frozenset[str]:
        return frozenset([group.node]) if group.node else self.inventory.common_holders(_array(group), group.chunks)

    def _live(self) -> set[str]:
        return {info.node for info in self.nodes.values()}

    def _restrict(self, key: Any) -> None:
        """Where the task may run: nowhere until it is released, or in strict mode on its holders' workers."""
        addresses: set[str] = set()
        if self.routing == "strict":
            holders = self._holders(self.groups[key])
            addresses = {address for address, info in self.nodes.items() if info.node in holders}
        self.scheduler.tasks[key].worker_restrictions = addresses or set(PARKED)

    def _park(self, key: Any) -> None:
        if self.routing == "late":
            group = self.groups[key]
            self.router.park(Waiting(key, group.run, self._holders(group), group.nbytes, _work(group), group.movable))

    def _stuck(self) -> list[Any]:
        """Strict mode's tasks that no worker may take."""
        states = ((key, self.scheduler.tasks.get(key)) for key in self.groups)
        return [key for key, task in states if task is not None and task.state == "no-worker"]

    def _stranded(self) -> list[Any]:
        """Tasks that wait for a node which is not there."""
        live = self._live()
        if self.routing == "late":
            return self.router.stranded(live)
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
        workers = self._views()
        self._count_idle(workers)
        released = [] if self.broken else [release for release in self.router.release(workers) if self._pin(release)]
        if released:
            states = {release.key: "processing" for release in released}
            self.scheduler.transitions(states, stimulus_id=f"gpuflow-release-{time.time()}")
            self._count_idle(workers, Counter(release.worker for release in released))
        if self._idle_since is not None or self.router.stalled:
            self._kick(_LOOK_AGAIN_SECONDS)

    def _pin(self, release: Release) -> bool:
        task = self.scheduler.tasks.get(release.key)
        if task is None or task.state != "no-worker":
            self.router.discard(release.key)
            return False
        task.worker_restrictions = {release.worker}
        self.reasons[self.groups[release.key].run][release.reason] += len(self.groups[release.key].chunks)
        return True

    def _views(self) -> list[WorkerView]:
        workers = ((address, self.scheduler.workers.get(address)) for address in sorted(self.nodes))
        return [
            WorkerView(address, self.nodes[address].node, state.nthreads, len(state.processing))
            for address, state in workers
            if state is not None and state.status == Status.running
        ]

    def _count_idle(self, workers: list[WorkerView], given: Mapping[str, int] = _NOTHING) -> None:
        """Count the time since the last look, and remember how many threads idle now. given: tasks since `workers` were looked at."""
        now = time.monotonic()
        if self._idle_since is not None:
            since, threads, runs = self._idle_since
            for run in runs:
                self.idle_seconds[run] += threads * (now - since) / len(runs)
        idle = sum(max(worker.threads - worker.processing - given.get(worker.address, 0), 0) for worker in workers)
        runs = self.router.waiting_runs() if idle else set()
        self._idle_since = (now, idle, runs) if runs else None

    # -- inventory --------------------------------------------------------------------------------------------------------------

    async def _sync_and_kick(self, worker: str) -> None:
        try:
            await self._sync(worker)
        except OSError:  # it went away again; when it comes back it is asked again
            logger.info("worker %s left before it reported its chunks", worker)
        except Exception as error:  # noqa: BLE001 - nobody awaits this
            self._break("_sync", error)
        self._kick()

    async def _sync(self, worker: str) -> None:
        """Read what the worker's node committed since it was last asked. OSError when the worker is gone."""
        if worker not in self.nodes:
            raise OSError(f"worker {worker} has left")
        node = self.nodes[worker].node
        report = await self.scheduler.rpc(worker).gf_changes(since=self._cursors.get(node, 0))
        for dataset, array, chunks, generations in report["arrays"]:
            columns = (np.frombuffer(column, np.uint32) for column in (chunks, generations))
            self.inventory.report(node, (dataset, array), *columns)
        self._cursors[node] = max(self._cursors.get(node, 0), report["newest"])
        self._rehome()

    def _rehome(self) -> None:
        """Parked tasks whose holders are now known otherwise go to the queue where they belong."""
        if self.routing == "late":
            for key in self.router.stranded(self._live()):
                self._park(key)
            return
        stuck = self._stuck()
        for key in stuck:
            self._restrict(key)
        free = {key: "processing" for key in stuck if self.scheduler.tasks[key].worker_restrictions != PARKED}
        self.scheduler.transitions(free, stimulus_id=f"gpuflow-rehome-{time.time()}")

    @_guarded
    def handle_delta(self, worker: str, node: str, commits: list[Any], transfer: tuple[int, float]) -> None:
        """A worker committed chunks: [(dataset, array, chunks, generations), ...]; it fetched `transfer` = (bytes, seconds)."""
        for dataset, array, chunks, generations in commits:
            self.inventory.report(node, (dataset, array), np.asarray(chunks, np.uint32), np.asarray(generations, np.uint32))
        self.router.rates.transferred(*transfer)

    # -- what clients and workers ask ---------------------------------------------------------------------------------------------

    async def handle_sync(self) -> None:
        """Read what every node committed since it was last asked: another cluster may have used the same roots."""
        synced = set()
        for address, info in list(self.nodes.items()):
            if info.node in synced:
                continue
            try:
                await self._sync(address)
                synced.add(info.node)
            except OSError:  # another worker of its node is asked, or its next one when it joins
                logger.info("worker %s did not report its chunks", address)

    async def handle_drop(self, dataset: str) -> None:
        """A dataset was removed from the nodes."""
        self.inventory.drop(dataset)

    async def handle_info(self) -> Mapping[str, Any]:
        """Version, mode, and the nodes with their workers."""
        return {
            "version": __version__,
            "routing": self.routing,
            "broken": self.broken,
            "workers": {
                address: {**asdict(info), "threads": state.nthreads}
                for address, info in self.nodes.items()
                if (state := self.scheduler.workers.get(address)) is not None
            },
            "foreign": sorted(set(self.scheduler.workers) - set(self.nodes)),
        }

    async def handle_locate(self, dataset: str, array: str, chunks: list[int]) -> list[list[str]]:
        """Addresses of live workers on nodes that hold each of `chunks`."""
        addresses: dict[str, list[str]] = defaultdict(list)
        for address, info in sorted(self.nodes.items()):
            addresses[info.node].append(address)
        return [
            [address for node in sorted(holders) for address in addresses[node]]
            for holders in self.inventory.holders((dataset, array), chunks)
        ]

    async def handle_holders(self, dataset: str, array: str, count: int) -> list[list[str]]:
        """Nodes that hold the newest generation of chunks 0 to count - 1."""
        return [sorted(holders) for holders in self.inventory.holders((dataset, array), range(count))]

    async def handle_run(self, run: str) -> Mapping[str, Any]:
        """How a run fares: what broke, why its chunks went where, its stranded tasks."""
        return {
            "broken": self.broken,
            "reasons": dict(self.reasons[run]),
            "idle_seconds": self.idle_seconds[run],
            "stranded": [key for key in self._stranded() if self.groups[key].run == run],
        }


def install(scheduler: Scheduler) -> GpuflowPlugin:
    """Add the plugin and its handlers to a scheduler."""
    plugin = GpuflowPlugin(scheduler)
    scheduler.handlers["gf_sync"] = plugin.handle_sync
    scheduler.handlers["gf_info"] = plugin.handle_info
    scheduler.handlers["gf_drop"] = plugin.handle_drop
    scheduler.handlers["gf_locate"] = plugin.handle_locate
    scheduler.handlers["gf_holders"] = plugin.handle_holders
    scheduler.handlers["gf_run"] = plugin.handle_run
    scheduler.stream_handlers["gf_delta"] = plugin.handle_delta
    scheduler.add_plugin(plugin)
    for worker in list(scheduler.workers):  # a restarted scheduler may have been found before it had the plugin
        plugin.add_worker(scheduler, worker)
    return plugin


def _is_chunk_task(key: Any) -> bool:
    return isinstance(key, tuple) and isinstance(key[0], str) and key[0].startswith(PREFIX)


def _array(group: ChunkGroup) -> tuple[str, str]:
    return group.dataset, group.array


def _group_of(run_spec: Any) -> ChunkGroup | None:
    """The ChunkGroup among a task's arguments: tasks are routed by what they hold, since annotations get lost on the way."""
    if isinstance(run_spec, ChunkGroup):
        return run_spec
    if isinstance(run_spec, dict):
        parts: Iterable[Any] = run_spec.values()
    elif isinstance(run_spec, list | tuple):
        parts = run_spec
    elif hasattr(run_spec, "args"):
        parts = [*run_spec.args, *getattr(run_spec, "kwargs", {}).values()]
    else:
        return None
    return next((found for part in parts if (found := _group_of(part)) is not None), None)


def _compute_seconds(startstops: Iterable[Mapping[str, Any]]) -> float:
    return float(sum(part["stop"] - part["start"] for part in startstops if part["action"] == "compute"))


def _work(group: ChunkGroup) -> int:
    """What the time of a task is proportional to."""
    return group.work + _CHUNK_WORK * len(group.chunks)
