"""The values of small arrays, such as coordinates, read where they lie and brought to whoever asks."""

from __future__ import annotations

from collections.abc import Sequence
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
"""Decoded, of what is looked at whole without anybody having asked for it."""

_Found = dict[int, tuple[int, NDArray[Any] | None, str]]
"""By chunk: (generation, its values; None and what is wrong with it)."""


def array_values(nodes: Nodes, record: DatasetRecord, array: str) -> NDArray[Any]:
    """All of an array, whose data type is of a fixed size. ChunkLost, ChunkCorrupt."""
    metadata = record.array(array)
    whole = np.empty(metadata.shape, metadata.dtype)
    for chunk, block in chunk_values(nodes, record, array, range(metadata.grid.size)).items():
        whole[metadata.grid.region(chunk)] = block
    return whole


def chunk_values(nodes: Nodes, record: DatasetRecord, array: str, chunks: Sequence[int]) -> dict[int, NDArray[Any]]:
    """The valid part of each of `chunks`, at its newest generation. ChunkLost, ChunkCorrupt when no node has that whole."""
    answers, found = nodes.each_node(_read, record.name, array, list(chunks)), dict[int, NDArray[Any]]()
    for chunk in chunks:
        told = [(node, answer[chunk]) for node, answer in answers.items() if chunk in answer]
        if not told:
            raise ChunkLost(record.chunk_name(array, chunk), sorted(answers))
        node, (_, values, reason) = max(told, key=lambda one: (one[1][0], one[1][1] is not None))
        if values is None:
            raise ChunkCorrupt(record.chunk_name(array, chunk), node, reason)
        found[chunk] = values[tuple(slice(size) for size in record.array(array).grid.extent(chunk))]
    return found


def _read(store: NodeStore, dataset: str, array: str, chunks: Sequence[int]) -> _Found:
    found: _Found = {}
    codec = ArrayCodec(store.record(dataset).array(array))
    for chunk, there in store.manifest.replicas_of(dataset, array, chunks).items():
        try:
            replica, data = store.read(dataset, array, chunk)
            found[chunk] = replica.generation, np.array(decoded(codec, store.node_id, replica, data)), ""
        except ChunkCorrupt as error:
            found[chunk] = there.generation, None, error.reason
        except ChunkLost:
            continue
    return found
