"""Chunks that are computed from parts of several: each chunk of the source is read once for a whole group of them.

What lies here is decoded here; of what lies elsewhere only the parts that are needed are sent, decoded by the node that holds them, or
the chunk as it is stored where all of it is needed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import NamedTuple

import numpy as np

from gpuflow.cluster.messages import ChunkGroup
from gpuflow.cluster.peers import Holders, Transfer
from gpuflow.errors import ChunkLost, GpuflowError
from gpuflow.execution.evaluate import Boxes
from gpuflow.execution.lane import Lane
from gpuflow.grid import Box as GridBox
from gpuflow.grid import Grid
from gpuflow.pipelines.flow import Flow
from gpuflow.pipelines.pulls import Pull, inputs_digest, is_whole, is_within, outermost, overlaps, pulls_of
from gpuflow.steps.base import ArraySpec, Region
from gpuflow.storage.blocks import Box, decoded, read_block
from gpuflow.storage.buffers import ALIGNMENT
from gpuflow.storage.codecs import ArrayCodec, Block
from gpuflow.storage.manifest import Replica
from gpuflow.storage.record import DatasetRecord

_LOOK_SECONDS = 0.25  # between looks whether a node is back

GATHERED = "gathered"
"""Why parts of chunks are shipped: what is computed from them lies on another node than they do."""


@dataclass
class _Part:
    """One chunk of the source: which boxes of it are wanted, and where they go."""

    wanted: list[tuple[Box, Block]] = field(default_factory=list)

    @cached_property
    def boxes(self) -> list[Box]:
        """Those that are not within others."""
        return outermost(box for box, _ in self.wanted)


class _UnderWay(NamedTuple):
    """Chunks that peers were asked for, in the order in which they come. boxes: the parts of each; None for whole chunks."""

    numbers: Sequence[int]
    boxes: Mapping[int, Sequence[Box]] | None
    transfer: Transfer


class Gathering:
    """What the chunks of a group are computed from, in the memory of the lane's slot. Neighbours have one box together."""

    def __init__(
        self,
        lane: Lane,
        source: DatasetRecord,
        flow: Flow,
        specs: Sequence[ArraySpec],
        grid: Grid,
        chunks: Sequence[int],
        patience_seconds: float,
    ) -> None:
        """grid: of the flow's result; chunks: of it, those that are wanted. patience_seconds: see `Run`."""
        self._patience_seconds = patience_seconds
        self._lane, self._source, self._flow, self._specs, self._grid = lane, source, flow, specs, grid
        self._sources = {path: source.array(path) for path in flow.paths}
        self._boxes: dict[int, dict[str, tuple[Region, Block]]] = {}
        self._parts: dict[str, dict[int, _Part]] = {}
        self._digests = {path: np.zeros(metadata.grid.size, "V16") for path, metadata in self._sources.items()}
        self._failed: dict[tuple[str, int], Exception] = {}
        self._place(grid.boxes(chunks))
        for path, parts in self._parts.items():
            self._fill(path, parts)

    def take(self, chunk: int) -> tuple[Boxes, bytes]:
        """What `chunk` is computed from, and the digest of that. Raises what went wrong with any of it."""
        pulls = pulls_of(self._flow, self._specs, self._sources, self._grid.region(chunk))
        if self._failed:
            for one in pulls:
                for number in one.chunks.tolist():
                    if (one.path, number) in self._failed:
                        raise self._failed[one.path, number]
        return self._boxes[chunk], inputs_digest(pulls, [self._digests[one.path][one.chunks] for one in pulls])

    def _place(self, groups: Sequence[GridBox]) -> None:
        """Memory for the box of each group of neighbours, and which part of which chunk goes where."""
        pulls = [pulls_of(self._flow, self._specs, self._sources, self._grid.region_of(group)) for group in groups]
        sizes = [_aligned(self._nbytes(one)) for each in pulls for one in each]
        memory, position = self._lane.slot.gathered.bytes(sum(sizes)), 0
        for group, each in zip(groups, pulls, strict=True):
            boxes: dict[str, tuple[Region, Block]] = {}
            for one in each:
                dtype, nbytes = np.dtype(self._sources[one.path].dtype), self._nbytes(one)
                block = memory[position : position + nbytes].view(dtype).reshape(_shape(one.box))
                position += _aligned(nbytes)
                boxes[one.path] = one.box, block
                parts = self._parts.setdefault(one.path, {})
                for number, in_chunk, in_box in overlaps(self._sources[one.path].grid, one.box):
                    parts.setdefault(number, _Part()).wanted.append((in_chunk, block[in_box]))
            self._boxes.update(dict.fromkeys(self._grid.chunks_of(group), boxes))

    def _nbytes(self, pull: Pull) -> int:
        return prod(_shape(pull.box)) * np.dtype(self._sources[pull.path].dtype).itemsize

    def _fill(self, path: str, parts: Mapping[int, _Part]) -> None:
        """All boxes with what they want of the array at `path`: what lies here while the first of the rest is on its way."""
        runtime = self._lane.runtime
        numbers = sorted(parts)
        holders = runtime.locate(self._source.name, path, numbers)
        own = runtime.worker.address
        here = [number for number in numbers if own in holders[number]]
        away = [number for number in numbers if own not in holders[number]]
        under_way = self._asked(path, away, parts, holders)
        replicas = self._lane.store.manifest.replicas_of(self._source.name, path, here)
        damaged = [number for number in here if not self._read_here(path, number, parts[number], replicas.get(number))]
        self._put(path, under_way, parts)
        if damaged:
            runtime.report_lack(self._source.name, path, damaged)
            elsewhere = [number for number in damaged if set(holders[number]) - {own}]
            self._put(path, self._asked(path, elsewhere, parts, holders), parts)
            away += elsewhere
        self._wait_for(path, away, parts)

    def _wait_for(self, path: str, away: Sequence[int], parts: Mapping[int, _Part]) -> None:
        """Those of `away` that no live node had: one may be starting again, and is waited for; once a run."""
        runtime, run = self._lane.runtime, self._lane.group.run
        deadline = time.monotonic() + (0 if run in runtime.given_up else self._patience_seconds)
        while lost := [number for number in away if isinstance(self._failed.get((path, number)), ChunkLost)]:
            if time.monotonic() > deadline:
                runtime.given_up.add(run)
                return
            time.sleep(_LOOK_SECONDS)
            holders = runtime.locate(self._source.name, path, lost)
            self._put(path, self._asked(path, lost, parts, holders), parts)

    def _read_here(self, path: str, number: int, part: _Part, replica: Replica | None) -> bool:
        """Whether it is here, and sound."""
        lane = self._lane
        try:
            with lane.tally.timed("decode"):
                if replica is None:
                    raise ChunkLost(self._source.chunk_name(path, number), [lane.store.node_id])
                codec = lane.store.codec(self._source.name, path)
                block = lane.warm.take(replica, codec) if lane.warm is not None else None
                if block is None:
                    replica, block = self._decode_here(codec, replica, part)
                for box, place in part.wanted:
                    place[...] = block[box]
        except GpuflowError as error:
            self._failed[path, number] = error
            return False
        self._digests[path][number] = np.void(replica.digest)
        return True

    def _decode_here(self, codec: ArrayCodec, replica: Replica, part: _Part) -> tuple[Replica, Block]:
        """What is wanted of a chunk of this node, read; into memory goes only what is decoded as a whole."""
        lane, began = self._lane, time.perf_counter()
        replica, block = read_block(lane.store, codec, replica, lane.slot, part.boxes)
        if lane.warm is not None and (codec.decodes_whole or _is_whole(part, codec.metadata.grid.chunks)):
            lane.warm.put(replica, codec, block, time.perf_counter() - began)
        lane.tally.read += replica.nbytes
        lane.tally.local_chunks += 1
        return replica, block

    def _asked(self, path: str, away: Sequence[int], parts: Mapping[int, _Part], holders: Holders) -> list[_UnderWay]:
        """Chunks that lie on other nodes, as they are stored where all of one is wanted, else the parts that are. The first is asked for;
        not more, so that no more than its parts are in memory."""
        grid, away = self._source.array(path).grid, self._lane.runtime.peers.side_by_side(away, holders)
        whole = {number for number in away if _is_whole(parts[number], grid.extent(number))}
        cut = {number: parts[number].boxes for number in away if number not in whole}
        found = [
            _UnderWay(numbers, boxes, self._transfer(path, numbers, holders, boxes))
            for numbers, boxes in (([number for number in away if number in whole], None), (list(cut), cut))
            if numbers
        ]
        for each in found[:1]:
            each.transfer.begin()
        return found

    def _transfer(
        self, path: str, numbers: Sequence[int], holders: Holders, boxes: Mapping[int, Sequence[Box]] | None
    ) -> Transfer:
        lane, source = self._lane, self._source
        nothing = (0,) * len(numbers)
        nbytes = source.array(path).chunk_nbytes * len(numbers)
        group = ChunkGroup(lane.group.run, source.name, path, tuple(numbers), nothing, nothing, nbytes, nbytes)

        def locate(wanted: Sequence[int]) -> Holders:
            return lane.runtime.locate(source.name, path, wanted)

        return Transfer(lane.runtime.peers, group, numbers, {n: holders[n] for n in numbers}, locate, boxes)

    def _put(self, path: str, under_way: Sequence[_UnderWay], parts: Mapping[int, _Part]) -> None:
        """What was asked for to where it is wanted."""
        lane, source = self._lane, self._source
        for numbers, boxes, transfer in under_way:
            for number in numbers:
                try:
                    with lane.tally.timed("transfer"):
                        replica, data = transfer.take(number, source.chunk_name(path, number))
                    with lane.tally.timed("decode"):
                        self._put_one(path, parts[number], replica, data, None if boxes is None else boxes[number])
                except GpuflowError as error:
                    self._failed[path, number] = error
                    continue
                lane.tally.shipped += len(data)
                lane.tally.shipped_why[GATHERED] += len(data)
                lane.tally.read += len(data)
                lane.tally.remote_chunks += 1
                self._failed.pop((path, number), None)  # what was damaged here
                self._digests[path][number] = np.void(replica.digest)
            transfer.close()
            lane.runtime.announce([], (len(numbers), transfer.nbytes, transfer.seconds))

    def _put_one(self, path: str, part: _Part, replica: Replica, data: memoryview[int], boxes: Sequence[Box] | None) -> None:
        """What came of a chunk to where it is wanted."""
        if boxes is None:
            codec = self._lane.store.codec(self._source.name, path)
            block = decoded(codec, self._lane.store.node_id, replica, data, self._lane.slot)
            for box, place in part.wanted:
                place[...] = block[box]
            return
        dtype, position, came = np.dtype(self._source.array(path).dtype), 0, []
        values = np.frombuffer(data, dtype)
        for box in boxes:
            shape = tuple(axis.stop - axis.start for axis in box)
            came.append((box, values[position : position + prod(shape)].reshape(shape)))
            position += prod(shape)
        for box, place in part.wanted:
            around, block = next((each, block) for each, block in came if is_within(box, each))
            place[...] = block[tuple(slice(a.start - b.start, a.stop - b.start) for a, b in zip(box, around, strict=True))]


def _is_whole(part: _Part, extent: tuple[int, ...]) -> bool:
    """Whether all of the chunk is wanted."""
    return any(is_whole(box, extent) for box in part.boxes)


def _shape(box: Region) -> tuple[int, ...]:
    return tuple(axis.stop - axis.start for axis in box)


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
