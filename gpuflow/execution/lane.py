"""What a Dask task does with its group of chunks, on the worker: each chunk through the job, then one commit for the group.

A chunk that fails is recorded and the others go on. A task returns counts and digests, never arrays."""

from __future__ import annotations

import logging
import time
import traceback
from dataclasses import dataclass, field
from typing import Any, Protocol

from gpuflow.cluster.messages import ChunkGroup
from gpuflow.cluster.worker_plugin import NodeRuntime, runtime
from gpuflow.errors import ChunkLost, GpuflowError, StaleChunk
from gpuflow.execution.tally import Failure, Tally
from gpuflow.storage.disk import digest
from gpuflow.storage.manifest import Replica
from gpuflow.storage.node import EMPTY, NodeStore, Staged
from gpuflow.storage.record import DatasetRecord

logger = logging.getLogger(__name__)

_GROUP_NBYTES = 64 * 2**20  # staged bytes that are committed together: enough to share an fsync, little to do again after a crash


class Job(Protocol):
    """What is done to a chunk. Pickled into every task of a run, so it is small; `process` runs in worker threads."""

    @property
    def records(self) -> tuple[DatasetRecord, ...]:
        """The datasets that it reads and writes, for nodes that have not heard of them."""
        ...

    def process(self, lane: Lane, chunk: int) -> None:
        """Do one chunk: read through the lane, stage what comes out with it."""
        ...

    def result(self, lane: Lane) -> Any:
        """What the task returns beside its counts."""
        ...


@dataclass(frozen=True, slots=True)
class GroupResult:
    """What came of a group: its counts, and the job's own result."""

    tally: Tally
    value: Any


