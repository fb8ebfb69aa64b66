"""The jobs of a pipeline: map the chunks of an array, gather them from several, carry them over, or take statistics over them."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from gpuflow.backends.select import Backend
from gpuflow.datasets.growth import settled
from gpuflow.errors import SourceChanged, StoreError
from gpuflow.execution.computed import encode_block, open_chunk, reduce_block, resolved, set_place
from gpuflow.execution.evaluate import Evaluation
from gpuflow.execution.gather import Gathering
from gpuflow.execution.lane import Lane
from gpuflow.grid import Grid
from gpuflow.pipelines.fingerprint import cut_short, recipe
from gpuflow.pipelines.flow import Flow
from gpuflow.pipelines.plan import spec_of
from gpuflow.reductions.requests import Reduction, Request, merge
from gpuflow.reductions.tree import Node, collapse
from gpuflow.steps.base import ArraySpec, Region, Step
from gpuflow.steps.fuse import compile_steps
from gpuflow.storage.codecs import Block
from gpuflow.storage.manifest import UNKNOWN, Replica
from gpuflow.storage.node import EMPTY, Staged
from gpuflow.storage.record import DatasetRecord


def compile_for(record: DatasetRecord, array: str, job: MapJob | StatisticsJob) -> Block:
    """Have the machine code for the steps of `job` made or loaded; what comes out of a block of zeros as large as the first chunk."""
    metadata, steps = record.array(array), job.steps
    spec, grid = spec_of(metadata), metadata.grid
    block = np.zeros(grid.extent(0) if grid.size else (0,) * len(grid.shape), spec.dtype)
    region = grid.region(0) if grid.size else (slice(0, 0),) * len(grid.shape)
    if any(step.runs_programs for step in steps):  # on real chunks only
        return np.zeros(block.shape, compile_steps(steps, spec, *resolved(job)).out_dtype)
    return compile_steps(steps, spec, *resolved(job))(block, region) if steps else block


def _compile_once(array: str, job: MapJob | StatisticsJob) -> None:
    """In this process, also for the runs to come."""
    record = DatasetRecord("", 0, arrays={array: job.records[0].arrays[array]})
    _compile(array, pickle.dumps(replace(job, records=(record,))))


@lru_cache(maxsize=64)
def _compile(array: str, pickled: bytes) -> None:
    job: MapJob | StatisticsJob = pickle.loads(pickled)
    job.compile(array)


def _unknown(lane: Lane, chunk: int) -> StoreError:
    name = lane.store.record(lane.group.dataset).chunk_name(lane.group.array, chunk)
    reason = f"what made chunk {name} is not known since the manifest was rebuilt: in place, a step could be applied twice"
    return StoreError(str(lane.store.root), reason, "write to a new dataset instead")


@dataclass(frozen=True)
class MapJob:
    """Steps over each chunk, into the chunk of the same index of `target`, which is the source itself when in place.

    made_by: fingerprint of the steps and the stored form."""

    records: tuple[DatasetRecord, ...]
    target: str
    steps: tuple[Step, ...]
    made_by: str
    in_place: bool = False
    durable: bool = True
    backend: Backend = "numba"
    device: str = "cpu"

    def prepare(self, array: str) -> None:
        """Compile the steps."""
        _compile_once(array, replace(self, target="", made_by=""))

    def compile(self, array: str) -> None:
        """For each process once."""
        compile_for(self.records[0], array, self)

    def process(self, lane: Lane, chunk: int) -> None:
        """Skip a chunk that is done: the manifest knows, and in place nothing else does."""
        there = lane.there(self.target).get(chunk)
        if self.in_place and there is not None and there.recipe == recipe(self.made_by, there.inputs):
            return lane.skip()
        grid = self.records[0].array(lane.group.array).grid
        opened = open_chunk(lane, self, chunk)
        source = opened.replica
        inputs = source.digest if self.in_place else cut_short(source.digest, grid.extent(chunk), grid.chunks)
        wanted = recipe(self.made_by, inputs)
        if there is not None and there.recipe == wanted:
            return lane.skip()
        if self.in_place and source.recipe == recipe(self.made_by, source.inputs):
            return lane.skip()  # it was done after all: while the group ran, or its row had been marked as damaged
        if self.in_place and source.recipe == UNKNOWN:
            raise _unknown(lane, chunk)
        target = lane.output_codec(self.target)
        data = encode_block(lane, self, chunk, opened, target)
        with lane.tally.timed("commit"):
            replica, here = lane.output(self.target, chunk, data, wanted, inputs)
            staged = lane.store.stage(replica, data, replaces=here, durable=self.durable)
        lane.add(staged)

    def result(self, lane: Lane) -> None:
        """Everything is in the manifest."""


@dataclass(frozen=True)
class CarryJob:
    """The encoded chunks as they are: a hard link when the chunk is on this node, since commits replace files and never write into
    them."""

    records: tuple[DatasetRecord, ...]
    target: str
    made_by: str
    durable: bool = True

    def prepare(self, array: str) -> None:
        """Nothing has to be."""

    def process(self, lane: Lane, chunk: int) -> None:
        """Take over one chunk."""
        there = lane.there(self.target).get(chunk)
        source, data = lane.read(chunk)
        wanted = recipe(self.made_by, source.digest)
        if there is not None and there.recipe == wanted:
            return lane.skip()
        replica, here = lane.output(self.target, chunk, data, wanted, source.digest)
        with lane.tally.timed("commit"):
            if source.digest == EMPTY:
                staged = lane.store.stage_empty(replica, replaces=here)
            else:
                linked = self._linked(lane, chunk, source, replica, here)
                staged = linked or lane.store.stage(replica, data, replaces=here, durable=self.durable)
        lane.add(staged)

    def _linked(self, lane: Lane, chunk: int, source: Replica, replica: Replica, here: int) -> Staged | None:
        """The source's file itself, if it is here and still the one that was read."""
        group, manifest = lane.group, lane.store.manifest
        if not lane.holds(chunk):
            return None
        staged = lane.store.stage_link(replica, lane.store.path(group.dataset, group.array, chunk), replaces=here)
        changing = manifest.has_intent(group.dataset, group.array, chunk)
        if changing or manifest.replica(group.dataset, group.array, chunk) != source:
            lane.store.discard([staged])
            return None
        return staged

    def result(self, lane: Lane) -> None:
        """Everything is in the manifest."""


