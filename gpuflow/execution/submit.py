"""Groups of chunks to the cluster and their results back: progress, retries, stranded chunks, Ctrl-C.

A user's error is final for its chunk. A chunk that infrastructure failed (its node was gone, its worker was killed) is tried again, alone
in its task after a kill, so that one deadly chunk does not take others with it."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from distributed import Future, as_completed
from distributed.scheduler import KilledWorker

from gpuflow.cluster.connection import Connection
from gpuflow.cluster.messages import PREFIX, ChunkGroup, Transferred
from gpuflow.errors import ChunkLost, ClusterError, DeviceUnavailable
from gpuflow.execution.groups import Cutter, in_turn, part_of
from gpuflow.execution.lane import GroupResult, Job, run_group
from gpuflow.execution.tally import Failure, Tally
from gpuflow.pipelines.memory import Sharing

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 0.05  # between looks at what has finished, where no end of a task gives the occasion
_ASK_SECONDS = 1.0  # between questions to the scheduler about the run
_AHEAD = 8  # tasks, at least
_TRIES = 3
HOLDER_PATIENCE_SECONDS = 30.0
"""How long a chunk may be without a live holder before it counts as lost: a worker restart takes 2 s, a node's reboot is not waited for."""


class Progress(Protocol):
    """Where a run tells how far it is."""

    def begin(self, title: str, chunks: int) -> None:
        """A pass over `chunks` chunks begins."""
        ...

    def advance(self, chunks: int) -> None:
        """So many more have ended, well or not."""
        ...


class Silent:
    """Progress that goes nowhere."""

    def begin(self, title: str, chunks: int) -> None: ...

    def advance(self, chunks: int) -> None: ...


@dataclass(slots=True)
class Outcome:
    """What a run's tasks came to so far. values: the jobs' own results, in no order. transferred: between workers, by all runs."""

    tally: Tally = field(default_factory=Tally)
    values: list[Any] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    wait_seconds: float = 0.0
    transferred: Transferred = (0, 0, 0.0)
    interrupted: bool = False


class Batch(NamedTuple):
    """Chunks of one array with the same holders, any number of them, what is to be done to them, and how many threads are there for it,
    out of how many in the cluster. together: see `Cutter`."""

    group: ChunkGroup
    job: Job
    slots: int
    threads: int = 1
    together: Sharing | None = None


