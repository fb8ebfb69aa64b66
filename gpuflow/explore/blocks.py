"""A dataset's array as a dask array: a block for each stored object, read and decoded where it lies.

Each task holds the reference to what it reads, by which the scheduler plugin routes it, also when Dask has fused it with others; and the
generation, so that all of them read the array as it was when it was opened."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import dask.array as da
import numpy as np
from dask.blockwise import BlockwiseDep, blockwise
from dask.highlevelgraph import HighLevelGraph
from numpy.typing import NDArray

from gpuflow.backends.devices import why_no_cuda
from gpuflow.cluster.references import ChunkRef
from gpuflow.errors import ConfigError, DeviceUnavailable, Problem
from gpuflow.execution.devices import workers_for
from gpuflow.grid import Grid
from gpuflow.storage.blocks import decoded
from gpuflow.storage.codecs import ArrayCodec
from gpuflow.storage.locator import Locator, read_chunk
from gpuflow.storage.metadata import ArrayMetadata
from gpuflow.storage.record import DatasetRecord
from gpuflow.storage.view import View


@dataclass(frozen=True)
class Source:
    """What every task needs of the array that it reads. record: with this array and nothing else."""

    locator: Locator
    record: DatasetRecord
    device: str = "cpu"

    @property
    def metadata(self) -> ArrayMetadata:
        """Of the only array."""
        (metadata,) = self.record.metadata.values()
        return metadata


class ChunkReferences(BlockwiseDep):
    """The reference that belongs to each block, made when it is asked for."""

    produces_tasks = False

    def __init__(
        self, dataset: str, array: str, grid: Grid, generations: NDArray[np.uint32], nbytes: int, device: str = "cpu"
    ) -> None:
        self.numblocks = grid.counts
        self._dataset, self._array, self._grid, self._generations = dataset, array, grid, generations
        self._nbytes, self._device = nbytes, device

    def __getitem__(self, index: tuple[int, ...]) -> ChunkRef:
        chunk = self._grid.ravel(index)
        return ChunkRef(self._dataset, self._array, (chunk,), (int(self._generations[chunk]),), self._nbytes, self._device)


def dask_array(view: View, array: str, device: str = "cpu") -> da.Array:
    """Array of the view with a block for each stored object. device: cpu, or cuda for CuPy blocks.

    ConfigError for a dtype without a fixed size: open it with zarr or xarray. DeviceUnavailable when no worker of the cluster, or without
    a cluster this process, can make CuPy blocks. Which worker a task gets that reads no chunk, Dask decides: beside workers without a
    device, let the task that reads bring its result to the host, by `x.map_blocks(lambda block: block.get(), dtype=x.dtype)`."""
    _check_device(view.locator, device)
    metadata = view.record.array(array)
    grid, dtype = metadata.grid, metadata.dtype
    if dtype is None:
        what = f"array {view.record.name}/{array} has dtype {metadata.document['data_type']}"
        raise ConfigError([Problem(what, hint="open it with xarray, or as a zarr array")])
    source = Source(view.locator, slim(view.record, array), device)
    refs = ChunkReferences(view.record.name, array, grid, view.generations(array), metadata.chunk_nbytes, device)
    token = da.core.tokenize(view.record.name, array, device, _token(view, array))
    name = f"read-{view.record.name}-{array.replace('/', '-')}-{token}"
    axes = tuple(range(len(grid.shape)))
    if not axes:
        return da.from_delayed(_delayed(refs[()], source), (), dtype=dtype, meta=_meta(0, dtype, device))
    layer = blockwise(read_block, name, axes, refs, axes, source, None, numblocks={}, _data_producer=True)
    chunks = tuple(_sizes(size, chunk) for size, chunk in zip(grid.shape, grid.chunks, strict=True))
    return da.Array(HighLevelGraph.from_collections(name, layer), name, chunks, dtype=dtype, meta=_meta(len(axes), dtype, device))


def _token(view: View, array: str) -> Any:
    """The same for the same content: another generation of a chunk is another graph."""
    return view.record.version, view.record.arrays[array], view.generations(array)


def _sizes(size: int, chunk: int) -> tuple[int, ...]:
    return tuple(min(chunk, size - start) for start in range(0, size, chunk)) or (0,)


_REMEDY = "leave out device, or use device='cpu'"


def _check_device(locator: Any, device: str) -> None:
    """Before there is a graph: see `dask_array`."""
    if device not in ("cpu", "cuda"):
        raise ConfigError([Problem(f"device {device!r}, for the blocks of a dask array", hint="use cpu or cuda")])
    if device == "cpu":
        return
    connection = getattr(locator, "connection", None)
    if connection is None:
        _check_here(device)
    else:
        workers_for(list(connection.info()["workers"].values()), device, "cupy", f"to_dask(device={device!r})", _REMEDY)


def _check_here(device: str) -> None:
    if reason := why_no_cuda("cupy"):
        raise DeviceUnavailable(f"{device} cannot be used: {reason}", _REMEDY)


def _meta(ndim: int, dtype: np.dtype[Any], device: str) -> Any:
    """What Dask takes the blocks for, to tell what results will be: NumPy arrays on a client that cannot have CuPy's."""
    empty = np.empty((0,) * ndim, dtype)
    return empty if device == "cpu" or why_no_cuda("cupy") else _as_cupy(empty)


def _as_cupy(block: NDArray[Any]) -> Any:
    from gpuflow.backends.cuda import cupy

    return cupy.asarray(block)


def _delayed(ref: ChunkRef, source: Source) -> Any:
    from dask import delayed

    return delayed(read_block)(ref, source)


def slim(record: DatasetRecord, array: str) -> DatasetRecord:
    """The record with one array, for tasks: it goes into each of them."""
    nothing: dict[str, Any] = {name: {} for name in ("groups", "objects", "origin", "statistics", "snapshots")}
    return replace(record, arrays={array: record.arrays[array]}, transforms=(), **nothing)


@lru_cache(maxsize=256)
def _codec(document: str) -> ArrayCodec:
    return ArrayCodec(ArrayMetadata(json.loads(document)))


def read_block(ref: ChunkRef, source: Source) -> Any:
    """The valid part of a chunk, decoded, in memory of its own. DeviceUnavailable where that cannot be."""
    if source.device != "cpu":
        _check_here(source.device)
    (chunk,), (generation,) = ref.chunks, ref.generations
    block = decode_chunk(source.locator, source.record, ref.array, chunk, generation)
    return block if source.device == "cpu" else _as_cupy(block)


def decode_chunk(locator: Locator, record: DatasetRecord, array: str, chunk: int, generation: int) -> NDArray[Any]:
    """The valid part of a chunk at a generation. ChunkCorrupt when sound bytes do not decode: they came damaged from the source."""
    metadata = record.array(array)
    codec = _codec(json.dumps(metadata.document))  # compact, which json writes five times as fast as indented
    found = read_chunk(locator, record, array, chunk, generation)
    block = decoded(codec, found.node, found.replica, found.data)
    extent = metadata.grid.extent(chunk)
    block = block[tuple(slice(size) for size in extent)]
    return block if block.flags.writeable else block.copy()
