"""One run, pass by pass: what its passes have in common, and what they add up to."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from gpuflow.cluster.connection import Connection
from gpuflow.cluster.messages import ChunkGroup
from gpuflow.cluster.places import fits
from gpuflow.datasets.catalog import ChunkTable
from gpuflow.errors import ChunkLost
from gpuflow.execution.devices import ANYWHERE, Chosen
from gpuflow.execution.groups import by_holders
from gpuflow.execution.lane import Job
from gpuflow.execution.submit import HOLDER_PATIENCE_SECONDS, Batch, Outcome, Progress, Silent, Submission
from gpuflow.execution.tally import Failure
from gpuflow.pipelines.memory import Caching, Sharing
from gpuflow.pipelines.plan import ChunkPlan
from gpuflow.pipelines.spec import RunSpec
from gpuflow.storage.record import DatasetRecord

logger = logging.getLogger(__name__)


@dataclass
class Run:
    """A run over `source`. patience_seconds: how long a chunk may be without a live holder."""

    connection: Connection
    source: DatasetRecord
    progress: Progress = field(default_factory=Silent)
    patience_seconds: float = HOLDER_PATIENCE_SECONDS
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    how: RunSpec = field(default_factory=RunSpec)
    caching: Caching = field(default_factory=Caching)
    outcome: Outcome = field(default_factory=Outcome)
    statistics_chunks: int = 0
    notes: list[str] = field(default_factory=list)
    """What its user should know, beside the counts."""
    device: Chosen = ANYWHERE

    @property
    def stopped(self) -> bool:
        """Whether something failed, or the user interrupted."""
        return bool(self.outcome.tally.failures) or self.outcome.interrupted

    @property
    def halted(self) -> bool:
        """Whether nothing more is to be begun: the user interrupted, or wants no more after what failed."""
        return self.outcome.interrupted or (self.how.on_error == "stop" and bool(self.outcome.tally.failures))

    def prepare(self, work: Sequence[Batch]) -> None:
        """On every worker that the run can use, before the first task."""
        jobs = list({id(batch.job): (batch.group.array, batch.job) for batch in work}.values())
        there = self.connection.seen()["workers"]
        workers = [address for address, worker in there.items() if fits(worker["device"], self.device.worker)]
        if jobs and workers:
            self.connection.client.run(_prepare, jobs, workers=workers, on_error="ignore")  # of a worker that is gone

    def submit(self, title: str, work: Sequence[Batch]) -> Outcome:
        """One pass; its counts join the run's. With `on_error: stop` it ends with the first failure, and is not begun after one."""
        stop = self.how.on_error == "stop"
        submission = Submission(self.connection, title, self.run_id, self.progress, self.patience_seconds, stop=stop)
        result = submission.execute([] if self.halted else work)
        left = sum(len(batch.group.chunks) for batch in work) - result.tally.ended
        self.outcome.tally.add(result.tally)
        self.outcome.reasons, self.outcome.wait_seconds = result.reasons, result.wait_seconds
        self.outcome.transferred = result.transferred
        self.outcome.interrupted |= result.interrupted
        if stop and left and self.outcome.tally.failures:
            self.notes.append(f"{title}: {left} chunks were left out after the first failure, as run.on_error says")
        return result

    def record_lost(self, array: str, chunks: Sequence[int], searched: Sequence[str]) -> None:
        """Chunks of the source that no node has are failures of the run."""
        for chunk in chunks:
            name = self.source.chunk_name(array, chunk)
            self.outcome.tally.failures.append(Failure(name, chunk, "", str(ChunkLost(name, searched))))

    def batches(
        self,
        job: Job,
        array: str,
        chunks: Sequence[int],
        table: ChunkTable,
        *,
        newest: Sequence[int] | None = None,
        movable: bool = True,
    ) -> list[Batch]:
        """Chunks of an array of the source for `job`, by who holds them. newest: generations of what is to be written, by chunk number."""
        threads = self.threads()
        sets = table.holders[np.array(chunks, np.int64)].tolist()  # numbers of holder sets
        warm = self._warm(array) if self.caching.takes else {}
        of_worker = self._threads_of_workers() if warm else {}
        keys = [(number, _home(warm, chunk, table.sets[number])) for chunk, number in zip(chunks, sets, strict=True)]
        slots = {
            (number, home): of_worker.get(home) or sum(threads.get(node, 0) for node in table.sets[number])
            for number, home in set(keys)
        }
        whole = sum(threads.values())
        grouped = by_holders(chunks, keys, slots, whole)
        return [Batch(self._group(array, part, table, newest, movable=movable), job, busy, whole) for _, part, busy in grouped]

    def _warm(self, array: str) -> dict[int, tuple[str, str]]:
        """(worker, its node) that has a chunk of an array of the source in memory; those of a task are then in the same."""
        found = self.connection.resident(self.source.name, array)
        return {chunk: (worker, node) for worker, (node, chunks) in found.items() for chunk in chunks}

    def gathered(self, job: Job, dataset: str, array: str, part: ChunkPlan, together: Sharing) -> list[Batch]:
        """The pending chunks of `array` of `dataset`, which are computed from several, each where most of these lie. together: how they
        are cut into tasks."""
        gathers, threads = part.gathers, self.threads()
        assert gathers is not None, array
        whole = sum(threads.values())
        batches = []
        homes = [gathers.nodes[number] for number in gathers.rows["home"].tolist()]
        for home, chunks, busy in by_holders(part.pending, homes, threads, whole):
            mine = gathers.at(part.pending, chunks).rows
            group = ChunkGroup(
                run=self.run_id,
                dataset=dataset,
                array=array,
                chunks=tuple(chunks),
                generations=(0,) * len(chunks),
                newest=tuple(part.newest[chunk] for chunk in chunks),
                nbytes=int(mine["local_nbytes"].sum()),
                work=int(mine["nbytes"].sum()),
                homes=(home,),
                inputs=tuple(mine["inputs"].tolist()),
                device=self.device.worker,
                keeps_nbytes=self.caching.keeps_nbytes,
                takes=self.caching.takes,
                fills=self.caching.fills,
            )
            batches.append(Batch(group, job, busy, whole, together))
        return batches

    def pinned(self, job: Job, array: str, by_node: Mapping[str, Sequence[int]], table: ChunkTable) -> list[Batch]:
        """Chunks of an array of the source for `job`, each on the node that is named."""
        threads = self.threads()
        return [
            Batch(self._group(array, chunks, table, node=node, movable=False), job, threads.get(node, 1), sum(threads.values()))
            for node, chunks in by_node.items()
        ]

    def threads(self) -> dict[str, int]:
        """Of each node's workers together, those that the run can use."""
        found: dict[str, int] = {}
        for worker in self.connection.seen()["workers"].values():
            usable = worker["threads"] if fits(worker["device"], self.device.worker) else 0
            found[worker["node"]] = found.get(worker["node"], 0) + usable
        return found

    def _threads_of_workers(self) -> dict[str, int]:
        return {address: worker["threads"] for address, worker in self.connection.seen()["workers"].items()}

    def _group(
        self,
        array: str,
        chunks: Sequence[int],
        table: ChunkTable,
        newest: Sequence[int] | None = None,
        node: str | None = None,
        movable: bool = True,
    ) -> ChunkGroup:
        rows = table.rows[np.array(chunks, np.int64)]
        return ChunkGroup(
            run=self.run_id,
            dataset=self.source.name,
            array=array,
            chunks=tuple(chunks),
            generations=tuple(rows["generation"].tolist()),
            newest=tuple(newest[chunk] for chunk in chunks) if newest is not None else (0,) * len(chunks),
            nbytes=int(rows["nbytes"].sum()),
            work=self.source.array(array).chunk_nbytes * len(chunks),
            node=node,
            movable=movable,
            device=self.device.worker,
            keeps_nbytes=self.caching.keeps_nbytes,
            takes=self.caching.takes,
            fills=self.caching.fills,
        )


def _home(warm: Mapping[int, tuple[str, str]], chunk: int, holders: frozenset[str]) -> str:
    """The worker that has a chunk in memory, if it is of a node that holds it; else an empty text."""
    worker, node = warm.get(chunk, ("", ""))
    return worker if node in holders else ""


def _prepare(jobs: Sequence[tuple[str, Job]]) -> None:
    """On a worker: load and compile before the first task, which would look slow to the router for it."""
    for array, job in jobs:
        try:
            job.prepare(array)
        except Exception:  # steps that raise on zeros raise on chunks too, where it is recorded
            logger.info("the steps over %s could not be prepared", array, exc_info=True)