@dataclass(frozen=True)
class StatisticsJob:
    """What is asked of each chunk after `steps`, merged on the worker as far as the tree over all chunks allows."""

    records: tuple[DatasetRecord, ...]
    steps: tuple[Step, ...]
    request: Request
    durable: bool = True
    backend: Backend = "numba"
    device: str = "cpu"

    def prepare(self, array: str) -> None:
        """Compile the steps and the reduction."""
        _compile_once(array, self)

    def compile(self, array: str) -> None:
        """For each process once."""
        block = compile_for(self.records[0], array, self)
        self.request.of(block, tuple(slice(0, size) for size in block.shape))

    def process(self, lane: Lane, chunk: int) -> None:
        """The statistics of one chunk, placed in the kept axes of the whole array."""
        grid, keep = self.records[0].array(lane.group.array).grid, self.request.keep
        part, region = reduce_block(lane, self, self.request, chunk, open_chunk(lane, self, chunk)), grid.region(chunk)
        with lane.tally.timed("compute"):
            part = part.embed(tuple(grid.shape[axis] for axis in keep), tuple(region[axis] for axis in keep))
        lane.keep(chunk, part)

    def result(self, lane: Lane) -> dict[Node, Reduction]:
        """Partial results by tree node."""
        grid = self.records[0].array(lane.group.array).grid
        return collapse({(0, chunk): value for chunk, value in lane.values.items()}, grid.size, merge, settled(grid))


