"""Which chunks of a gathered array are to be made, of what and where: of all chunks at once, axis by axis.

Pure. What a chunk pulls is nearly always the product of what it pulls along each axis; then digests, bytes and nodes of all chunks are
arithmetic on a few columns. `one_by_one` says the same of any flow, and is what `at_once` must equal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from gpuflow.datasets.catalog import ChunkTable
from gpuflow.grid import Box, Grid
from gpuflow.pipelines.fingerprint import recipe, recipes
from gpuflow.pipelines.flow import Flow
from gpuflow.pipelines.pulls import Homes, bounds_marks, inputs_digest, pulls_of
from gpuflow.pipelines.sums import needed_by, sums_over
from gpuflow.steps.base import ArraySpec
from gpuflow.steps.spans import Coupled, Inseparable, Span, Spans
from gpuflow.storage.metadata import ArrayMetadata

_CELLS = 2**22
"""Numbers of one block of chunks: one a chunk and node. 32 MiB."""
_DIGESTS = 2**20
"""Of chunks of the source, in memory at once: 16 MiB."""


GATHER_DTYPE = np.dtype([("home", "<i8"), ("nbytes", "<i8"), ("local_nbytes", "<i8"), ("inputs", "V16")])
"""Of a chunk: the number of the node on which it is best made, decoded bytes that it is computed from and those of them that lie there, and
the digest of its inputs."""


@dataclass(frozen=True)
class Gathers:
    """rows: GATHER_DTYPE, of each pending chunk, in their order; nodes: what `home` numbers. needed: which chunks of the source's arrays
    are read for them; asked: which were looked for, for whatever chunk."""

    nodes: Sequence[str]
    rows: NDArray[Any]
    needed: Mapping[str, NDArray[np.bool_]]
    asked: Mapping[str, NDArray[np.bool_]]

    def at(self, pending: Sequence[int], chunks: Sequence[int]) -> Gathers:
        """Of `chunks` out of the `pending` ones, which ascend."""
        return replace(self, rows=self.rows[np.searchsorted(np.array(pending, np.int64), np.array(chunks, np.int64))])

    def by_home(self) -> dict[str, NDArray[Any]]:
        """Places among the pending chunks, ascending, of those that are best made on each node; without nodes that have none."""
        places = {node: np.flatnonzero(self.rows["home"] == number) for number, node in enumerate(self.nodes)}
        return {node: mine for node, mine in places.items() if len(mine)}


@dataclass(frozen=True)
class Wanted:
    """All chunks of `grid`, over the result of `flow`. specs: of its nodes; sources: the arrays that are read."""

    flow: Flow
    specs: Sequence[ArraySpec]
    sources: Mapping[str, ArrayMetadata]
    grid: Grid


Found = tuple[tuple[int, ...], tuple[int, ...], Gathers]
"""Chunks to be made, chunks that cannot be for what is lost, and what is known of the former."""


def plan_gathers(
    wanted: Wanted,
    made_by: str,
    tables: Mapping[str, ChunkTable],
    target: ChunkTable,
    only: NDArray[np.int64] | None = None,
) -> Found:
    """Compare recipes. tables: what is there of the arrays that are read; target: of the output. only: chunks of the output to look at."""
    if only is not None:
        return one_by_one(wanted, made_by, tables, target, only.tolist())
    try:
        return at_once(wanted, made_by, tables, target)
    except Inseparable:
        return one_by_one(wanted, made_by, tables, target)


def _marked(tables: Mapping[str, ChunkTable], value: bool) -> dict[str, NDArray[np.bool_]]:
    return {path: np.full(len(table.rows), value) for path, table in tables.items()}


def one_by_one(
    wanted: Wanted,
    made_by: str,
    tables: Mapping[str, ChunkTable],
    target: ChunkTable,
    only: Sequence[int] | None = None,
) -> Found:
    """Of any flow: some 130 us a chunk."""
    grid = wanted.grid
    chunks: Sequence[int] = range(grid.size) if only is None else only
    needed, asked, homes = _marked(tables, False), _marked(tables, only is None), Homes(tables, len(chunks))
    pending, unmade = list[int](), list[int]()
    rows: list[tuple[int, int, int, bytes]] = []
    for chunk in chunks:
        pulls = pulls_of(wanted.flow, wanted.specs, wanted.sources, grid.region(chunk))
        if not all(tables[one.path].present[one.chunks].all() for one in pulls):
            unmade.append(chunk)
            for one in pulls:
                asked[one.path][one.chunks] = True
            continue
        inputs = inputs_digest(pulls, [tables[one.path].rows["digest"][one.chunks] for one in pulls])
        if target.present[chunk] and target.rows["recipe"][chunk].tobytes() == recipe(made_by, inputs):
            continue
        pending.append(chunk)
        home, local = homes.choose(pulls)
        rows.append((home, sum(int(one.nbytes.sum()) for one in pulls), local, inputs))
        for one in pulls:
            needed[one.path][one.chunks] = True
    return tuple(pending), tuple(unmade), Gathers(homes.nodes, np.array(rows, GATHER_DTYPE), needed, asked)


def at_once(wanted: Wanted, made_by: str, tables: Mapping[str, ChunkTable], target: ChunkTable) -> Found:
    """Of a flow that pulls axis by axis, some 2 us a chunk. Inseparable when it does not."""
    grid, homes = wanted.grid, Homes(tables, wanted.grid.size)
    pulls, needed, first = _Pulls(wanted), _marked(tables, False), 0
    pending, unmade = list[int](), list[int]()
    found = [np.empty(0, GATHER_DTYPE)]
    for block in _blocks(grid.counts, max(1, _CELLS // (len(homes.nodes) + 1))):
        held, nbytes, inputs = _block(wanted, pulls, homes, tables, block)
        rows = slice(first, first + len(held))
        lacks = held[:, -1] > 0
        done = target.present[rows] & ~lacks
        made = np.flatnonzero(done)
        done[made] = target.rows["recipe"][rows][made] == recipes(made_by, inputs[made])
        todo = ~(done | lacks)
        where = np.flatnonzero(todo)
        _note_needed(pulls, needed, block, todo)
        columns = np.empty(len(where), GATHER_DTYPE)
        columns["home"] = homes.choose_all(held[where, :-1])
        columns["nbytes"], columns["local_nbytes"] = nbytes[where], held[where, columns["home"]]
        columns["inputs"] = inputs[where]
        found.append(columns)
        pending.extend((where + first).tolist())
        unmade.extend((np.flatnonzero(lacks) + first).tolist())
        first = rows.stop
    gathers = Gathers(homes.nodes, np.concatenate(found), needed, _marked(tables, True))
    return tuple(pending), tuple(unmade), gathers


def _blocks(counts: tuple[int, ...], most: int) -> Iterator[Box]:
    """All positions of a grid as boxes of at most so many, which follow one another in C order."""
    lengths = [1] * len(counts)
    for axis in reversed(range(len(counts))):
        lengths[axis] = max(1, min(counts[axis], most))
        most = most // lengths[axis] if lengths[axis] == counts[axis] else 0
    for starts in product(*(range(0, count, length) for count, length in zip(counts, lengths, strict=True))):
        ends = (min(start + length, count) for start, length, count in zip(starts, lengths, counts, strict=True))
        yield tuple(range(start, end) for start, end in zip(starts, ends, strict=True))


class _Pulls:
    """What boxes of chunks pull: as few boxes as each have one answer."""

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self._known: dict[tuple[tuple[int, int], ...], dict[str, Spans | None] | int] = {}

    def grid(self, path: str) -> Grid:
        """Of an array that is read."""
        return self._wanted.sources[path].grid

    def of(self, box: Box, fixed: Mapping[int, int] | None = None) -> Iterator[tuple[Box, dict[str, Spans | None]]]:
        """Parts of `box`, with the spans of each array that it pulls. fixed: the one place of `box` along some axes."""
        fixed = fixed or {}
        key = tuple(sorted(fixed.items()))
        if key not in self._known:
            self._known[key] = self._ask(fixed)
        answer = self._known[key]
        if isinstance(answer, dict):
            yield box, {path: spans and tuple(span.at(dict(enumerate(box))) for span in spans) for path, spans in answer.items()}
            return
        for place in box[answer]:
            part = (*box[:answer], range(place, place + 1), *box[answer + 1 :])
            yield from self.of(part, {**fixed, answer: place})

    def _ask(self, fixed: Mapping[int, int]) -> dict[str, Spans | None] | int:
        """The spans, or the axis along which places must be fixed."""
        grid, spans = self._wanted.grid, []
        for axis, (count, chunk, size) in enumerate(zip(grid.counts, grid.chunks, grid.shape, strict=True)):
            places = np.array([fixed[axis]] if axis in fixed else range(count), np.int64)
            starts = places * chunk
            spans.append(Span(None if axis in fixed else axis, starts, np.minimum(starts + chunk, size)))
        try:
            return self._wanted.flow.spans(self._wanted.specs, tuple(spans))
        except Coupled as coupled:
            return coupled.axis


def _block(
    wanted: Wanted, pulls: _Pulls, homes: Homes, tables: Mapping[str, ChunkTable], block: Box
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[Any]]:
    """Of the chunks of a block, in C order: (chunks, nodes + 1), decoded bytes that lie on each node, and those of chunks that nobody has;
    decoded bytes that they are computed from; the digests of their inputs."""
    shape, nodes = tuple(map(len, block)), len(homes.nodes)
    held = np.zeros((*shape, nodes + 1))
    nbytes = np.zeros(shape, np.int64)
    inputs = np.zeros(shape, "V16")
    for box, spans in pulls.of(block):
        place = tuple(slice(part.start - whole.start, part.stop - whole.start) for part, whole in zip(box, block, strict=True))
        there = {path: one for path, one in spans.items() if one is not None}
        for path, one in there.items():
            metadata, table = wanted.sources[path], tables[path]
            itemsize = metadata.dtype.itemsize if metadata.dtype is not None else 1
            members = np.hstack([homes.members[path], np.zeros((len(table.sets), 1))])
            counts = metadata.grid.counts
            held[place] += itemsize * sums_over(
                one, metadata.grid, len(shape), _Columns(members, table.holders.reshape(counts), table.present)
            )
            nbytes[place] += itemsize * _volumes(one, len(shape))
        grids = {path: (tables[path].rows["digest"].reshape(wanted.sources[path].grid.counts)) for path in there}
        inputs[place] = _digests(wanted, there, grids, box)
    return held.reshape(-1, nodes + 1), nbytes.reshape(-1), inputs.reshape(-1)


class _Columns:
    """For chunks of an array: whether each node has one (a column each), and whether none has (the last)."""

    def __init__(self, members: NDArray[np.float64], holders: NDArray[np.uint32], present: NDArray[np.bool_]) -> None:
        self._members, self._holders, self._present = members, holders, present.reshape(holders.shape)

    def __call__(self, part: tuple[slice, ...]) -> NDArray[np.float64]:
        columns = self._members[self._holders[part]]
        columns[..., -1] = ~self._present[part]
        return columns


def _volumes(spans: Spans, axes: int) -> NDArray[np.int64]:
    """Number of values that each part pulls; of the length 1 along axes on which it does not depend."""
    volumes = np.ones((1,) * axes, np.int64)
    for span in spans:
        lengths = np.maximum(span.stops - span.starts, 0)
        volumes = volumes * (
            lengths if span.axis is None else lengths.reshape([-1 if a == span.axis else 1 for a in range(axes)])
        )
    return volumes


def _note_needed(pulls: _Pulls, needed: Mapping[str, NDArray[np.bool_]], block: Box, todo: NDArray[np.bool_]) -> None:
    """Mark the chunks that those `todo` of a block pull."""
    todo = todo.reshape(tuple(map(len, block)))
    for box, spans in pulls.of(block):
        place = tuple(slice(part.start - whole.start, part.stop - whole.start) for part, whole in zip(box, block, strict=True))
        for path, one in spans.items():
            if one is not None:
                grid = pulls.grid(path)
                marks = needed[path].reshape(grid.counts)
                marks |= needed_by(one, grid, todo[place])


@dataclass(frozen=True)
class _Runs:
    """Places along an axis of the result that need the same chunks: number of the run of each place; by array and axis of it, first chunk
    and number of chunks of each run."""

    numbers: NDArray[np.int64]
    firsts: dict[tuple[str, int], NDArray[np.int64]]
    counts: dict[tuple[str, int], NDArray[np.int64]]

    @property
    def size(self) -> int:
        return int(self.numbers[-1]) + 1 if len(self.numbers) else 0


def _runs(wanted: Wanted, spans: Mapping[str, Spans], axis: int | None, places: int) -> _Runs:
    """axis: None for what does not depend on any."""
    firsts, counts = {}, {}
    for path, one in spans.items():
        grid = wanted.sources[path].grid
        for number, (span, chunk, size) in enumerate(zip(one, grid.chunks, grid.shape, strict=True)):
            if span.axis == axis:
                pieces = span.pieces(size)
                firsts[path, number] = pieces[0].starts // chunk
                counts[path, number] = sum(np.maximum(0, -(-each.stops // chunk) - each.starts // chunk) for each in pieces)
    changes = np.zeros(places, bool)
    for column in [*firsts.values(), *counts.values()]:
        changes[1:] |= column[1:] != column[:-1]
    heads = np.flatnonzero(np.concatenate([[True], changes[1:]])) if places else np.zeros(0, np.int64)
    pick = {key: column[heads] for key, column in firsts.items()}, {key: column[heads] for key, column in counts.items()}
    return _Runs(np.cumsum(changes), *pick)


def _digests(wanted: Wanted, spans: Mapping[str, Spans], grids: Mapping[str, NDArray[Any]], box: Box) -> NDArray[Any]:
    """`inputs_digest` of each chunk of a box."""
    axes = [_runs(wanted, spans, axis, len(part)) for axis, part in enumerate(box)]
    rest = _runs(wanted, spans, None, 1)
    found = np.zeros([runs.size for runs in axes], "V16")
    kinds = [_kinds(runs) for runs in axes]
    for kind in product(*kinds):
        _fill(found, kind, [*axes, rest], spans, grids)
    for axis, runs in enumerate(axes):
        found = found.take(runs.numbers, axis)
    marked = np.ascontiguousarray(found).view("<u8").reshape(*found.shape, 2)
    for path, one in spans.items():
        marked = marked ^ np.where(_volumes(one, len(box))[..., None] > 0, _marks(path, one, len(box)), np.uint64(0))
    return np.ascontiguousarray(marked).view("V16").reshape(found.shape)


def _marks(path: str, spans: Spans, axes: int) -> NDArray[np.uint64]:
    """`bounds_marks` of what each part pulls, of all axes together; of the length 1 along axes on which it does not depend."""
    marks = np.zeros((*(1,) * axes, 2), np.uint64)
    for number, span in enumerate(spans):
        own = bounds_marks(path, number, span.starts, span.stops)
        marks = marks ^ (own if span.axis is None else own.reshape(*[-1 if a == span.axis else 1 for a in range(axes)], 2))
    return marks


def _kinds(runs: _Runs) -> list[NDArray[np.int64]]:
    """Runs that need equally many chunks, together."""
    columns = list(runs.counts.values())
    if not columns:
        return [np.arange(runs.size)]
    kinds: dict[tuple[int, ...], list[int]] = {}
    for number, counts in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
        kinds.setdefault(counts, []).append(number)
    return [np.array(numbers) for numbers in kinds.values()]


def _fill(
    found: NDArray[Any],
    kind: Sequence[NDArray[np.int64]],
    axes: Sequence[_Runs],
    spans: Mapping[str, Spans],
    grids: Mapping[str, NDArray[Any]],
) -> None:
    """The digests at `kind`, numbers of runs along each axis, all of which need equally many chunks."""
    whole = [*kind, np.zeros(1, np.int64)]
    counts = {key: int(runs.counts[key][one[0]]) for runs, one in zip(axes, whole, strict=True) for key in runs.counts}
    each = sum(prod(counts[path, axis] for axis in range(len(one))) for path, one in spans.items())
    for block in _blocks(tuple(map(len, kind)), max(1, _DIGESTS // max(1, each))):
        numbers = [one[part.start : part.stop] for one, part in zip(kind, block, strict=True)]
        shape = tuple(map(len, numbers))
        columns = [_gathered(path, one, grids[path], [*numbers, whole[-1]], axes) for path, one in spans.items()]
        joined = np.concatenate([np.broadcast_to(one, (*shape, one.shape[-1])) for one in columns], axis=-1)
        width = joined.shape[-1]
        if width == 1:  # see `digest_of`
            digests = joined
        else:
            data, step = joined.tobytes(), width * 16
            hashed = [xxhash.xxh3_128_digest(data[at : at + step]) for at in range(0, prod(shape) * step, max(step, 1))]
            digests = np.frombuffer(b"".join(hashed), "V16")
        found[np.ix_(*numbers)] = digests.reshape(shape)


def _gathered(
    path: str, spans: Spans, grid: NDArray[Any], numbers: Sequence[NDArray[np.int64]], axes: Sequence[_Runs]
) -> NDArray[Any]:
    """Digests of the chunks that each combination of runs needs, in C order along the last axis. Of the length 1 along the result's axes
    on which they do not depend."""
    dims, indices = len(axes) - 1, []
    for number, span in enumerate(spans):
        runs = axes[dims if span.axis is None else span.axis]
        mine = numbers[dims if span.axis is None else span.axis]
        first, count = runs.firsts[path, number][mine], int(runs.counts[path, number][mine[0]])
        chunks = (first[:, None] + np.arange(count)) % max(grid.shape[number], 1)
        shape = [1] * (dims + len(spans))
        shape[dims + number] = count
        if span.axis is not None:
            shape[span.axis] = len(mine)
        indices.append(chunks.reshape(shape))
    found = grid[tuple(indices)] if indices else grid.reshape((1,) * dims)
    return found.reshape((*found.shape[:dims], -1))
