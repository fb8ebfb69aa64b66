"""One pipeline that follows its source: what changes there is run through it, and nothing else.

That a chunk is done its recipe tells, as in any run; the watcher adds only which chunks to look at, and never moves its cursor before what
it covers is committed. So it may die at any moment: what comes again finds itself done."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gpuflow.cluster.connection import Connection
from gpuflow.cluster.figures import WATCH_SECONDS
from gpuflow.datasets import catalog
from gpuflow.errors import ConfigError, GpuflowError, NameTaken, NotFound, Problem
from gpuflow.execution.changed import parameters_of, run_changed
from gpuflow.execution.receipt import Receipt
from gpuflow.execution.run import look, prepare
from gpuflow.objectstore.healing import run_and_heal
from gpuflow.objectstore.ingest import remove_dataset
from gpuflow.pipelines.fingerprint import fingerprint
from gpuflow.pipelines.load import load_pipeline
from gpuflow.pipelines.plan import Plan, make_plan, steps_as_data
from gpuflow.pipelines.spec import OnSpec, PipelineSpec
from gpuflow.storage.record import DatasetRecord
from gpuflow.triggers.chains import target_of
from gpuflow.triggers.event import PUBLISHED, REMOVED, Event
from gpuflow.triggers.feed import Feed, events
from gpuflow.triggers.gathering import Chunks, Gathering
from gpuflow.triggers.state import WatchState, load_state, save_state

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0  # at the pipeline's file, and at whether to stop
_TAKE_SECONDS = 0.002  # for events that have come already, when a batch is due
_MOST_OWN = 1000  # runs of its own that are remembered

Say = Callable[[str], None]


class ClaimLost(Exception):
    """Another process watches the pipeline now: this one has been cut off for too long."""


def identity_of(spec: PipelineSpec) -> str:
    """What the pipeline does, whatever it runs on and when."""
    return fingerprint([spec.source.to_value(), steps_as_data(spec.steps), spec.output.to_value()])


@dataclass
class Watcher:
    """Of the pipeline `spec`, read from `file`. say: takes what its user should know. slots: how many pipelines run at a time. is_held:
    whether it still is the only one."""

    connection: Connection
    spec: PipelineSpec
    file: Path | None
    say: Say
    slots: threading.Semaphore
    is_held: Callable[[], bool]

    def __post_init__(self) -> None:
        self.on = self.spec.on or OnSpec(dataset=self.spec.source.dataset)
        self.name, self.source = target_of(self.spec), self.spec.source.dataset
        self._gathering, self._own = Gathering(self.on), dict[str, None]()
        self._read, self._waits, self._told = self._stamp(), "", 0.0
        self.state = WatchState(self.name, self.source, identity_of(self.spec))

    # -- the beginning ----------------------------------------------------------------------------------------------------------

    def begin(self, refit: bool) -> None:
        """Take up where the last watcher left off. ConfigError when it was another pipeline that wrote the dataset until now, and `refit`
        does not ask for all of it to be made again."""
        known = load_state(self.connection, self.name)
        if known is not None and known.identity != self.state.identity and not refit:
            raise ConfigError([self._edited()])
        if known is None or refit:
            if known is not None:
                self.state = replace(self.state, version=known.version, counts=known.counts)
                self._make_room()
            with events(
                "now", connection=self.connection
            ) as feed:  # what changes from here on is told, however long the run takes
                self._save(replace(self.state, cursor=feed.cursor, whole=True))
            self._gathering.must_run_whole()
            return
        self.state = replace(known, source=self.source)
        self._gathering.left = {array: set(chunks) for array, chunks in known.left.items()}
        self._gathering.whole = known.whole

    def _edited(self) -> Problem:
        """What an edited pipeline means, in words."""
        try:
            found = look(self.connection, self.spec)
            source = catalog.find_among(catalog.live(found.records), self.source)
            count = sum(array.target.grid.size for array in make_plan(self.spec, source).arrays)
            what = f"all {count} chunks of {self.name!r} would be made again"
        except GpuflowError:
            what = f"all chunks of {self.name!r} would be made again"
        remedy = "watch it with --refit to do that, or undo the change"
        if self.spec.output.in_place:
            remedy = "what was changed in place stays so: roll back to a snapshot, or undo the change of the file"
        return Problem(f"the pipeline was edited since it was last watched: {what}", str(self.file or ""), hint=remedy)

    def _make_room(self) -> None:
        """For a dataset that another pipeline made: made again chunk by chunk where its arrays stay as they are, else anew."""
        if self.spec.output.in_place:
            raise ConfigError([self._edited()])
        records = catalog.records(self.connection)
        there, source = records.get(self.name), records.get(self.source)
        if there is None or source is None:
            return
        try:
            prepare(look(self.connection, self.spec), self.spec)
        except NameTaken:
            wanted = self._wanted(source)
            if wanted is not None and wanted.arrays == there.arrays and not there.transforms:
                catalog.publish(self.connection, there.next(state="writing", origin=wanted.origin))
            else:
                remove_dataset(self.connection, self.name)

    def _wanted(self, source: DatasetRecord) -> DatasetRecord | None:
        if self.spec.output.compressor == "auto":
            return None
        return make_plan(self.spec, source).output_record()

    # -- going on ---------------------------------------------------------------------------------------------------------------

    def follow(self, stop: threading.Event) -> None:
        """Until `stop`, or until it must not go on: ConfigError when the file says something else now, ClusterError without a cluster."""
        with self._feed(follow=True) as feed:
            while not stop.is_set():
                wait = self._gathering.wait_seconds(time.monotonic())
                event = feed.next(_LOOK_SECONDS if wait is None else min(wait, _LOOK_SECONDS))
                if event is not None:
                    self._take(event)
                    self._drain(feed)
                elif wait is None or wait > 0:
                    self._check_file()
                    if time.monotonic() - self._told > WATCH_SECONDS:
                        self._tell()
                wait = self._gathering.wait_seconds(time.monotonic())
                if wait == 0 and not stop.is_set():
                    self._work(feed.cursor)

    def once(self) -> bool:
        """All that has changed by now. Whether nothing is left to be done."""
        with self._feed(follow=False) as feed:
            for event in feed:
                self._take(event)
            cursor = feed.cursor
        if not self._gathering.is_idle:
            self._work(cursor)
        elif cursor != self.state.cursor:
            self._save(replace(self.state, cursor=cursor))
        return self._gathering.is_idle and not self.state.given_up

    def _feed(self, follow: bool) -> Feed:
        try:
            feed = events(self.state.cursor, follow=follow, dataset=self.source, connection=self.connection)
        except ConfigError as error:  # of nodes that are all gone: what these ones have is looked at anew
            self.say(f"{self.name}: {error}; all of {self.source!r} is looked at")
            self._gathering.must_run_whole()
            feed = events("now", follow=follow, dataset=self.source, connection=self.connection)
        for notice in feed.notices:
            self.say(f"{self.name}: {notice}")
        return feed

    def _drain(self, feed: Feed) -> None:
        """What has come already, up to what fills a run."""
        while self._gathering.count < self.on.batch_chunks and (event := feed.next(_TAKE_SECONDS)) is not None:
            self._take(event)

    def _take(self, event: Event) -> None:
        if event.kind == PUBLISHED:
            self._gathering.must_run_whole()
        elif event.kind == REMOVED:
            if not event.array:
                self.say(f"{self.name}: its source {self.source!r} was removed; it waits for one of that name")
                self._gathering.clear()
        elif event.chunk is not None and event.run not in self._own and self._reads(event.array):
            self.state = self.state.counted(events=1)
            self._gathering.add(event.array, event.chunk)

    def _reads(self, array: str) -> bool:
        """Whether it matters to the output; to a new dataset all do, as it has those that no step is for too."""
        return not self.spec.output.in_place or self.spec.source.selects(array)

    def _stamp(self) -> tuple[int, int] | None:
        try:
            found = self.file.stat() if self.file is not None else None
        except OSError:  # an editor is just replacing it; or it is gone, and what was read from it holds
            return None
        return None if found is None else (found.st_mtime_ns, found.st_size)

    def _check_file(self) -> None:
        stamp = self._stamp()
        if stamp is None or stamp == self._read or self.file is None:
            return
        self._read = stamp
        spec = load_pipeline(self.file)
        if identity_of(spec) != self.state.identity:
            self.spec = spec
            raise ConfigError([self._edited()])

    def _save(self, state: WatchState) -> None:
        self.state = save_state(self.connection, state)
        self._tell()

    def _tell(self) -> None:
        """The scheduler, for who looks at its dashboard or metrics."""
        state, self._told = self.state, time.monotonic()
        watch = {"name": self.name, "source": self.source, "problem": state.problem, "given_up": len(state.given_up)}
        watch |= {name: state.counts.get(name, 0) for name in ("runs", "chunks")}
        self.connection.ask("gf_watching", watch={**watch, "left": sum(map(len, self._undone().values()))})

    # -- a batch ----------------------------------------------------------------------------------------------------------------

    def _work(self, cursor: str) -> None:
        """Do what is due; then, and not before, that it is done is written down."""
        if not self.is_held():
            raise ClaimLost(self.name)
        failed, problem, self._waits = False, "", ""
        try:
            with self.slots:
                failed = self._run_due()
            problem = self._waits
        except NotFound as error:  # when it is there, that is an event
            problem = str(error)
            self._gathering.clear()
        except (NameTaken, ConfigError) as error:  # somebody has it, or it is not complete, or it does not fit
            failed, problem = True, str(error)
        if problem and problem != self.state.problem:
            self.say(f"{self.name}: {problem}")
        self._gathering.ended(time.monotonic(), failed)
        state = replace(self.state, cursor=cursor, left=self._undone(), problem=problem, whole=self._gathering.whole)
        self._save(state)

    def _run_due(self) -> bool:
        if self._gathering.whole:
            return self._run_whole()
        failed = False
        for batch in self._gathering.batch(time.monotonic()):
            failed |= self._run_whole() if self._gathering.whole else self._run_on(batch)
        return failed

    def _undone(self) -> dict[str, list[int]]:
        left, fresh = self._gathering.left, self._gathering.fresh
        both = {array: left.get(array, set()) | fresh.get(array, set()) for array in {*left, *fresh}}
        return {array: sorted(chunks) for array, chunks in both.items() if chunks}

    def _run_whole(self) -> bool:
        """A run over all of the source. Whether something failed that is to be tried again."""
        source = catalog.records(self.connection).get(self.source)
        if source is None or source.state != "ready":
            raise NotFound("complete dataset", self.source, hint="it is waited for")
        plans: list[Plan] = []
        self._gathering.batch(time.monotonic())
        receipt = run_and_heal(self.connection, self.spec, resolved=plans.append)
        if plans:
            self.state = replace(self.state, fitted=parameters_of(plans[-1]))
        failed = self._count(receipt, None)
        if not failed:
            self._gathering.clear()
        return failed

    def _run_on(self, batch: Chunks) -> bool:
        looked = set[str]()
        receipt = run_changed(
            self.connection, self.spec, batch, self.state.fitted, decided=lambda decision: looked.update(decision.names())
        )
        if receipt is None:
            self._gathering.whole = True
            return self._run_whole()
        if any(failure.damaged for failure in receipt.outcome.tally.failures):
            self._gathering.must_run_whole()  # which makes good what it can
        failed = self._count(receipt, looked)
        if not failed:
            self._gathering.succeeded(batch)
        return failed

    def _count(self, receipt: Receipt, looked: set[str] | None) -> bool:
        """What came of a run that looked at those chunks, or at all of them. Whether chunks failed that are not given up."""
        self._own[receipt.run_id] = None
        while len(self._own) > _MOST_OWN:
            self._own.pop(next(iter(self._own)))
        tally = receipt.outcome.tally
        failing = {failure.chunk: failure for failure in tally.failures}

        def done(name: str) -> bool:
            return name not in failing and (looked is None or name in looked)

        tries = {name: number for name, number in self.state.tries.items() if not done(name)}
        given_up = {name: one for name, one in self.state.given_up.items() if not done(name)}
        open_failures, waits = 0, ""
        for name, failure in failing.items():
            if not failure.traceback:  # no step raised: a node is away, or a disk is full; that passes, however long it takes
                open_failures, waits = open_failures + 1, waits or failure.error
                continue
            tries[name] = tries.get(name, 0) + 1
            if tries[name] < self.on.tries:
                open_failures += 1
                continue
            if name not in given_up:
                self.say(f"{self.name}: chunk {name} is given up after {tries[name]} tries: {failure.error}")
            given_up[name] = {"reason": failure.error, "time": time.time(), "tries": tries.pop(name)}
        self.state = replace(self.state, tries=tries, given_up=given_up)
        self._waits = waits or self._waits
        self.state = self.state.counted(runs=1, chunks=tally.done, skipped=tally.skipped + receipt.planned_skips)
        if tally.done or failing:
            self.say(
                f"{self.name}: {tally.done} chunks in {receipt.wall_seconds:.2f} s"
                + (f", {len(failing)} failed" if failing else "")
            )
        return bool(open_failures) or receipt.outcome.interrupted


def as_plain(state: WatchState) -> dict[str, Any]:
    """For `--json`."""
    return {name: value for name, value in state.to_dict().items() if name not in ("fitted",)}
