"""Which chunks of the source a chunk of an output is computed from, and on which node that is best done.

Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import product

import numpy as np
import xxhash
from numpy.typing import NDArray

from gpuflow.datasets.catalog import ChunkTable
from gpuflow.grid import Grid
from gpuflow.pipelines.flow import Flow
from gpuflow.steps.around import ends
from gpuflow.steps.base import ArraySpec, Region
from gpuflow.storage.metadata import ArrayMetadata

DIGEST_NBYTES = 16
_NEARLY = 0.9
"""Nodes that hold so much of what the best one holds are as good: among them the one with the fewest chunks to make is taken."""


@dataclass(frozen=True, slots=True)
class Pull:
    """Of one array of the source: the part `box` of it, and the chunks that this lies in, in the box's C order: one comes twice when the
    box goes around and ends where it begins. nbytes: decoded, of each chunk's part of the box."""

    path: str
    box: Region
    chunks: NDArray[np.int64]
    nbytes: NDArray[np.int64]


def pulls_of(flow: Flow, specs: Sequence[ArraySpec], sources: Mapping[str, ArrayMetadata], region: Region) -> list[Pull]:
    """What the part `region` of the flow's result is computed from, array by array."""
    return [_pull(path, sources[path], box) for path, box in flow.pulls(specs, region).items()]


def _pull(path: str, metadata: ArrayMetadata, box: Region) -> Pull:
    grid = metadata.grid
    numbers, overlaps = np.zeros((), np.int64), []
    for part, chunk, count, size in zip(box, grid.chunks, grid.counts, grid.shape, strict=True):
        positions, lengths = list[NDArray[np.int64]](), list[NDArray[np.int64]]()
        for piece, _ in ends(part, size):
            positions.append(np.array(_positions(piece, chunk), np.int64))
            starts = positions[-1] * chunk
            lengths.append(np.minimum(starts + chunk, piece.stop) - np.maximum(starts, piece.start))
        numbers = numbers[..., None] * count + np.concatenate(positions)
        overlaps.append(np.concatenate(lengths))
    itemsize = metadata.dtype.itemsize if metadata.dtype is not None else 1
    nbytes = reduce(np.multiply.outer, overlaps, np.array(itemsize, np.int64))
    return Pull(path, box, numbers.reshape(-1), np.asarray(nbytes).reshape(-1))