@dataclass
class Lane:
    """The passage of one group through this worker."""

    runtime: NodeRuntime
    group: ChunkGroup
    tally: Tally = field(default_factory=Tally)
    values: dict[int, Any] = field(default_factory=dict)
    """Per chunk results of a job that writes nothing."""
    staged: list[Staged] = field(default_factory=list)
    _peers: dict[int, list[str]] | None = None

    @property
    def store(self) -> NodeStore:
        """This node's store."""
        return self.runtime.store

    def read(self, chunk: int) -> tuple[Replica, bytes]:
        """The verified bytes of one of the group's chunks, from this node if it holds the newest, else from a peer."""
        group = self.group
        with self.tally.timed("read"):
            if self.holds(chunk):
                replica, data = self.store.read(group.dataset, group.array, chunk)
                self.tally.read += len(data)
                self.tally.local_chunks += 1
                return replica, data
        began = time.perf_counter()
        with self.tally.timed("transfer"):
            if self._peers is None:  # one look-up for the group: per-object look-ups are what stalled others
                found = self.runtime.locate(group.dataset, group.array, group.chunks)
                self._peers = dict(zip(group.chunks, found, strict=True))
            name = self.store.record(group.dataset).chunk_name(group.array, chunk)
            replica, data = self.runtime.fetch(name, self._peers[chunk], group.dataset, group.array, chunk, group.run)
        self.runtime.announce([], (len(data), time.perf_counter() - began))
        self.tally.shipped += len(data)
        self.tally.read += len(data)
        self.tally.remote_chunks += 1
        return replica, data

    def holds(self, chunk: int) -> bool:
        """Whether this node has the planned generation of the chunk, or a newer one."""
        here = self.store.manifest.replica(self.group.dataset, self.group.array, chunk)
        return here is not None and here.generation >= self.group.generations[self.group.chunks.index(chunk)]

    def output(self, dataset: str, chunk: int, data: bytes | memoryview, recipe: bytes, inputs: bytes) -> tuple[Replica, int]:
        """The replica that follows what there is of an output chunk, and the generation that it replaces on this node.

        The generation is above every one that the plan saw, on whatever node, so that the newest is always the last made."""
        there = self.store.manifest.replica(dataset, self.group.array, chunk)
        here = there.generation if there else 0
        generation = max(here, self.group.newest[self.group.chunks.index(chunk)]) + 1
        checksum = digest(data) if len(data) else EMPTY
        return Replica(dataset, self.group.array, chunk, generation, len(data), checksum, recipe, inputs), here

    def add(self, staged: Staged) -> None:
        """Queue a staged replica for the group's commit."""
        self.staged.append(staged)
        if sum(item.replica.nbytes for item in self.staged) >= _GROUP_NBYTES:
            self.flush()

    def flush(self) -> None:
        """Commit what is staged, and tell the scheduler."""
        staged, self.staged = self.staged, []
        with self.tally.timed("commit"):
            committed = self._commit(staged)
        names: dict[tuple[str, str], tuple[list[int], list[int]]] = {}
        for replica in committed:
            chunks, generations = names.setdefault((replica.dataset, replica.array), ([], []))
            chunks.append(replica.chunk)
            generations.append(replica.generation)
            self.tally.written += replica.nbytes
        self._count_done(len(committed))
        if committed:
            self.runtime.announce([(*name, *columns) for name, columns in names.items()], (0, 0.0))

    def _commit(self, staged: list[Staged]) -> list[Replica]:
        """The replicas that are now current: all or none. Those that one stale chunk held up are tried again without it."""
        try:
            self.store.commit(staged)
            return [item.replica for item in staged]
        except StaleChunk as stale:
            for item in staged:
                if self._name(item.replica.chunk, item.replica.dataset) == stale.chunk:
                    self._overtaken(item.replica, stale)
                else:
                    self.fail(item.replica.chunk, GroupNotCommitted(self._name(item.replica.chunk)))
        except GpuflowError as error:
            for item in staged:
                self.fail(item.replica.chunk, error)
        return []

    def _overtaken(self, replica: Replica, error: StaleChunk) -> None:
        now = self.store.manifest.replica(replica.dataset, replica.array, replica.chunk)
        if now is not None and now.recipe == replica.recipe:
            self._count_done(1)  # another task of the same recipe was faster
        else:
            self.fail(replica.chunk, error)

    def skip(self) -> None:
        """The chunk turned out to be done already: by this task before its worker died, or by another run."""
        self.tally.skipped += 1

    def keep(self, chunk: int, value: Any) -> None:
        """Count a chunk that writes nothing as done, with its result."""
        self.values[chunk] = value
        self._count_done(1)

    def fail(self, chunk: int, error: Exception) -> None:
        """Record that `chunk` could not be done."""
        own = isinstance(error, GpuflowError)
        text = "" if own else "".join(traceback.format_exception(error))
        shown = str(error) if own else f"{type(error).__name__}: {error}"
        retry = isinstance(error, ChunkLost | GroupNotCommitted)
        self.tally.failures.append(Failure(self._name(chunk), chunk, self.store.node_id, shown, text, retry))
        logger.info("chunk %s failed: %s", self._name(chunk), shown)

    def _name(self, chunk: int, dataset: str | None = None) -> str:
        return self.store.record(dataset or self.group.dataset).chunk_name(self.group.array, chunk)

    def _count_done(self, count: int) -> None:
        self.tally.done += count
        if count:
            self.tally.by_node[self.store.node_id] += count


class GroupNotCommitted(GpuflowError):
    """A chunk was fine, but another of its group could not be committed; alone it can."""

    def __str__(self) -> str:
        return f"chunk {self.args[0]} was not committed because another of its group could not be"


def run_group(group: ChunkGroup, job: Job) -> GroupResult:
    """The function of every chunk task."""
    lane = Lane(runtime(), group)
    for record in job.records:
        lane.store.put_record(record)
    for chunk in group.chunks:
        try:
            job.process(lane, chunk)
        except Exception as error:  # noqa: BLE001 - a user's step may raise anything; the other chunks go on
            lane.fail(chunk, error)
    lane.flush()
    return GroupResult(lane.tally, job.result(lane))
