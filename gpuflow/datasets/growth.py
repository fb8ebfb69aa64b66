"""How the arrays of a dataset grow along one dimension, all that have it together.

Pure. Before the first new chunk is written, the record says what the arrays are becoming (`DatasetRecord.growth`), so that the chunks have
names; after the last one the arrays are that. In between, and after a crash, the dataset is what it was: a chunk at the old end which was
rewritten holds the same values up to there. Chunks keep their numbers, or an array cannot grow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod
from typing import Any

from gpuflow.errors import ConfigError, Problem
from gpuflow.grid import Grid
from gpuflow.steps.parameters import suggestion
from gpuflow.storage.metadata import ArrayMetadata
from gpuflow.storage.record import DatasetRecord

Axis = str | int
"""The name of a dimension, or its number where the arrays have no names for theirs."""


def axes_of(name: str, arrays: Mapping[str, ArrayMetadata], axis: Axis | None) -> tuple[Axis, dict[str, int]]:
    """The dimension along which dataset `name` grows, and which axis that is of every array that has it. axis: as the user says it; None
    for the first of the arrays with the most dimensions. ConfigError where there is none, or it is not clear which."""
    ranked = {path: metadata for path, metadata in arrays.items() if metadata.shape}
    if not ranked:
        raise ConfigError([Problem(f"dataset {name!r} has no array that could grow", "axis")])
    most = max(len(metadata.shape) for metadata in ranked.values())
    largest = {path: metadata for path, metadata in ranked.items() if len(metadata.shape) == most}
    if isinstance(axis, str) and axis.isdecimal():
        axis = int(axis)
    if axis is None or isinstance(axis, int):
        axis = _named(name, largest, axis or 0)
    if isinstance(axis, str):
        found = {path: metadata.dims.index(axis) for path, metadata in ranked.items() if metadata.dims.count(axis) == 1}
        if not found:
            known = sorted({dim for metadata in ranked.values() for dim in metadata.dims if dim is not None})
            hint = suggestion(axis, known) if known else "its dimensions have no names: give the number of the axis"
            raise ConfigError([Problem(f"dataset {name!r} has no dimension `{axis}`", "axis", hint=hint)])
        return axis, found
    length = next(iter(largest.values())).shape[axis]
    same = {path for path, m in ranked.items() if len(m.shape) > axis and m.dims[axis] is None and m.shape[axis] == length}
    return axis, dict.fromkeys(sorted(same), axis)


def _named(name: str, largest: Mapping[str, ArrayMetadata], axis: int) -> Axis:
    """What axis number `axis` of the largest arrays is called; its number where it has no name."""
    if any(axis >= len(metadata.shape) for metadata in largest.values()):
        count = len(next(iter(largest.values())).shape)
        raise ConfigError([Problem(f"dataset {name!r} has no axis {axis}", "axis", hint=f"its axes are 0 to {count - 1}")])
    names = {metadata.dims[axis] for metadata in largest.values()}
    if len(names) > 1:
        known = ", ".join(f"`{each}`" for each in sorted(str(each) for each in names))
        raise ConfigError([Problem(f"dataset {name!r} could grow along {known}", "axis", hint="say which with --axis")])
    found = names.pop()
    return axis if found is None else found


def check_numbers(name: str, path: str, grid: Grid, axis: int) -> None:
    """ConfigError when the chunks would not keep their numbers, which count in C order."""
    if prod(grid.counts[:axis]) > 1:
        reason = (
            f"array {name}/{path} cannot grow along axis {axis}: axes before it are cut into {prod(grid.counts[:axis])} chunks"
        )
        hint = "write it to a new dataset whose chunks are whole along these, with `output: {chunks: ...}`, or transposed"
        raise ConfigError([Problem(reason, "axis", hint=hint)])


def lengthened(metadata: ArrayMetadata, axis: int, length: int) -> ArrayMetadata:
    """The same array, `length` long along `axis`."""
    shape = [length if number == axis else size for number, size in enumerate(metadata.shape)]
    return ArrayMetadata({**metadata.document, "shape": shape})


def unfinished(before: Grid, after: Grid) -> list[int]:
    """Chunks of `after`, whose numbers go on from those of `before`, that hold anything that `before` does not."""
    grown = [axis for axis, (old, new) in enumerate(zip(before.shape, after.shape, strict=True)) if old != new]
    if not grown:
        return []
    (axis,) = grown
    inner = prod(after.counts[axis + 1 :])
    return list(range(before.shape[axis] // before.chunks[axis] * inner, after.size))


def settled(grid: Grid) -> int:
    """How many chunks, from the first on, stay as they are when the array grows along the first axis that is cut."""
    axis = next((axis for axis, count in enumerate(grid.counts) if count > 1), 0)
    if not grid.shape or not grid.shape[axis] % grid.chunks[axis]:
        return grid.size
    return grid.size - prod(grid.counts[axis + 1 :])


def is_grown(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether `after` is the document of the same array, longer along one dimension, with the numbers of its chunks kept."""
    if {**before, "shape": None} != {**after, "shape": None} or len(before["shape"]) != len(after["shape"]):
        return False
    longer = [axis for axis, (old, new) in enumerate(zip(before["shape"], after["shape"], strict=True)) if old != new]
    if not longer:
        return True
    axis, grid = longer[0], ArrayMetadata(before).grid
    return len(longer) == 1 and before["shape"][axis] < after["shape"][axis] and prod(grid.counts[:axis]) <= 1


def have_grown(before: Mapping[str, Mapping[str, Any]], after: Mapping[str, Mapping[str, Any]]) -> bool:
    """The same of all arrays of a dataset, of which at least one is longer."""
    if before.keys() != after.keys() or before == after:
        return False
    return all(is_grown(document, after[path]) for path, document in before.items())


def left_over(record: DatasetRecord, chunks: Mapping[str, Iterable[int]]) -> dict[str, list[int]]:
    """Of chunks by array, those behind the arrays' ends: an append that was not finished wrote them."""
    sizes = {path: metadata.grid.size for path, metadata in record.metadata.items()}
    found = {path: [chunk for chunk in numbers if chunk >= sizes[path]] for path, numbers in chunks.items()}
    return {path: numbers for path, numbers in found.items() if numbers}
