"""The values of a coordinate: a small array of one dimension, read where its chunks lie."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuflow.datasets.catalog import Nodes
from gpuflow.errors import ChunkLost, GpuflowError
from gpuflow.storage.blocks import decoded
from gpuflow.storage.codecs import Block
from gpuflow.storage.node import NodeStore
from gpuflow.storage.record import DatasetRecord


def read_coordinate(nodes: Nodes, record: DatasetRecord, path: str) -> NDArray[Any]:
    """All values. ChunkLost when no node has all of them, sound."""
    metadata = record.array(path)
    newest: dict[int, tuple[int, Block]] = {}
    for held in nodes.each_node(_read, record.name, path).values():
        for chunk, (generation, values) in held.items():
            if chunk not in newest or generation > newest[chunk][0]:
                newest[chunk] = generation, values
    out = np.empty(metadata.shape, metadata.dtype)
    for chunk in range(metadata.grid.size):
        if chunk not in newest:
            raise ChunkLost(record.chunk_name(path, chunk), list(nodes.each_node(_id)))
        region = metadata.grid.region(chunk)
        out[region] = newest[chunk][1][tuple(slice(0, part.stop - part.start) for part in region)]
    return out


def _id(store: NodeStore) -> str:
    return store.node_id


def _read(store: NodeStore, dataset: str, path: str) -> dict[int, tuple[int, Block]]:
    """What this node has of it; a chunk that is damaged here may be sound elsewhere."""
    found, codec = dict[int, tuple[int, Block]](), store.codec(dataset, path)
    for chunk in store.manifest.replicas(dataset, path)["chunk"].tolist():
        try:
            replica, data = store.read(dataset, path, chunk)
            found[chunk] = replica.generation, np.array(decoded(codec, store.node_id, replica, data))
        except GpuflowError:
            continue
    return found