def _positions(part: slice, chunk: int) -> range:
    """Of the chunks in which a part of an axis lies."""
    first = part.start // chunk
    return range(first, -(-part.stop // chunk) if part.stop > part.start else first)


def overlaps(grid: Grid, box: Region) -> Iterator[tuple[int, Region, Region]]:
    """The chunks in which `box` lies, in the order of `Pull.chunks`: the number of each, and the part of the box that lies in it, as seen
    from the chunk's beginning and from the box's."""
    axes = []
    for part, chunk, size in zip(box, grid.chunks, grid.shape, strict=True):
        along = list[tuple[int, slice, slice]]()
        for piece, at in ends(part, size):
            for position in _positions(piece, chunk):
                start = position * chunk
                first, last, by = max(start, piece.start), min(start + chunk, piece.stop), at - piece.start
                along.append((position, slice(first - start, last - start), slice(first + by, last + by)))
        axes.append(along)
    for one in product(*axes):
        yield grid.ravel(tuple(position for position, _, _ in one)), tuple(a for _, a, _ in one), tuple(b for _, _, b in one)


def outermost(boxes: Iterable[Region]) -> list[Region]:
    """Those that are not within others, each once."""
    distinct = list({tuple((axis.start, axis.stop) for axis in box): box for box in boxes}.values())
    return [one for one in distinct if not any(other is not one and is_within(one, other) for other in distinct)]


def is_within(one: Region, other: Region) -> bool:
    """Whether all of `one` lies in `other`."""
    return all(b.start <= a.start and a.stop <= b.stop for a, b in zip(one, other, strict=True))


def is_whole(box: Region, extent: Sequence[int]) -> bool:
    """Whether it is all of a chunk of this shape."""
    return all((axis.start, axis.stop) == (0, size) for axis, size in zip(box, extent, strict=True))


def inputs_digest(pulls: Sequence[Pull], digests: Sequence[NDArray[np.void]]) -> bytes:
    """One digest of the digests of all chunks that a chunk is computed from, array by array in the order of the pulls, and of what of them
    is read: at the end of an array it is more once that has grown, even where the chunks' bytes are the same."""
    found = np.frombuffer(digest_of([part.tobytes() for part in digests]), "<u8")
    for one in pulls:
        if len(one.chunks):
            for axis, part in enumerate(one.box):
                found = found ^ bounds_marks(one.path, axis, np.array([part.start]), np.array([part.stop]))[0]
    return found.tobytes()


def digest_of(digests: Sequence[bytes]) -> bytes:
    """Of the digests of all chunks; of one that is the only one, itself."""
    joined = b"".join(digests)
    return joined if len(joined) == DIGEST_NBYTES else xxhash.xxh3_128_digest(joined)


def bounds_marks(path: str, axis: int, starts: NDArray[np.int64], stops: NDArray[np.int64]) -> NDArray[np.uint64]:
    """(bounds, 2): for each part of an axis of an array a number of 128 bits that goes by exclusive or into the digest of what is read, so
    that parts of boxes can be reckoned with axis by axis."""
    seed = xxhash.xxh3_64_intdigest(path.encode())
    data = np.column_stack([np.full(len(starts), axis), starts, stops]).astype("<i8").tobytes()
    each = len(data) // max(len(starts), 1)
    marks = [xxhash.xxh3_128_digest(data[at : at + each], seed) for at in range(0, len(data), max(each, 1))]
    return np.frombuffer(b"".join(marks), "<u8").reshape(-1, 2)


class Homes:
    """On which node each chunk is best made: where most of the bytes lie that it is computed from. Where several are as good, as for
    chunks that need something of everything, they get equal shares, and neighbours stay together, since they read the same."""

    def __init__(self, tables: Mapping[str, ChunkTable], chunks: int) -> None:
        """chunks: how many there are to choose for, at most."""
        self._tables = tables
        self.nodes = sorted({node for table in tables.values() for node in table.nodes})
        numbers = {node: number for number, node in enumerate(self.nodes)}
        self.members = {}
        """By array: whether each node (column) is in each set of holders (row)."""
        for path, table in tables.items():
            members = np.zeros((len(table.sets), len(self.nodes)))
            for number in range(len(table.sets)):
                members[number, [numbers[node] for node in table.sets[number]]] = 1
            self.members[path] = members
        self._given = [0] * len(self.nodes)
        self._share, self._last = -(-chunks // max(len(self.nodes), 1)), -1

    def choose(self, pulls: Sequence[Pull]) -> tuple[int, int]:
        """Number of the node for the chunk that is computed from `pulls`, and the decoded bytes of it that lie there."""
        held = np.zeros(len(self.nodes))
        for one in pulls:
            members = self.members[one.path]
            weights = np.bincount(self._tables[one.path].holders[one.chunks], one.nbytes, len(members))
            held += weights @ members
        (best,) = self.choose_all(held[None])
        return best, int(held[best])

    def choose_all(self, held: NDArray[np.float64]) -> list[int]:
        """Numbers of the nodes for chunks, in their order. held: (chunks, nodes), decoded bytes of each chunk's inputs that lie there."""
        if not len(held):
            return []
        is_good = held >= _NEARLY * held.max(axis=1, keepdims=True)
        packed = np.ascontiguousarray(np.packbits(is_good, axis=1)).view(f"V{-(-len(self.nodes) // 8)}").reshape(-1)
        kinds: dict[bytes, list[int]] = {}
        given, share, last, chosen = self._given, self._share, self._last, list[int]()
        for place, kind in enumerate(packed.tolist()):
            good = kinds.get(kind)
            if good is None:
                good = kinds[kind] = np.flatnonzero(is_good[place]).tolist()
            if len(good) == 1:
                last = good[0]
            elif last not in good or given[last] >= share:
                last = min(good, key=given.__getitem__)
            given[last] += 1
            chosen.append(last)
        self._last = last
        return chosen