@dataclass(frozen=True)
class GatherJob:
    """Chunks of `target`, each computed by `flow` from parts of several chunks of the source.

    records: the source, and the dataset that is written. made_by: fingerprint of the flow and the stored form.
    patience_seconds: see `Run`."""

    records: tuple[DatasetRecord, ...]
    flow: Flow
    made_by: str
    durable: bool = True
    backend: Backend = "numba"
    device: str = "cpu"
    patience_seconds: float = 0.0

    @property
    def target(self) -> str:
        """The dataset that is written."""
        return self.records[-1].name

    def prepare(self, array: str) -> None:
        """Compile the steps."""
        grid = self.records[-1].becoming[array].grid
        if grid.size:
            warm_up(self.records[0], self.flow, grid.region(0), *resolved(self))

    def process(self, lane: Lane, chunk: int) -> None:
        """Skip a chunk that is done; the first that is not has everything read for the whole group."""
        there, inputs = lane.there(self.target), lane.inputs

        def is_done(number: int) -> bool:
            return number in there and there[number].recipe == recipe(self.made_by, inputs[number])

        if is_done(chunk):
            return lane.skip()
        target = lane.output_codec(self.target)
        grid = target.metadata.grid
        if lane.shared is None:
            specs = specs_of(self.records[0], self.flow)
            wanted = [number for number in lane.group.chunks if not is_done(number)]
            gathering = Gathering(lane, self.records[0], self.flow, specs, grid, wanted, self.patience_seconds)
            lane.shared = gathering, Evaluation(self.flow, specs, *resolved(self))
        gathering, evaluate = lane.shared
        boxes, found = gathering.take(chunk)
        if found != inputs[chunk]:
            raise SourceChanged(self.records[0].name)
        region = grid.region(chunk)
        set_place(lane, target.metadata, region, self.flow.applied)
        with lane.tally.timed("compute"):
            block = lane.in_flight(lambda: evaluate(boxes, region, lambda shape, _: target.place(shape, lane.slot)))
        with lane.tally.timed("encode"):
            data = target.encode(block, lane.slot)
        with lane.tally.timed("commit"):
            replica, here = lane.output(self.target, chunk, data, recipe(self.made_by, found), found)
            staged = lane.store.stage(replica, data, replaces=here, durable=self.durable)
        lane.add(staged)

    def result(self, lane: Lane) -> None:
        """Everything is in the manifest."""


@dataclass(frozen=True)
class GatherStatisticsJob:
    """What is asked of parts of what `flow` makes of the source, as large as `grid` cuts it; merged on the worker as far as the tree over
    all parts allows."""

    records: tuple[DatasetRecord, ...]
    flow: Flow
    grid: Grid
    request: Request
    durable: bool = True
    backend: Backend = "numba"
    device: str = "cpu"
    patience_seconds: float = 0.0

    def prepare(self, array: str) -> None:
        """Compile the steps and the reduction."""
        if self.grid.size:
            region = self.grid.region(0)
            self.request.of(warm_up(self.records[0], self.flow, region, *resolved(self)), region)

    def process(self, lane: Lane, chunk: int) -> None:
        """Of one part, placed in the kept axes of the whole."""
        if lane.shared is None:
            specs = specs_of(self.records[0], self.flow)
            gathering = Gathering(lane, self.records[0], self.flow, specs, self.grid, lane.group.chunks, self.patience_seconds)
            lane.shared = gathering, Evaluation(self.flow, specs, *resolved(self))
        gathering, evaluate = lane.shared
        boxes, _ = gathering.take(chunk)
        region, keep = self.grid.region(chunk), self.request.keep
        set_place(lane, lane.codec.metadata, region, self.flow.applied)
        with lane.tally.timed("compute"):
            block = lane.in_flight(lambda: evaluate(boxes, region, lane.slot.computed.array))
            part = self.request.of(block, region)
            part = part.embed(tuple(self.grid.shape[axis] for axis in keep), tuple(region[axis] for axis in keep))
        lane.keep(chunk, part)

    def result(self, lane: Lane) -> dict[Node, Reduction]:
        """Partial results by tree node."""
        return collapse({(0, chunk): value for chunk, value in lane.values.items()}, self.grid.size, merge, settled(self.grid))


def specs_of(record: DatasetRecord, flow: Flow) -> tuple[ArraySpec, ...]:
    """What comes out of each node of a flow over the arrays of `record`."""
    return flow.specs({path: spec_of(record.array(path)) for path in flow.paths})


def warm_up(record: DatasetRecord, flow: Flow, region: Region, backend: Backend, device: str) -> Block:
    """Have the machine code of a flow made or loaded; what it makes of zeros for the part `region` of its result."""
    specs = specs_of(record, flow)
    if any(operation.runs_programs for operation in flow.applied):  # on real chunks only
        return np.zeros([axis.stop - axis.start for axis in region], specs[-1].dtype)
    pulled = flow.pulls(specs, region)
    boxes = {
        path: (box, np.zeros([axis.stop - axis.start for axis in box], record.array(path).dtype)) for path, box in pulled.items()
    }
    return Evaluation(flow, specs, backend, device)(boxes, region, np.empty)
