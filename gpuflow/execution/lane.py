"""What a Dask task does with its group of chunks, on the worker: each chunk through the job, and commits of many at a time.

A chunk that fails is recorded and the others go on. A task returns counts and digests, never arrays."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import pairwise
from typing import Any, Protocol, TypeVar

from gpuflow.cluster.keeping import Keeper
from gpuflow.cluster.messages import ChunkGroup
from gpuflow.cluster.peers import Holders, Transfer
from gpuflow.cluster.results import send
from gpuflow.cluster.worker_plugin import NodeRuntime, runtime
from gpuflow.errors import ChunkCorrupt, ChunkLost, GpuflowError, StaleChunk
from gpuflow.execution.lane_device import LaneDevice
from gpuflow.execution.tally import Failure, Healed, Tally
from gpuflow.execution.warm import Warm
from gpuflow.steps.fuse import Kernel
from gpuflow.storage.buffers import Slot
from gpuflow.storage.codecs import ArrayCodec
from gpuflow.storage.disk import digest, read_ahead
from gpuflow.storage.manifest import Replica
from gpuflow.storage.node import EMPTY, NodeStore, Staged
from gpuflow.storage.record import DatasetRecord
from gpuflow.storage.tiers import Tier

logger = logging.getLogger(__name__)

T = TypeVar("T")

HOLDER_LOST = "holder_lost"
"""Why a chunk is shipped to a node that was taken to hold it, or holds others of its group and no node holds all of them any more."""
COPY = "copies"
"""Why it is shipped to a node that is named: that one is to hold it too."""
REPAIR = "repair"
"""Why it is shipped to a node that has it damaged."""
COPIED = "copied"
"""How that is made good."""

_GROUP_NBYTES = 64 * 2**20  # staged bytes that are committed together: little to do again after a crash
_DURABLE_NBYTES = (
    16 * 2**20
)  # the same where the disk is waited for, meanwhile the next ones are computed: enough to share an fsync


class Job(Protocol):
    """What is done to a chunk. Pickled into every task of a run, so it is small; `process` runs in worker threads."""

    @property
    def records(self) -> tuple[DatasetRecord, ...]:
        """The datasets that it reads and writes, for nodes that have not heard of them."""
        ...

    @property
    def durable(self) -> bool:
        """Whether its commits survive a power loss, or only the death of processes."""
        ...

    def prepare(self, array: str) -> None:
        """Load and compile what `process` needs for chunks of `array`. Called once on every worker before the first task."""
        ...

    def process(self, lane: Lane, chunk: int) -> None:
        """Do one chunk: read through the lane, stage what comes out with it."""
        ...

    def result(self, lane: Lane) -> Any:
        """What the task returns beside its counts."""
        ...


@dataclass(frozen=True, slots=True)
class GroupResult:
    """What came of a group: its counts, the job's own result, and how long it took from beginning to end."""

    tally: Tally
    value: Any
    seconds: float


