"""Chunks of a dataset that grows, on the node that is to hold them: rows of the sources, behind those that are there already.

A chunk is a function of the rows that it holds. Rows that the dataset has are read from it, verified, and not from where they once came
from; unless that chunk is lost, and is made anew from the sources alone."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gpuflow.errors import SourceError
from gpuflow.execution.lane import Lane
from gpuflow.objectstore.sources.base import Source
from gpuflow.storage.blocks import decoded
from gpuflow.storage.codecs import ArrayCodec, Block, CodecError
from gpuflow.storage.metadata import ArrayMetadata
from gpuflow.storage.record import DatasetRecord

_KEPT_NBYTES = 64 * 2**20
"""Of decoded chunks of the sources, from one chunk that is made of them to the next; one at least."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows `start` to `stop` of the dataset, which are the first ones of `source`; None for what the dataset has already. arrays: of the
    source, those that grow."""

    source: Source | None
    start: int
    stop: int
    arrays: Mapping[str, ArrayMetadata] = field(default_factory=dict)


@dataclass(frozen=True)
class GrowJob:
    """Make chunks of arrays that grow along `axes` out of `pieces`, which are in order. recipes: by array and chunk."""

    records: tuple[DatasetRecord, ...]
    axes: Mapping[str, int]
    pieces: tuple[Piece, ...]
    recipes: Mapping[str, Mapping[int, tuple[bytes, bytes]]]
    durable: bool = True

    def prepare(self, array: str) -> None:
        """Nothing has to be."""

    def process(self, lane: Lane, chunk: int) -> None:
        """Make one chunk, unless it is there."""
        dataset, array = lane.group.dataset, lane.group.array
        wanted, inputs = self.recipes[array][chunk]
        there = lane.there(dataset).get(chunk)
        if there is not None and there.recipe == wanted:
            return lane.skip()
        codec = lane.output_codec(dataset)
        data = self._made(lane, codec, chunk)
        replica, here = lane.output(dataset, chunk, data or b"", wanted, inputs)
        with lane.tally.timed("commit"):
            store = lane.store
            staged = store.stage(replica, data, replaces=here) if data is not None else store.stage_empty(replica, replaces=here)
        lane.add(staged)

    def _made(self, lane: Lane, codec: ArrayCodec, chunk: int) -> bytes | memoryview[int] | None:
        array, axis = lane.group.array, self.axes[lane.group.array]
        there = codec.metadata.grid.region(chunk)
        rows = slice(there[axis].start, min(there[axis].stop, self.pieces[-1].stop))
        region = (*there[:axis], rows, *there[axis + 1 :])
        pieces = [piece for piece in self.pieces if piece.start < rows.stop and rows.start < piece.stop]
        lane.shared = rowsets = lane.shared or Rows()
        if len(pieces) == 1 and pieces[0].source is not None:
            (piece,), source = pieces, pieces[0].source
            same = rowsets.same_chunk(piece, array, codec.metadata, chunk, axis)
            if same is not None:
                with lane.tally.timed("read"):
                    raw = source.read(array, same)
                lane.tally.read += len(raw or b"")
                return raw
        assert codec.metadata.dtype is not None, array  # the others cannot grow
        block = np.empty([part.stop - part.start for part in region], codec.metadata.dtype)
        for piece in pieces:
            first, last = max(rows.start, piece.start), min(rows.stop, piece.stop)
            place = _rows(block, axis, first - rows.start, last - rows.start)
            if piece.source is None:
                place[...] = _rows(self._own(lane, chunk, region), axis, first - rows.start, last - rows.start)
            else:
                wanted = [slice(first - piece.start, last - piece.start) if n == axis else part for n, part in enumerate(region)]
                with lane.tally.timed("read"):
                    lane.tally.read += rowsets.fill(piece, array, tuple(wanted), place)
        with lane.tally.timed("encode"):
            return codec.encode(block, lane.slot)

    def _own(self, lane: Lane, chunk: int, region: tuple[slice, ...]) -> Block:
        replica, data = lane.read(chunk)
        block = decoded(lane.codec, lane.store.node_id, replica, data, lane.slot)
        return block[tuple(slice(part.stop - part.start) for part in region)]

    def result(self, lane: Lane) -> None:
        """Everything is in the manifest."""


class Rows:
    """Parts of the arrays of sources, through their chunks, of which those used last are kept. Of one thread."""

    def __init__(self) -> None:
        self._codecs: dict[tuple[int, str], ArrayCodec] = {}
        self._blocks: OrderedDict[tuple[int, str, int], Block] = OrderedDict()

    def same_chunk(self, piece: Piece, array: str, metadata: ArrayMetadata, chunk: int, axis: int) -> int | None:
        """The chunk of the source that is chunk number `chunk` of the array as it is stored; None when there is no such one."""
        theirs = piece.arrays[array]
        if _form(theirs) != _form(metadata) or piece.start % metadata.grid.chunks[axis]:
            return None
        index = list(metadata.grid.unravel(chunk))
        index[axis] -= piece.start // metadata.grid.chunks[axis]
        same = theirs.grid.ravel(tuple(index))
        return same if theirs.grid.extent(same) == metadata.grid.extent(chunk) else None

    def fill(self, piece: Piece, array: str, region: tuple[slice, ...], place: Block) -> int:
        """The part `region` of the source's array into `place`; encoded bytes that were read."""
        grid, nbytes = piece.arrays[array].grid, 0
        box = tuple(range(a.start // size, -(-a.stop // size)) for a, size in zip(region, grid.chunks, strict=True))
        for chunk in grid.chunks_of(box):
            block, read = self._block(piece, array, chunk)
            nbytes += read
            there = grid.region(chunk)
            common = [slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(region, there, strict=True)]
            to = tuple(slice(c.start - a.start, c.stop - a.start) for c, a in zip(common, region, strict=True))
            of = tuple(slice(c.start - b.start, c.stop - b.start) for c, b in zip(common, there, strict=True))
            place[to] = block[of]
        return nbytes

    def _block(self, piece: Piece, array: str, chunk: int) -> tuple[Block, int]:
        key, source = (piece.start, array, chunk), piece.source
        if key in self._blocks:
            self._blocks.move_to_end(key)
            return self._blocks[key], 0
        assert source is not None
        data = source.read(array, chunk)
        codec = self._codecs.setdefault((piece.start, array), ArrayCodec(piece.arrays[array]))
        try:
            block = codec.filled() if data is None else codec.decode(data)
        except CodecError as error:
            raise SourceError(source.location, f"chunk {chunk} of array {array!r} does not decode: {error}") from error
        self._blocks[key] = block
        while len(self._blocks) > 1 and sum(each.nbytes for each in self._blocks.values()) > _KEPT_NBYTES:
            self._blocks.popitem(last=False)
        return block, len(data or b"")


def slim(arrays: Mapping[str, ArrayMetadata], wanted: Iterable[str]) -> dict[str, ArrayMetadata]:
    """What workers need of the arrays of a source: attributes can be long, and would travel with every task."""
    return {path: ArrayMetadata({**arrays[path].document, "attributes": {}}) for path in wanted}


def _rows(block: Block, axis: int, start: int, stop: int) -> Block:
    return block[(slice(None),) * axis + (slice(start, stop),)]


def _form(metadata: ArrayMetadata) -> Any:
    """How an array's chunks are stored."""
    return [metadata.document.get(name) for name in ("data_type", "chunk_grid", "codecs", "fill_value")]
