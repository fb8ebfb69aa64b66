"""One chunk of a group on its way to what is computed from it: verified, not yet decoded, on the host or on the worker's CUDA device.

On the device a shard arrives as it is stored, in one copy, and its frames are decoded there in one batch; what no batch is made of is
decoded by the CPU first."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuflow.backends.accelerator import Array, Queue
from gpuflow.backends.block import on_host
from gpuflow.storage.blocks import decoded
from gpuflow.storage.codecs import Block
from gpuflow.storage.manifest import Replica
from gpuflow.storage.node import EMPTY

if TYPE_CHECKING:
    from gpuflow.execution.lane import Lane
    from gpuflow.execution.lane_device import LaneDevice

logger = logging.getLogger(__name__)


class Opened:
    """Until the next one of the lane is. From a memory tier if this node's replica is the one that was decoded there, else read."""

    def __init__(self, lane: Lane, chunk: int, device: LaneDevice | None = None) -> None:
        """device: where it is to be decoded; None: on the host. See `Lane.read` for what is raised."""
        self._lane, self._device, self._warm = lane, device, lane.warm if device is None else lane.warm_on_device
        self._is_here = self._warm is not None and lane.holds(chunk)
        self._kept: Any = None
        self.replica: Replica
        if self._warm is not None and self._is_here:
            self.replica = lane.there(lane.group.dataset)[chunk]
            self._kept = self._warm.take(self.replica, lane.codec)
        if self._kept is None:
            began = time.perf_counter()
            self.replica, self._data, self._there = device.read(chunk) if device is not None else (*lane.read(chunk), None)
            self._read_seconds = time.perf_counter() - began

    def block(self) -> Block:
        """The whole chunk, decoded; it may be read-only. ChunkCorrupt when verified bytes do not decode: they came damaged from the
        source."""
        if self._kept is not None:
            kept: Block = self._kept
            return kept
        lane, began = self._lane, time.perf_counter()
        with lane.tally.timed("decode"):
            block = decoded(lane.codec, lane.store.node_id, self.replica, self._data, lane.slot)
            self._keep(block, began)
        return block

    def array(self, queue: Queue) -> Array:
        """The same in the device's memory, put into `queue`, which is the current one."""
        if self._kept is not None:
            return queue.upload(self._kept) if on_host(self._kept) else self._kept
        began = time.perf_counter()
        array = self._decoded_there(queue)
        if array is None:
            lane = self._lane
            array = queue.upload(decoded(lane.codec, lane.store.node_id, self.replica, self._data, lane.slot))
        self._keep(array, began)
        return array

    def _decoded_there(self, queue: Queue) -> Array | None:
        make = self._device.batching if self._device is not None else None
        if make is None or self.replica.digest == EMPTY:
            return None
        stored = np.frombuffer(self._data, np.uint8)
        try:
            frames = make(stored)
            return None if frames is None else queue.decode(frames, stored if self._there is None else self._there)
        except (ValueError, RuntimeError) as error:  # the CPU decodes it after all, or says what is wrong with it
            logger.warning("a chunk of %s was not decoded on the device: %s", self.replica.dataset, error)
            return None

    def _keep(self, block: Any, began: float) -> None:
        if self._warm is not None and self._is_here:
            self._warm.put(self.replica, self._lane.codec, block, self._read_seconds + time.perf_counter() - began)