@dataclass
class Lane:
    """The passage of one group through this worker, in the buffers of one slot. What is needed of the manifest is asked once a group."""

    runtime: NodeRuntime
    group: ChunkGroup
    slot: Slot
    durable: bool = True
    tally: Tally = field(default_factory=Tally)
    values: dict[int, Any] = field(default_factory=dict)
    """Per chunk results of a job that writes nothing."""
    staged: list[Staged] = field(default_factory=list)
    kernel: Kernel | None = None
    """What the job's steps were compiled to, once it has been looked up."""
    shared: Any = None
    """What a job keeps from one chunk of the group to the next."""
    _elsewhere: set[int] = field(default_factory=set)
    """Chunks that are damaged here and held by others: those do them."""
    _staged_nbytes: int = 0
    _under_way: tuple[list[Staged], Callable[[], None]] | None = None

    @property
    def store(self) -> NodeStore:
        """This node's store."""
        return self.runtime.store

    @cached_property
    def codec(self) -> ArrayCodec:
        """Of the array that is read."""
        return self.codec_of(self.group.dataset)

    def codec_of(self, dataset: str) -> ArrayCodec:
        """Of the array of the same name in `dataset`."""
        if dataset not in self._codecs:
            self._codecs[dataset] = self.store.codec(dataset, self.group.array)
        return self._codecs[dataset]

    def output_codec(self, dataset: str) -> ArrayCodec:
        """The same of the array that is written, which may be growing; as it was when first asked for."""
        if dataset not in self._output_codecs:
            self._output_codecs[dataset] = self.store.codec(dataset, self.group.array, becoming=True)
        return self._output_codecs[dataset]

    @cached_property
    def _output_codecs(self) -> dict[str, ArrayCodec]:
        return {}

    @cached_property
    def _codecs(self) -> dict[str, ArrayCodec]:
        return {}

    @cached_property
    def _rows(self) -> dict[int, tuple[int, int]]:
        """(planned generation, newest generation of the output) by chunk."""
        return dict(zip(self.group.chunks, zip(self.group.generations, self.group.newest, strict=True), strict=True))

    @cached_property
    def inputs(self) -> dict[int, bytes]:
        """The digest of what each chunk of the group is computed from, as planned; of chunks that are computed from several."""
        return dict(zip(self.group.chunks, self.group.inputs, strict=True))

    @cached_property
    def _replicas(self) -> dict[str, dict[int, Replica]]:
        return {}

    def there(self, dataset: str) -> dict[int, Replica]:
        """This node's replicas of the group's chunks in `dataset`, as they were when first asked for."""
        if dataset not in self._replicas:
            self._replicas[dataset] = self.store.manifest.replicas_of(dataset, self.group.array, self.group.chunks)
        return self._replicas[dataset]

    def path(self, chunk: int) -> str:
        """The file of a chunk, whether it is here or not."""
        return f"{self._folder}/{self.codec.metadata.key(chunk)}"

    @cached_property
    def _folder(self) -> str:
        return f"{self.store.root}/datasets/{self.group.dataset}/{self.group.array}"

    @cached_property
    def _transfer(self) -> Transfer:
        """Of the chunks that are not here. Who has them came with the task when it was known that they are not; else the scheduler is
        told so, and asked: one look-up for the group, since look-ups one by one are what stalled others."""
        group = self.group
        lacking = [chunk for chunk in group.chunks if not self.holds(chunk)]
        if self._told[1]:
            holders = dict.fromkeys(lacking, self._told[1])
        else:
            if lacking:
                self.runtime.report_lack(group.dataset, group.array, lacking)
            holders = self._locate(group.chunks)
        return Transfer(self.runtime.peers, group, lacking, holders, self._locate)

    @cached_property
    def _told(self) -> tuple[str, list[str]]:
        """Why the group's chunks are not here, and who has them."""
        return self.runtime.told()

    def _locate(self, chunks: Sequence[int]) -> Holders:
        return self.runtime.locate(self.group.dataset, self.group.array, chunks)

    @cached_property
    def warm(self) -> Warm | None:
        """The way to the worker's memory tier, if the run uses it, and there is something in it or will be."""
        return self._warm(self.runtime.ram.tier)

    @cached_property
    def warm_on_device(self) -> Warm | None:
        """The same of its device's, with the other one below it."""
        return self._warm(self.runtime.ram.vram) or self.warm

    def _warm(self, tier: Tier | None) -> Warm | None:
        group = self.group
        uses = tier is not None and group.takes and (group.fills or len(tier) > 0)
        return Warm(tier, self.tally, fills=group.fills) if tier is not None and uses else None

    @cached_property
    def device(self) -> LaneDevice | None:
        """The worker's device, if it has one that chunks can go to."""
        accelerator, flight = self.runtime.accelerator, self.runtime.flight
        return LaneDevice(self, accelerator, flight) if accelerator is not None and flight is not None else None

    def in_flight(self, work: Callable[[], T]) -> T:
        """What `work` gives, which brings blocks of the host to the device and back by itself, if there is one."""
        flight = self.runtime.flight
        return work() if flight is None else flight.run(work)

    def read(self, chunk: int, *, heal: bool = True) -> tuple[Replica, bytes | memoryview[int]]:
        """The verified bytes of one of the group's chunks, from this node if it holds the newest, else from a peer. They may lie in the
        slot's first buffer, until the next read. heal: what is damaged here is made good by what a peer has."""
        group = self.group
        if not self.holds(chunk):
            return self.fetch(chunk)
        with self.tally.timed("read"):
            replica = self.there(group.dataset)[chunk]
            data: bytes | memoryview[int] | None = self.store.read_known(self.path(chunk), replica, self.slot.stored)
            if data is None:
                replica, data = self._read_anew(chunk, heal)
        self.tally.read += replica.nbytes
        self.tally.local_chunks += 1
        return replica, data

    def read_ahead(self, chunk: int) -> None:
        """While this chunk is read, have the disk go on to the next of the group."""
        following = self._following.get(chunk)
        if following is not None and self.holds(following):
            read_ahead(self.path(following))

    @cached_property
    def _following(self) -> dict[int, int]:
        return dict(pairwise(self.group.chunks))

    def _read_anew(self, chunk: int, heal: bool) -> tuple[Replica, bytes | memoryview[int]]:
        """Of a chunk that is no longer what it was when the group began."""
        try:
            return self.store.read(self.group.dataset, self.group.array, chunk)
        except (ChunkCorrupt, ChunkLost) as error:
            others = set(self._locate([chunk])[chunk]) - {self.runtime.worker.address}
            healed = self._heal(chunk, sorted(others)) if heal and others and isinstance(error, ChunkCorrupt) else None
            if healed is not None:
                return healed
            if others:
                self.runtime.report_lack(self.group.dataset, self.group.array, [chunk])
                self._elsewhere.add(chunk)
            raise

    def _heal(self, chunk: int, others: list[str]) -> tuple[Replica, memoryview[int]] | None:
        """What a peer has of a chunk that is damaged here, in the place of that. None when none has it whole, or it cannot be kept."""
        dataset, array, here = self.group.dataset, self.group.array, self.there(self.group.dataset)[chunk]
        transfer = Transfer(self.runtime.peers, self.group, [chunk], {chunk: others}, self._locate)
        try:
            with self.tally.timed("transfer"):
                replica, data = transfer.take(chunk, self._name(chunk))
            with self.tally.timed("commit"):
                self.store.commit([self.store.stage_copy(replica, data, replaces=here.generation)])
        except GpuflowError as error:
            logger.warning("chunk %s stays damaged on node %s: %s", self._name(chunk), self.store.node_id, error)
            return None
        finally:
            transfer.close()
        logger.warning("chunk %s was damaged on node %s, and was copied anew", self._name(chunk), self.store.node_id)
        self.runtime.announce([(dataset, array, [chunk], [replica.generation])], (1, transfer.nbytes, transfer.seconds))
        self.tally.shipped += len(data)
        self.tally.shipped_why[REPAIR] += len(data)
        self.tally.healed.append(Healed(self._name(chunk), self.store.node_id, COPIED))
        return replica, data

    def fetch(self, chunk: int) -> tuple[Replica, memoryview[int]]:
        """The verified bytes of a chunk from a peer."""
        with self.tally.timed("transfer"):
            replica, data = self._transfer.take(chunk, self._name(chunk))
        self.tally.shipped += len(data)
        self.tally.shipped_why[COPY if self.group.node else self._told[0] or HOLDER_LOST] += len(data)
        self.tally.read += len(data)
        self.tally.remote_chunks += 1
        if self._keeper is not None:
            with self.tally.timed("commit"):
                self._keeper.add(replica, data)
        return replica, data

    @cached_property
    def _keeper(self) -> Keeper | None:
        """Of what is shipped, where the dataset may have more replicas; what is about to be changed in place is not copied."""
        dataset, array = self.group.dataset, self.group.array
        most = self.store.record(dataset).replicas["max"]
        if most < 2 or not self.group.movable:
            return None

        def announce(kept: Sequence[Replica]) -> None:
            rows = [replica.chunk for replica in kept], [replica.generation for replica in kept]
            self.runtime.announce([(dataset, array, *rows)])

        return Keeper(self.store, partial(self.runtime.claim, dataset, array, most=most), announce)

    def close(self) -> None:
        """After the last chunk: keep what is to be kept of those that were shipped, and tell the scheduler what shipping cost."""
        if "_transfer" in self.__dict__:
            if self._keeper is not None:
                with self.tally.timed("commit"):
                    self._keeper.flush()
                self.tally.kept += self._keeper.kept
            self._transfer.close()
            self.runtime.announce([], (self.tally.remote_chunks, self._transfer.nbytes, self._transfer.seconds))

    def holds(self, chunk: int) -> bool:
        """Whether this node has the planned generation of the chunk, or a newer one."""
        here = self.there(self.group.dataset).get(chunk)
        return here is not None and here.generation >= self._rows[chunk][0]

    def output(
        self, dataset: str, chunk: int, data: bytes | memoryview[int], recipe: bytes, inputs: bytes
    ) -> tuple[Replica, int]:
        """The replica that follows what there is of an output chunk, and the generation that it replaces on this node.

        The generation is above every one that the plan saw, on whatever node, so that the newest is always the last made."""
        there = self.there(dataset).get(chunk)
        here = there.generation if there else 0
        generation = max(here, self._rows[chunk][1]) + 1
        checksum = digest(data) if len(data) else EMPTY
        return Replica(dataset, self.group.array, chunk, generation, len(data), checksum, recipe, inputs), here

    def add(self, staged: Staged) -> None:
        """Queue a staged replica for the group's commit."""
        self.staged.append(staged)
        self._staged_nbytes += staged.replica.nbytes
        if self._staged_nbytes >= (_DURABLE_NBYTES if self.durable else _GROUP_NBYTES):
            self._begin_commit()

    def _begin_commit(self) -> None:
        """Commit what is staged: durably beside this thread, which has to wait for the commit before it, so that no more than two are in
        hand; else at once, as there is nothing to wait for."""
        self._end_commit()
        staged, self.staged, self._staged_nbytes = self.staged, [], 0
        if not staged:
            return
        commit = partial(self.store.commit, staged, durable=self.durable, run=self.group.run)
        self._under_way = staged, self.runtime.committer.submit(commit).result if self.durable else commit
        if not self.durable:
            self._end_commit()

    def flush(self) -> None:
        """Commit what is staged, and wait until all is committed."""
        self._begin_commit()
        self._end_commit()

    def _end_commit(self) -> None:
        """Wait for the commit that is under way, count what came of it, and tell the scheduler."""
        if self._under_way is None:
            return
        (staged, outcome), self._under_way = self._under_way, None
        with self.tally.timed("commit"):
            committed = self._committed(staged, outcome)
        names: dict[tuple[str, str], tuple[list[int], list[int]]] = {}
        for replica in committed:
            chunks, generations = names.setdefault((replica.dataset, replica.array), ([], []))
            chunks.append(replica.chunk)
            generations.append(replica.generation)
            self.tally.written += replica.nbytes
        self._count_done(len(committed))
        if committed:
            self.runtime.announce([(*name, *columns) for name, columns in names.items()])

    def _committed(self, staged: list[Staged], outcome: Callable[[], None]) -> list[Replica]:
        """The replicas that are now current: all or none. Those that one stale chunk held up are tried again without it."""
        try:
            outcome()
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
        text = getattr(error, "said", "") if own else "".join(traceback.format_exception(error))
        shown = str(error) if own else f"{type(error).__name__}: {error}"
        retry = isinstance(error, ChunkLost | GroupNotCommitted) or chunk in self._elsewhere
        damaged = error.chunk if isinstance(error, ChunkCorrupt) else ""
        self.tally.failures.append(Failure(self._name(chunk), chunk, self.store.node_id, shown, text, retry, damaged))
        logger.info("chunk %s failed: %s", self._name(chunk), shown)

    def _name(self, chunk: int, dataset: str | None = None) -> str:
        return self.store.record(dataset or self.group.dataset).part_name(self.group.array, chunk)

    def _count_done(self, count: int) -> None:
        self.tally.done += count
        if count:
            self.tally.by_node[self.store.node_id] += count


class GroupNotCommitted(GpuflowError):
    """A chunk was fine, but another of its group could not be committed; alone it can."""

    def __str__(self) -> str:
        return f"chunk {self.args[0]} was not committed because another of its group could not be"


def run_group(group: ChunkGroup, job: Job) -> Any:
    """The function of every chunk task: a GroupResult, by way of `Results`."""
    here, began = runtime(), time.perf_counter()
    if group.keeps_nbytes is not None:
        here.ram.begin(group.run, group.keeps_nbytes)
    for record in job.records:
        here.store.put_record(record)
    with here.slots.take() as slot:
        lane = Lane(here, group, slot, job.durable)
        for chunk in group.chunks:
            try:
                job.process(lane, chunk)
            except Exception as error:  # noqa: BLE001 - a user's step may raise anything; the other chunks go on
                lane.fail(chunk, error)
            finally:
                for warm in (lane.warm, lane.warm_on_device):
                    if warm is not None:
                        warm.let_go()
        lane.flush()
        lane.close()
        result = GroupResult(lane.tally, job.result(lane), time.perf_counter() - began)
    here.ram.settle()
    return send(here.worker, here.worker.get_current_task(), result)
