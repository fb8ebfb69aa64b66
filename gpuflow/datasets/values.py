"""The values of a few chunks of small arrays, such as coordinates, read where they lie and brought to whoever asks."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuflow.datasets.catalog import Nodes
from gpuflow.errors import ChunkCorrupt, ChunkLost
from gpuflow.storage.blocks import decoded
from gpuflow.storage.codecs import ArrayCodec
from gpuflow.storage.node import NodeStore
from gpuflow.storage.record import DatasetRecord

MOST_NBYTES = 16 * 2**20
"""Decoded, of what is looked at whole."""

_Found = dict[int, tuple[int, Any]]
"""By chunk: (generation, its values), or (-1, what is wrong with it)."""


def array_values(nodes: Nodes, record: DatasetRecord, array: str) -> NDArray[Any] | None:
    """All of an array; None for one that is too large, or of a data type of no fixed size. ChunkLost, ChunkCorrupt."""
    metadata = record.array(array)
    if metadata.dtype is None or prod(metadata.shape) * metadata.dtype.itemsize > MOST_NBYTES:
        return None
    whole = np.empty(metadata.shape, metadata.dtype)
    for chunk, block in chunk_values(nodes, record, array, range(metadata.grid.size)).items():
        whole[metadata.grid.region(chunk)] = block
    return whole


def chunk_values(nodes: Nodes, record: DatasetRecord, array: str, chunks: Sequence[int]) -> dict[int, NDArray[Any]]:
    """The valid part of each of `chunks`. ChunkLost, ChunkCorrupt when no node has one whole."""
    answers, found = nodes.each_node(_read, record.name, array, list(chunks)), dict[int, NDArray[Any]]()
    for chunk in chunks:
        told = [(node, *answer[chunk]) for node, answer in answers.items() if chunk in answer]
        if not told:
            raise ChunkLost(record.chunk_name(array, chunk), sorted(answers))
        node, generation, value = max(told, key=lambda one: one[1])
        if generation < 0:
            raise ChunkCorrupt(record.chunk_name(array, chunk), node, str(value))
        found[chunk] = value[tuple(slice(size) for size in record.array(array).grid.extent(chunk))]
    return found


def _read(store: NodeStore, dataset: str, array: str, chunks: Sequence[int]) -> _Found:
    found: _Found = {}
    codec = ArrayCodec(store.record(dataset).array(array))
    for chunk in store.manifest.replicas_of(dataset, array, chunks):
        try:
            replica, data = store.read(dataset, array, chunk)
            found[chunk] = replica.generation, np.array(decoded(codec, store.node_id, replica, data))
        except ChunkCorrupt as error:
            found[chunk] = -1, error.reason
        except ChunkLost:
            continue
    return found
