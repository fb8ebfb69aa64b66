"""What comes of one chunk: its steps computed, and the result encoded or reduced, on the worker's device or on the CPU."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from gpuflow.backends.accelerator import Queue
from gpuflow.backends.block import to_host
from gpuflow.backends.select import Backend, select_device
from gpuflow.execution.lane import Lane
from gpuflow.execution.lane_device import LaneDevice
from gpuflow.execution.opened import Opened
from gpuflow.grid import Grid
from gpuflow.pipelines.plan import spec_of
from gpuflow.reductions.requests import Reduction, Request
from gpuflow.steps.base import Operation, Region, Step
from gpuflow.steps.fuse import compile_steps
from gpuflow.steps.place import Place, current
from gpuflow.storage.codecs import ArrayCodec, Block
from gpuflow.storage.framing import Framing
from gpuflow.storage.metadata import ArrayMetadata
from gpuflow.storage.record import DatasetRecord

logger = logging.getLogger(__name__)


class HasDevice(Protocol):
    """A job whose steps are compiled. device: cpu, auto, cuda or cuda:N: where the task goes is routed by it."""

    @property
    def backend(self) -> Backend: ...

    @property
    def device(self) -> str: ...


class ChunkJob(HasDevice, Protocol):
    """One whose steps are applied to each chunk of the first of its `records`."""

    @property
    def records(self) -> tuple[DatasetRecord, ...]: ...

    @property
    def steps(self) -> tuple[Step, ...]: ...


def resolved(job: HasDevice) -> tuple[Backend, str]:
    """The backend of a job, and its device as this worker, to which CUDA shows no other than its own, has it. DeviceUnavailable."""
    return job.backend, select_device(job.device.partition(":")[0], job.backend)


def open_chunk(lane: Lane, job: ChunkJob, chunk: int) -> Opened:
    """Read, and to be decoded where the steps of `job` are computed. See `Lane.read` for what is raised."""
    if job.steps and lane.kernel is None:
        lane.kernel = compile_steps(job.steps, spec_of(lane.codec.metadata), *resolved(job))
    return Opened(lane, chunk, _device(lane, job))


def _device(lane: Lane, job: ChunkJob) -> LaneDevice | None:
    """The worker's device, where chunks go to it and all that is done to them can be done there."""
    device = lane.device
    return device if device is not None and device.accelerator.takes(lane.kernel, resolved(job)[1]) else None


def encode_block(lane: Lane, job: ChunkJob, chunk: int, opened: Opened, target: ArrayCodec) -> Any:
    """The valid part of a chunk after all steps of `job`, in one pass where they can be fused; encoded for `target`, in memory of the
    slot's."""
    block, is_encoded = _computed(lane, job, chunk, opened, target)
    if is_encoded:
        return block.data
    with lane.tally.timed("encode"):
        return target.encode(block, lane.slot)


def _computed(lane: Lane, job: ChunkJob, chunk: int, opened: Opened, target: ArrayCodec) -> tuple[Block, bool]:
    """What came of the steps, and whether that is encoded already."""
    grid, kernel = job.records[0].array(lane.group.array).grid, lane.kernel
    if kernel is None:
        block, _ = valid(grid, chunk, opened.block())
        return np.asarray(block), False
    place = target.place(grid.extent(chunk), lane.slot)
    device = _device(lane, job)
    if device is not None:

        def there(queue: Queue) -> tuple[Block, bool]:
            made = kernel(*valid(grid, chunk, opened.array(queue)))
            encoded = _encoded_there(lane, device.framing(target), queue, made)
            return (queue.download(made, place), False) if encoded is None else (encoded, True)

        with lane.tally.timed("compute"):
            return device.run(there)
    block, region = valid(grid, chunk, opened.block())
    with lane.tally.timed("compute"):
        set_place(lane, lane.codec.metadata, region, job.steps)
        return lane.in_flight(lambda: kernel(block, region, place)), False


def _encoded_there(lane: Lane, make: Callable[[tuple[int, ...]], Framing] | None, queue: Queue, made: Any) -> Block | None:
    """The stored bytes of what lies on the device; None where the CPU is to encode it."""
    if make is None:
        return None
    framing, encoded = make(made.shape), lane.slot.encoded
    try:
        frames, sizes = queue.encode(framing, made)
    except RuntimeError as error:  # of the encoder's
        logger.warning("a chunk of %s was not encoded on the device: %s", lane.group.dataset, error)
        return None
    queue.download(frames, framing.place(sizes, encoded))
    return framing.finish(sizes, encoded)


def reduce_block(lane: Lane, job: ChunkJob, request: Request, chunk: int, opened: Opened) -> Reduction:
    """What `request` asks of the valid part of a chunk after all steps of `job`."""
    grid, kernel = job.records[0].array(lane.group.array).grid, lane.kernel

    def reduced(block: Any, out: Block | None) -> Reduction:
        block, region = valid(grid, chunk, block)
        block = block if kernel is None else kernel(block, region, out)
        found: Reduction = request.of(block if request.on_device else to_host(block), region)
        return found

    device = _device(lane, job)
    if device is not None:
        with lane.tally.timed("compute"):
            return device.run(lambda queue: reduced(opened.array(queue), None))
    block = opened.block()
    with lane.tally.timed("compute"):
        set_place(lane, lane.codec.metadata, grid.region(chunk), job.steps)
        place = lane.slot.computed.array(grid.extent(chunk), kernel.out_dtype) if kernel is not None else None
        return lane.in_flight(lambda: reduced(block, place))


def valid(grid: Grid, chunk: int, block: Any) -> tuple[Any, Region]:
    """The valid part of a whole chunk, and where in the array it lies, as the plan knows its `grid`: it may have grown since."""
    region = grid.region(chunk)
    extent = tuple(part.stop - part.start for part in region)
    return block if block.shape == extent else block[tuple(slice(size) for size in extent)], region


def set_place(lane: Lane, metadata: ArrayMetadata, region: Region, steps: Sequence[Operation]) -> None:
    """Say to steps that run programs which chunk is worked on: the one of `metadata` that begins where `region` does."""
    if any(step.runs_programs for step in steps):
        grid = metadata.grid
        chunk = grid.ravel(tuple(part.start // size for part, size in zip(region, grid.chunks, strict=True)))
        current.set(Place(lane.group.dataset, lane.group.array, metadata.key(chunk), lane.store.writer.folder))
