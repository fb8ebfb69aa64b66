"""The worker's device, as one group of chunks uses it: what is decoded, encoded and read there, and what by the CPU.

What the codecs of the device can do, they do where `gpuflow calibrate` did not find the CPU's threads to be faster; encoding, and reading
by the device itself, only where it found the device to be."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

from gpuflow.backends.accelerator import Accelerator, Array, Queue
from gpuflow.backends.inflight import InFlight
from gpuflow.errors import DeviceFull
from gpuflow.storage.byte_codecs import Bytes
from gpuflow.storage.codecs import ArrayCodec
from gpuflow.storage.disk import digest
from gpuflow.storage.frames import Frames, batching, compressor_of
from gpuflow.storage.framing import Framing, framing
from gpuflow.storage.manifest import UNKNOWN, Replica
from gpuflow.storage.node import EMPTY

if TYPE_CHECKING:
    from gpuflow.execution.lane import Lane

logger = logging.getLogger(__name__)

T = TypeVar("T")


class LaneDevice:
    """accelerator: the device; flight: of the chunks on it."""

    def __init__(self, lane: Lane, accelerator: Accelerator, flight: InFlight) -> None:
        self._lane, self.accelerator, self._flight = lane, accelerator, flight
        self._framings: dict[ArrayCodec, Callable[[tuple[int, ...]], Framing] | None] = {}
        self._calibration, self._threads = lane.runtime.calibration, int(lane.runtime.worker.state.nthreads)

    def run(self, work: Callable[[Queue], T]) -> T:
        """What `work` gives, which has the device in its hands meanwhile, as others have; done again from its beginning when it was full.
        DeviceFull when it is so for this one alone."""
        slot = self._lane.slot
        queue: Queue = slot.queue or self.accelerator.queue()
        slot.queue = queue

        def placed() -> T:
            with queue():
                return work(queue)

        return self._flight.run(placed)

    @cached_property
    def batching(self) -> Callable[[Bytes], Frames | None] | None:
        """What makes batches for the device of the chunks that are read; None where they are decoded by the CPU."""
        codec, known = self._lane.codec, self._calibration
        make = batching(codec) if self.accelerator.has_codecs() else None
        if make is None or known is None or known.decodes_sooner_on_device(compressor_of(codec.metadata), self._threads):
            return make
        return None

    def framing(self, target: ArrayCodec) -> Callable[[tuple[int, ...]], Framing] | None:
        """What the device encodes the chunks of `target` with; None where the CPU does."""
        if target not in self._framings:
            known = self._calibration
            make = framing(target) if known is not None and self.accelerator.has_codecs() else None
            sooner = make and known and known.encodes_sooner_on_device(compressor_of(target.metadata), self._threads)
            self._framings[target] = make if sooner else None
        return self._framings[target]

    def read(self, chunk: int) -> tuple[Replica, bytes | memoryview[int], Array | None]:
        """As `Lane.read`, and the same bytes as they lie on the device, where it reads files by itself: what it read is verified here.
        None where it does not, or could not."""
        lane = self._lane
        replica = lane.there(lane.group.dataset).get(chunk) if self._reads_files and lane.holds(chunk) else None
        if replica is not None and replica.digest != EMPTY and replica.recipe != UNKNOWN:
            with lane.tally.timed("read"):
                there = self._read(replica)
            if there is not None:
                lane.tally.read += replica.nbytes
                lane.tally.local_chunks += 1
                return replica, lane.slot.stored.bytes(replica.nbytes).data, there
        return *lane.read(chunk), None

    def _read(self, replica: Replica) -> Array | None:
        path, stored = self._lane.path(replica.chunk), self._lane.slot.stored

        def there(queue: Queue) -> Array | None:
            array = queue.read_file(path, replica.nbytes)
            found = queue.download(array, stored.bytes(replica.nbytes))
            return array if digest(found.data) == replica.digest else None

        try:
            return self.run(there)
        except (OSError, RuntimeError, DeviceFull) as error:
            logger.warning("%s was not read by the device itself: %s", path, error)
            return None

    @cached_property
    def _reads_files(self) -> bool:
        known = self._calibration
        may = known is not None and known.reads_sooner_directly and self.accelerator.reads_files()
        return may and self.batching is not None  # what the CPU decodes need not be there
