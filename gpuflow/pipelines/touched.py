"""Which chunks of an output have to be looked at when chunks of the source changed, and what has to be known of the source for them.

Pure. A box of the output that needs nothing of what changed is left out as a whole, so that one changed chunk among a million is found in
some twenty looks; whatever the steps, for all that is asked of them is what a part of their result is computed from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from gpuflow.grid import Box, Grid
from gpuflow.pipelines.flow import is_empty
from gpuflow.pipelines.plan import ArrayPlan
from gpuflow.pipelines.pulls import pulls_of
from gpuflow.steps.around import pieces
from gpuflow.steps.base import Region

Chunks = NDArray[np.int64]
"""Linear numbers, ascending, each once."""


def touched(array: ArrayPlan, changed: Mapping[str, Iterable[int]]) -> Chunks:
    """Chunks of the output `array` that are computed from any of those `changed`, by array of the source; numbers beyond an array's grid
    are of another version of it, and are left out."""
    masks = {path: _mask(array.sources[path].grid, changed[path]) for path in array.flow.paths if path in changed}
    masks = {path: mask for path, mask in masks.items() if mask.any()}
    if not masks or not array.target.grid.size:
        return np.empty(0, np.int64)
    if not array.gathered:
        return np.flatnonzero(masks[array.flow.paths[0]])
    grid, found = array.target.grid, list[int]()
    boxes: list[Box] = [tuple(range(count) for count in grid.counts)]
    while boxes:
        box = boxes.pop()
        if not _needs(array, grid.region_of(box), masks):
            continue
        longest = max(range(len(box)), key=lambda axis: len(box[axis]), default=0)
        if not box or len(box[longest]) == 1:
            found.append(grid.ravel(tuple(part.start for part in box)))
            continue
        part = box[longest]
        middle = (part.start + part.stop) // 2
        halves = (range(part.start, middle), range(middle, part.stop))
        boxes.extend((*box[:longest], half, *box[longest + 1 :]) for half in halves)
    return np.array(sorted(found), np.int64)


def needed(array: ArrayPlan, chunks: Sequence[int]) -> dict[str, Chunks]:
    """By array of the source, the chunks that `chunks` of the output are computed from."""
    if not array.gathered:
        return {array.flow.paths[0]: np.array(chunks, np.int64)}
    found: dict[str, set[int]] = {path: set() for path in array.flow.paths}
    for chunk in chunks:
        for pull in pulls_of(array.flow, array.specs, array.sources, array.target.grid.region(chunk)):
            found[pull.path].update(pull.chunks.tolist())
    return {path: np.array(sorted(numbers), np.int64) for path, numbers in found.items()}


def _mask(grid: Grid, chunks: Iterable[int]) -> NDArray[np.bool_]:
    numbers = np.unique(np.fromiter(chunks, np.int64))
    mask = np.zeros(grid.size, bool)
    mask[numbers[(numbers >= 0) & (numbers < grid.size)]] = True
    return mask.reshape(grid.counts)


def _needs(array: ArrayPlan, region: Region, masks: Mapping[str, NDArray[np.bool_]]) -> bool:
    """Whether the part `region` of the output is computed from anything in `masks`."""
    for path, part in array.flow.pulls(array.specs, region).items():
        if path in masks and not is_empty(part):
            grid = array.sources[path].grid
            for box, _ in pieces(part, grid.shape):
                spots = (slice(axis.start // size, -(-axis.stop // size)) for axis, size in zip(box, grid.chunks, strict=True))
                if masks[path][tuple(spots)].any():
                    return True
    return False
