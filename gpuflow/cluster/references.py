"""Which chunks a task of somebody's own Dask graph reads, as far as its arguments tell: blocks of `Dataset.to_dask`, and zarr arrays of a
gpuflow store, also within xarray's wrappers, with the slices beside them.

Annotations get lost when Dask fuses tasks; what a task holds does not. Nothing here may fail: a task whose chunks cannot be told runs where
Dask puts it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product
from typing import Any

from dask.task_spec import Alias, DataNode, Task, TaskRef

_LOOKED_AT = 2000  # parts of one task: what holds more is no reading of some chunks
_CHUNKS = 4096  # of one task, that the holders of are looked up for
_WRAPPERS = 12  # of xarray's around an array


@dataclass(frozen=True, slots=True)
class ChunkRef:
    """Chunks of one array that a task reads. generations: at which; work: their decoded bytes; device: as `ChunkGroup.device`."""

    dataset: str
    array: str
    chunks: tuple[int, ...]
    generations: tuple[int, ...]
    work: int
    device: str = "cpu"


Lookup = Callable[[Any], Any]
"""What another task is, by its key; None when that is not known."""


def find_reference(run_spec: Any, lookup: Lookup) -> ChunkRef | None:
    """What a task reads; of several arrays, that of which it reads most."""
    if not _is_task(run_spec):  # a value that others take, and no reading
        return None
    return max(_references(run_spec, lookup), key=lambda ref: ref.work, default=None)


def _references(run_spec: Any, lookup: Lookup) -> Iterator[ChunkRef]:
    stack, left = [(run_spec, lookup)], _LOOKED_AT
    while stack and left:
        left -= 1
        part, lookup = stack.pop()
        if isinstance(part, ChunkRef):
            yield part
            continue
        children = _children(part)
        if _is_task(part) and getattr(part.func, "__name__", "") == "_execute_subgraph":  # tasks that Dask has fused
            lookup = _within(part.args, lookup)
        elif _is_task(part):
            resolved = [_resolved(child, lookup) for child in children]
            found = (_of_array(child, resolved[number + 1 :]) for number, child in enumerate(resolved))
            yield from (ref for ref in found if ref is not None)
        stack += [(child, lookup) for child in children]


def _within(args: Sequence[Any], lookup: Lookup) -> Lookup:
    """Among the tasks that were fused: (tasks by key, the last one, names that stand for what follows, what these stand for ...)."""
    inner, _, names, *others = args
    known = {**inner, **dict(zip(names, [_resolved(other, lookup) for other in others], strict=False))}
    return lambda key: known[key] if key in known else lookup(key)


def _is_task(part: Any) -> bool:
    """By its type: what users' objects do when they are asked for an attribute is not known, and this runs on the scheduler."""
    return isinstance(part, Task)


def _children(part: Any) -> Sequence[Any]:
    """What it consists of."""
    if isinstance(part, dict):
        return list(islice(part.values(), _LOOKED_AT))
    if isinstance(part, list | tuple):
        return part[:_LOOKED_AT]
    if isinstance(part, Task):
        return [*part.args[:_LOOKED_AT], *part.kwargs.values()]
    return [part.value] if isinstance(part, DataNode) else []


def _resolved(part: Any, lookup: Lookup) -> Any:
    """The value that a reference to another task stands for, if that task is just a value."""
    for _ in range(_WRAPPERS):
        if isinstance(part, TaskRef):
            part = lookup(part.key)
        elif isinstance(part, Alias):
            part = lookup(part.target)
    return part.value if isinstance(part, DataNode) else part


def _of_array(part: Any, after: Sequence[Any]) -> ChunkRef | None:
    """Of a zarr array, and the slices that are taken of it."""
    array, offset = _unwrapped(part)
    if array is None:
        return None
    region = next((_as_slices(other, len(array.shape)) for other in after if isinstance(other, tuple) and other), None)
    slices = _shifted(region, offset, array.shape)
    grid_chunks = array.shards or array.chunks
    ranges = [
        range(part.start // size, -(-part.stop // size)) if part.stop > part.start else range(0)
        for part, size in zip(slices, grid_chunks, strict=True)
    ]
    count = 1
    for numbers in ranges:
        count *= len(numbers)
    if not 0 < count <= _CHUNKS:
        return None
    counts = [-(-size // chunk) for size, chunk in zip(array.shape, grid_chunks, strict=True)]
    chunks = tuple(_ravel(index, counts) for index in product(*ranges))
    nbytes = count * array.dtype.itemsize
    for size in grid_chunks:
        nbytes *= size
    return ChunkRef(array.store.name, array.path, chunks, (0,) * count, nbytes)


def _unwrapped(part: Any) -> tuple[Any, tuple[slice, ...] | None]:
    """(zarr array of a gpuflow store, what of it a lazy slice has taken already); (None, None) when it is something else."""
    module = sys.modules.get("gpuflow.storage.cluster_store")
    if module is None:  # nothing of that kind can have been made here
        return None, None
    offset = None
    for _ in range(_WRAPPERS):
        kind = type(part).__module__
        if kind == "zarr.core.array":
            return (part, offset) if isinstance(part.store, module.ClusterStore) else (None, None)
        if not kind.startswith("xarray."):
            return None, None
        key = getattr(getattr(part, "key", None), "tuple", None)
        if key is not None:
            if not all(isinstance(one, slice) and one.step in (None, 1) for one in key):
                return None, None
            offset = key
        part = getattr(part, "_array", None) if hasattr(part, "_array") else getattr(part, "array", None)
    return None, None


def _as_slices(index: tuple[Any, ...], ndim: int) -> tuple[slice, ...] | None:
    """The slices of a basic index; None for another one."""
    if len(index) != ndim or not all(isinstance(one, slice | int) for one in index):
        return None
    return tuple(one if isinstance(one, slice) else slice(one, one + 1) for one in index)


def _shifted(region: tuple[slice, ...] | None, offset: tuple[slice, ...] | None, shape: Sequence[int]) -> list[slice]:
    """`region` of the part `offset` of an array, in the array's own indices; whole axes where there is none. Steps only thin it out."""
    found = []
    for axis, size in enumerate(shape):
        start, stop, _ = (offset[axis] if offset is not None else slice(None)).indices(size)
        if region is not None:
            first, last, _ = slice(region[axis].start, region[axis].stop).indices(max(stop - start, 0))
            start, stop = start + first, start + last
        found.append(slice(start, stop))
    return found


def _ravel(index: Sequence[int], counts: Sequence[int]) -> int:
    linear = 0
    for position, count in zip(index, counts, strict=True):
        linear = linear * count + position
    return linear