class Submission:
    """One pass: batches of chunks, all of one run, as tasks."""

    def __init__(
        self,
        connection: Connection,
        title: str,
        run: str,
        progress: Progress,
        patience_seconds: float = HOLDER_PATIENCE_SECONDS,
        *,
        stop: bool = False,
    ) -> None:
        """stop: with the first failure that is final."""
        self._connection, self._title, self._run, self._progress = connection, title, run, progress
        self._patience, self._stop = patience_seconds, stop
        self._uncut: dict[tuple[int, str], list[Cutter]] = {}  # by job and array: what is not yet tasks
        self._work: dict[Any, tuple[ChunkGroup, Job, int]] = {}  # by key: and the number of the try
        self._stranded: dict[Any, float] = {}  # key -> since when
        self._unfit_since: float | None = None
        self._told: set[tuple[str, ...]] = set()  # paused nodes that the user knows of
        self._number = 0
        self._threads = 1
        self.outcome = Outcome()

    def execute(self, work: Sequence[Batch]) -> Outcome:
        """Run all of it to the end; an interrupt, or a failure that stops it, cancels what has not started and returns what is done."""
        self._progress.begin(self._title, sum(len(batch.group.chunks) for batch in work))
        if not work:
            return self.outcome
        self._threads = max(batch.threads for batch in work)
        futures = self._submit(self._cut_first(work))
        pending = as_completed(futures, loop=self._connection.client.loop)
        asked = time.monotonic()
        try:
            while self._work and not (self._stop and self.outcome.tally.failures):
                batch_done = pending.next_batch(block=False) if pending.count() else []
                more = [item for future in batch_done for item in self._take(future)]
                if time.monotonic() - asked > _ASK_SECONDS:
                    asked = time.monotonic()
                    self._look_after(pending)
                if more:
                    pending.update(self._submit(more))
                if not batch_done:
                    with pending.thread_condition:  # told of each future that ends
                        pending.thread_condition.wait(_LOOK_SECONDS)
        except KeyboardInterrupt:
            self.outcome.interrupted = True
        finally:
            self._cancel(pending)
        self._ask()
        return self.outcome

    def _cut_first(self, work: Sequence[Batch]) -> list[tuple[ChunkGroup, Job, int]]:
        cutters = [Cutter(batch.group, batch.slots, batch.threads, batch.together) for batch in work]
        for batch, cutter in zip(work, cutters, strict=True):
            self._uncut.setdefault((id(batch.job), batch.group.array), []).append(cutter)
        return [(group, work[number].job, 1) for number, group in in_turn([cutter.first() for cutter in cutters])]

    def _cut_rest(self, group: ChunkGroup, job: Job, seconds: float | None) -> list[tuple[ChunkGroup, Job, int]]:
        """What is left of a kind of work when the first task of it has ended, which took `seconds`."""
        cutters = self._uncut.pop((id(job), group.array), [])
        each = seconds / len(group.chunks) if seconds else None
        return [(part, job, 1) for _, part in in_turn([cutter.rest(each) for cutter in cutters])]

    def _key(self, number: int) -> Any:
        return f"{PREFIX}{self._title}-{self._run}", number

    def _submit(self, work: Sequence[tuple[ChunkGroup, Job, int]]) -> list[Future]:
        """As a graph; of much work what keeps all threads busy in one of its own, so that they need not wait for the rest to be sent."""
        ahead = max(_AHEAD, 2 * self._threads)
        return self._map(work) if len(work) < 2 * ahead else self._map(work[:ahead]) + self._map(work[ahead:])

    def _map(self, work: Sequence[tuple[ChunkGroup, Job, int]]) -> list[Future]:
        keys = [self._key(self._number + i) for i in range(len(work))]
        self._number += len(work)
        self._work.update(zip(keys, work, strict=True))
        self._connection.results.expect(keys)
        groups, jobs = [group for group, _, _ in work], [job for _, job, _ in work]
        futures: list[Future] = self._connection.client.map(run_group, groups, jobs, key=keys, pure=False, retries=0)
        return futures

    def _take(self, future: Future) -> list[tuple[ChunkGroup, Job, int]]:
        """Count a finished task. What has to be done again."""
        group, job, tries = self._work.pop(future.key)
        result = self._connection.results.take(future.key)
        if future.status == "finished":
            result = future.result() if result is None else result
            if result is None and tries < _TRIES:  # it was sent and got lost; what is done will be skipped
                return [(group, job, tries + 1)]
            if result is None:
                raise ClusterError("results of tasks do not arrive", "connect again, and run again")
            return self._cut_rest(group, job, result.seconds) + self._take_result(group, job, tries, result)
        error = future.exception() if future.status == "error" else ClusterError(f"task {future.key} was {future.status}")
        rest = self._cut_rest(group, job, None)
        if isinstance(error, KilledWorker) and len(group.chunks) > 1:
            return rest + [(part_of(group, [position]), job, tries) for position in range(len(group.chunks))]
        text = "its worker died on it again and again" if isinstance(error, KilledWorker) else f"{type(error).__name__}: {error}"
        for chunk in group.chunks:
            self._fail(group, job, chunk, text)
        return rest

    def _take_result(self, group: ChunkGroup, job: Job, tries: int, result: GroupResult) -> list[tuple[ChunkGroup, Job, int]]:
        again = [failure.index for failure in result.tally.failures if failure.retry and tries < _TRIES]
        result.tally.failures = [failure for failure in result.tally.failures if failure.index not in again]
        self.outcome.tally.add(result.tally)
        self.outcome.values.append(result.value)
        self._progress.advance(len(group.chunks) - len(again))
        positions = [position for position, chunk in enumerate(group.chunks) if chunk in set(again)]
        return [(part_of(group, positions), job, tries + 1)] if again else []

    def _fail(self, group: ChunkGroup, job: Job, chunk: int, text: str) -> None:
        name = next(record for record in job.records if record.name == group.dataset).part_name(group.array, chunk)
        self.outcome.tally.failures.append(Failure(name, chunk, group.node or "", text))
        self._progress.advance(1)

    def _look_after(self, pending: Any) -> None:
        """End chunks that nobody can serve any more, and the run when the plugin or the embedded cluster is broken."""
        answer = self._ask()
        embedded = self._connection.embedded
        if answer["broken"] or (embedded is not None and embedded.trouble):
            raise ClusterError(f"the run was stopped: {answer['broken'] or embedded.trouble}")  # type: ignore[union-attr]
        self._tell_of_paused(answer["paused"])
        now = time.monotonic()
        self._check_devices(answer["unfit"], now)
        keys = {tuple(key) for key in answer["stranded"]}
        self._stranded = {key: self._stranded.get(key, now) for key in keys}
        for key in [key for key, since in self._stranded.items() if now - since > self._patience and key in self._work]:
            group, job, _ = self._work.pop(key)
            self._connection.results.drop([key])
            for chunk in group.chunks:
                self._fail(
                    group,
                    job,
                    chunk,
                    str(ChunkLost(f"{group.dataset}/{group.array} number {chunk}", [group.node or "all nodes"])),
                )
            self._connection.client.cancel([future for future in pending.futures if future.key == key])

    def _check_devices(self, unfit: int, now: float) -> None:
        """DeviceUnavailable when tasks have been waiting too long for a worker with the device that they need."""
        since = self._unfit_since = (self._unfit_since or now) if unfit else None
        if since is not None and now - since > self._patience:
            reason = f"{unfit} tasks need a CUDA device, and no worker that may take them has one any more"
            raise DeviceUnavailable(reason, "run again when such workers are back: what is done is not done again")

    def _tell_of_paused(self, paused: Sequence[tuple[Sequence[str], int]]) -> None:
        """Once, of nodes that are there and take no work, where chunks must wait for them."""
        for nodes, tasks in paused:
            if tuple(nodes) not in self._told:
                self._told.add(tuple(nodes))
                logger.warning(
                    "%d tasks wait for %s, whose workers are paused or about to leave: they go on when Dask resumes one, which it does "
                    "when it has memory again, or when another worker of that node starts",
                    tasks,
                    " or ".join(nodes),
                )

    def _ask(self) -> dict[str, Any]:
        answer = dict(self._connection.ask("gf_run", run=self._run))
        self.outcome.reasons = Counter(answer["reasons"])
        self.outcome.wait_seconds = answer["idle_seconds"]
        self.outcome.transferred = tuple(answer["transferred"])
        return answer

    def _cancel(self, pending: Any) -> None:
        if self._work:
            self._connection.client.cancel(list(pending.futures), force=True)
            self._connection.results.drop(self._work)
            self._work.clear()
