"""Datasets laid straight into the stores of some nodes, without a cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuflow.grid import Grid
from gpuflow.storage.codecs import ArrayCodec
from gpuflow.storage.disk import digest
from gpuflow.storage.manifest import Replica
from gpuflow.storage.metadata import ArrayMetadata
from gpuflow.storage.node import NodeStore, Staged
from gpuflow.storage.record import DatasetRecord
from gpuflow.storage.roots import node_roots


def make_dataset(
    root: Path,
    name: str,
    arrays: Mapping[str, NDArray[Any]],
    *,
    chunks: Mapping[str, tuple[int, ...]],
    inner: Mapping[str, tuple[int, ...]] | None = None,
    compressor: str = "zstd",
    dims: Sequence[str] = ("time", "y", "x", "c"),
    nodes: int = 1,
    replicas: int = 1,
) -> list[str]:
    """The ids of the nodes below `root`. Chunk i lies on node i modulo their number, and on the `replicas` - 1 after it."""
    metadata = {
        path: ArrayMetadata.create(
            values.shape,
            chunks[path],
            values.dtype,
            dims=tuple(dims[: values.ndim]),
            compressor=compressor,
            inner_chunks=(inner or {}).get(path),
        )
        for path, values in arrays.items()
    }
    record = DatasetRecord(name, 1, "ready", {path: one.document for path, one in metadata.items()}, {"": {}})
    with ExitStack() as stack:
        stores = [
            stack.enter_context(closing(NodeStore(place, name=f"n{at}"))) for at, place in enumerate(node_roots(root, nodes))
        ]
        for store in stores:
            store.put_record(record)
        for path, values in arrays.items():
            codec, staged = ArrayCodec(metadata[path]), [list[Staged]() for _ in stores]
            for chunk in range(metadata[path].grid.size):
                data = bytes(codec.encode(np.ascontiguousarray(values[metadata[path].grid.region(chunk)])))
                replica = Replica(name, path, chunk, 1, len(data), digest(data), digest(b"made"), digest(b"of"))
                for copy in range(replicas):
                    at = (chunk + copy) % nodes
                    staged[at].append(stores[at].stage(replica, data, durable=False))
            for store, items in zip(stores, staged, strict=True):
                store.commit(items, durable=False)
        return [store.node_id for store in stores]


def change(root: Path, name: str, path: str, chunk: int, values: NDArray[Any]) -> None:
    """Commit another generation of a chunk, as an in-place pipeline does."""
    with closing(NodeStore(root, create=False)) as store:
        here = store.manifest.replica(name, path, chunk)
        assert here is not None
        codec = store.codec(name, path)
        block = np.ascontiguousarray(values, dtype=codec.metadata.dtype)
        data = bytes(codec.encode(block))
        replica = Replica(name, path, chunk, here.generation + 1, len(data), digest(data), digest(b"again"), digest(b"of"))
        store.commit([store.stage(replica, data, replaces=here.generation)])


def chunk_extent(shape: tuple[int, ...], chunks: tuple[int, ...], chunk: int) -> tuple[int, ...]:
    """Shape of the valid part of a chunk."""
    return Grid(shape, chunks).extent(chunk)


def numbered(count: int, *shape: int, dtype: str = "float32") -> NDArray[Any]:
    """Samples whose first value is their number, and whose others differ."""
    values = np.random.default_rng(3).integers(0, 200, (count, *shape)).astype(dtype)
    values.reshape(count, -1)[:, 0] = np.arange(count)
    return values
