"""`gpuflow watch`: pipelines that follow their sources, each in a thread of its own, for as long as there is a cluster, and again after it.

A pipeline that cannot go on is named and left; the others go on. Nothing is kept here: what is done is in the manifests, how far each
pipeline has come in its state."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from gpuflow.cluster.connection import Connection
from gpuflow.datasets.catalog import Nodes
from gpuflow.errors import ClusterError, ConfigError, GpuflowError, NameTaken, Problem
from gpuflow.pipelines.load import load_pipeline
from gpuflow.pipelines.spec import PipelineSpec
from gpuflow.storage.node import NodeStore
from gpuflow.triggers.chains import in_order, target_of
from gpuflow.triggers.delivery import Delivery
from gpuflow.triggers.event import Cursor, Event
from gpuflow.triggers.functions import Calling, Handler
from gpuflow.triggers.lasting import lasting
from gpuflow.triggers.state import Claim, WatchState, all_states, watcher_of
from gpuflow.triggers.watcher import ClaimLost, Say, Watcher

logger = logging.getLogger(__name__)

_CLAIM_SECONDS = 1.0  # between questions whether the other watcher has ended


def load_all(files: Sequence[Path], *, may_be_none: bool = False) -> list[tuple[Path, PipelineSpec]]:
    """Pipelines, each after those it reads from. ConfigError: see `chains.in_order`, or one of the files."""
    if not files and not may_be_none:
        raise ConfigError([Problem("there is nothing to watch", hint="name the pipelines' files")])
    loaded = [(str(file), load_pipeline(file)) for file in files]
    return [(Path(file), spec) for file, spec in in_order(loaded)]


@dataclass
class Watching:
    """Of `pipelines`, each with its file, which is looked at for edits. connect: a cluster, anew after one was lost. at_once: how many of
    them run at a time. handlers: functions that are called with events."""

    pipelines: Sequence[tuple[Path | None, PipelineSpec]]
    connect: Callable[[], AbstractContextManager[Connection]]
    say: Say
    at_once: int = 2
    handlers: Sequence[Handler] = ()
    stop: threading.Event = field(default_factory=threading.Event)
    failed: dict[str, str] = field(default_factory=dict)
    """What stopped pipelines that cannot go on, by the dataset that they write."""

    def forever(self, refit: bool = False) -> None:
        """Until `stop` is set, or no pipeline is left. ClusterError when there is no cluster to begin with."""
        first = [refit]  # a whole run is asked for once, however often the cluster is lost

        def work(connection: Connection) -> None:
            self._session(connection, first.pop() if first else False)

        lasting(self.connect, work, self.stop, self.say)

    def _session(self, connection: Connection, refit: bool) -> None:
        """With one cluster. ClusterError or OSError when that is gone."""
        ended, lost = threading.Event(), list[Exception]()
        slots = threading.Semaphore(self.at_once)

        def follow(name: str, go_on: Callable[[], None]) -> None:
            try:
                go_on()
            except (ConfigError, NameTaken) as error:
                self.failed[name] = str(error)
                self.say(f"{name} is not watched any more: {error}")
            except Exception as error:
                if not isinstance(error, GpuflowError | OSError):
                    logger.error("watching %s", name, exc_info=error)
                lost.append(error)
                ended.set()

        work: dict[str, Callable[[], None]] = {}
        for file, spec in self.pipelines:
            work[target_of(spec)] = partial(self._follow, connection, file, spec, slots, ended, refit)
        for handler in self.handlers:
            work[handler.name] = partial(self._call, connection, handler, ended)
        left = [(name, go_on) for name, go_on in work.items() if name not in self.failed]
        threads = [threading.Thread(target=follow, args=one, name=f"watch {one[0]}", daemon=True) for one in left]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            if self.stop.wait(0.1):
                ended.set()
                for thread in threads:
                    thread.join()
        if lost and not self.stop.is_set():
            raise lost[0] if isinstance(lost[0], ClusterError | OSError) else ClusterError(f"{type(lost[0]).__name__}: {lost[0]}")

    def _follow(
        self,
        connection: Connection,
        file: Path | None,
        spec: PipelineSpec,
        slots: threading.Semaphore,
        ended: threading.Event,
        refit: bool,
    ) -> None:
        name, asked = target_of(spec), refit
        while not ended.is_set():
            claim, told = Claim(connection, name), False
            try:
                while (other := claim.take()) is not None:
                    if not told:
                        self.say(f"{name} is watched by {other}; waiting for that to end")
                        told = True
                    if ended.wait(_CLAIM_SECONDS):
                        return
                watcher = Watcher(connection, spec, file, self.say, slots, claim.is_held)
                watcher.begin(asked)
                asked = False
                self.say(f"{name}: watching {spec.source.dataset}")
                watcher.follow(ended)
            except ClaimLost:
                self.say(f"{name}: this process was cut off for so long that another one watches it now")
            finally:
                claim.give_back()

    def _call(self, connection: Connection, handler: Handler, ended: threading.Event) -> None:
        calling = Calling(connection, handler)

        def give_up(events: Sequence[Event], reason: str) -> None:
            for event in events:
                self.say(f"{handler.name}: {event.dataset}/{event.array} chunk {event.chunk} is given up: {reason}")

        name = f"function@{handler.name}"
        delivery = Delivery(connection, name, handler.dataset, calling.call, give_up, tries=handler.tries, say=self.say)
        self.say(f"{handler.name}: called with what happens to {handler.dataset}")
        delivery.follow(ended)

    def once(self, refit: bool = False) -> bool:
        """Deal with what has changed by now, pipeline after pipeline, and end. Whether nothing is left to do. NameTaken when one is
        watched already."""
        done = True
        with self.connect() as connection:
            for file, spec in self.pipelines:
                claim = Claim(connection, target_of(spec))
                try:
                    if (other := claim.take()) is not None:
                        raise NameTaken(
                            target_of(spec), f"is watched by {other}, which does what is to be done; or stop that one"
                        )
                    watcher = Watcher(connection, spec, file, self.say, threading.Semaphore(), claim.is_held)
                    watcher.begin(refit)
                    done &= watcher.once()
                finally:
                    claim.give_back()
        return done


@dataclass(frozen=True)
class Status:
    """Of a pipeline that is or was watched. watcher: who does now, or None. behind: commits, of whatever dataset, since its cursor."""

    state: WatchState
    watcher: str | None
    behind: int


def statuses(nodes: Nodes) -> list[Status]:
    """Of all of them, by the dataset that they write."""
    newest = nodes.each_node(_newest)
    found = []
    for state in all_states(nodes):
        known = Cursor.parse(state.cursor).nodes if state.cursor else {}
        behind = sum(max(0, number - known.get(node, 0)) for node, number in newest.items())
        found.append(Status(state, watcher_of(nodes, state.name), behind))
    return found


def _newest(store: NodeStore) -> int:
    return int(store.manifest.query("SELECT value FROM meta WHERE key = 'seq'")[0][0])
