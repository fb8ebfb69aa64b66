"""A dataset's array as a dask array: a block for each stored object, read and decoded where it lies.

Each task holds the reference to what it reads, by which the scheduler plugin routes it, also when Dask has fused it with others; and the
generation, so that all of them read the array as it was when it was opened."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import dask.array as da
import numpy as np
from dask.blockwise import BlockwiseDep, blockwise
from dask.highlevelgraph import HighLevelGraph
from numpy.typing import NDArray

from gpuflow.cluster.references import ChunkRef
from gpuflow.errors import ConfigError, DeviceUnavailable, Problem
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

    def __init__(self, dataset: str, array: str, grid: Grid, generations: NDArray[np.uint32], nbytes: int) -> None:
        self.numblocks = grid.counts
        self._dataset, self._array, self._grid, self._generations, self._nbytes = dataset, array, grid, generations, nbytes

    def __getitem__(self, index: tuple[int, ...]) -> ChunkRef:
        chunk = self._grid.ravel(index)
        return ChunkRef(self._dataset, self._array, (chunk,), (int(self._generations[chunk]),), self._nbytes)


def dask_array(view: View, array: str, device: str = "cpu") -> da.Array:
    """Array of the view with a block for each stored object. device: cpu, or cuda for CuPy blocks.

    ConfigError for a dtype without a fixed size: open it with zarr or xarray."""
    metadata = view.record.array(array)
    grid, dtype = metadata.grid, metadata.dtype
    if dtype is None:
        what = f"array {view.record.name}/{array} has dtype {metadata.document['data_type']}"
        raise ConfigError([Problem(what, hint="open it with xarray, or as a zarr array")])
    source = Source(view.locator, slim(view.record, array), device)
    refs = ChunkReferences(view.record.name, array, grid, view.generations(array), metadata.chunk_nbytes)
    name = f"read-{view.record.name}-{array.replace('/', '-')}-{da.core.tokenize(view.record.name, array, _token(view, array))}"
    axes = tuple(range(len(grid.shape)))
    if not axes:
        return da.from_delayed(_delayed(refs[()], source), (), dtype=dtype)
    layer = blockwise(read_block, name, axes, refs, axes, source, None, numblocks={}, _data_producer=True)
    chunks = tuple(_sizes(size, chunk) for size, chunk in zip(grid.shape, grid.chunks, strict=True))
    return da.Array(HighLevelGraph.from_collections(name, layer), name, chunks, dtype=dtype, meta=_meta(len(axes), dtype, device))


def _token(view: View, array: str) -> Any:
    """The same for the same content: another generation of a chunk is another graph."""
    return view.record.version, view.record.arrays[array], view.generations(array)


def _sizes(size: int, chunk: int) -> tuple[int, ...]:
    return tuple(min(chunk, size - start) for start in range(0, size, chunk)) or (0,)


def _meta(ndim: int, dtype: np.dtype[Any], device: str) -> Any:
    empty = np.empty((0,) * ndim, dtype)
    return empty if device == "cpu" else _on_device(empty, device)


def _on_device(block: NDArray[Any], device: str) -> Any:
    from gpuflow.backends.devices import why_no_cuda
    from gpuflow.backends.select import select_device

    if reason := why_no_cuda("cupy"):
        raise DeviceUnavailable(f"{device} cannot be used: {reason}", "use device: cpu")
    select_device(device)  # whether that one is there
    import cupy

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
    import json

    return ArrayCodec(ArrayMetadata(json.loads(document)))


def read_block(ref: ChunkRef, source: Source) -> Any:
    """The valid part of a chunk, decoded, in memory of its own."""
    (chunk,), (generation,) = ref.chunks, ref.generations
    block = decode_chunk(source.locator, source.record, ref.array, chunk, generation)
    return block if source.device == "cpu" else _on_device(block, source.device)


def decode_chunk(locator: Locator, record: DatasetRecord, array: str, chunk: int, generation: int) -> NDArray[Any]:
    """The valid part of a chunk at a generation. ChunkCorrupt when sound bytes do not decode: they came damaged from the source."""
    metadata = record.array(array)
    codec = _codec(metadata.to_json().decode())
    found = read_chunk(locator, record, array, chunk, generation)
    block = decoded(codec, found.node, found.replica, found.data)
    extent = metadata.grid.extent(chunk)
    block = block[tuple(slice(size) for size in extent)]
    return block if block.flags.writeable else block.copy()
