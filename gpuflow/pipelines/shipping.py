"""How many bytes the tasks ship that gather parts of chunks: the chunks of a task take what they share once, and what is wanted whole goes
as it is stored.

Pure. Of very many chunks some tasks are looked at, and the others are taken to share as much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from gpuflow.pipelines.gathers import Gathers
from gpuflow.pipelines.memory import Sharing
from gpuflow.pipelines.plan import ChunkPlan
from gpuflow.pipelines.pulls import is_whole, outermost, overlaps, pulls_of
from gpuflow.steps.base import Region

_PARTS = 2**13
"""Of chunks of the source, that are looked at: some 50 us each, where neighbours lie on different nodes."""
_MOST_CHUNKS = 2**10
"""Of a task: one that is larger is looked at in pieces."""

Task = tuple[str, NDArray[np.int64]]
"""The node where it runs, and its chunks, as places among the pending ones."""


def ship_nbytes(part: ChunkPlan, together: Sharing, slots: Mapping[str, int]) -> int:
    """Bytes that will be shipped for the pending chunks of an array. together: how they are cut into tasks; slots: threads of each node."""
    gathers, away = part.gathers, part.ship_nbytes
    if gathers is None or not away:
        return away
    each = gathers.rows["nbytes"] - gathers.rows["local_nbytes"]
    tasks = [task for task in _tasks(part, gathers, together, slots) if each[task[1]].any()]
    order = np.random.default_rng(len(tasks)).permutation(len(tasks)).tolist()
    shared = alone = parts = 0
    for number in order:
        if parts > _PARTS:
            break
        home, places = tasks[number]
        nbytes, looked_at = _of_task(part, home, [part.pending[place] for place in places.tolist()])
        shared, alone, parts = shared + nbytes, alone + int(each[places].sum()), parts + looked_at
    return round(away * shared / alone) if alone else away


def _tasks(part: ChunkPlan, gathers: Gathers, together: Sharing, slots: Mapping[str, int]) -> list[Task]:
    """As they will be cut, or pieces of them."""
    array = part.array
    pulls = pulls_of(array.flow, array.specs, array.sources, array.target.grid.region(part.pending[0]))
    most = min(_MOST_CHUNKS, max(1, _PARTS // max(1, sum(len(one.chunks) for one in pulls))))
    tasks: list[Task] = []
    for home, places in gathers.by_home().items():
        size = min(most, together.size(len(places), max(1, slots.get(home, 1))))
        tasks += [(home, places[start : start + size]) for start in range(0, len(places), size)]
    return tasks


def _of_task(part: ChunkPlan, home: str, chunks: Sequence[int]) -> tuple[int, int]:
    """Bytes that come from other nodes for `chunks`, which are made at `home`; and how many parts of chunks were looked at."""
    array = part.array
    grid, wanted, looked_at = array.target.grid, dict[tuple[str, int], list[Region]](), 0
    for box in grid.boxes(chunks):
        for one in pulls_of(array.flow, array.specs, array.sources, grid.region_of(box)):
            table, source = part.tables[one.path], array.sources[one.path].grid
            looked_at += len(one.chunks)
            holders = table.holders[one.chunks].tolist()
            for held, (number, in_chunk, _) in zip(holders, overlaps(source, one.box), strict=True):
                if home not in table.sets[held]:
                    wanted.setdefault((one.path, number), []).append(in_chunk)
    nbytes = 0
    for (path, number), boxes in wanted.items():
        metadata = array.sources[path]
        if any(is_whole(box, metadata.grid.extent(number)) for box in boxes):
            nbytes += int(part.tables[path].rows["nbytes"][number])
        else:
            itemsize = metadata.dtype.itemsize if metadata.dtype is not None else 1
            nbytes += itemsize * sum(int(np.prod([axis.stop - axis.start for axis in box])) for box in outermost(boxes))
    return nbytes, looked_at
