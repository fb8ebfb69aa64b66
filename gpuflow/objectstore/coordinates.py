"""The coordinates of the dimension along which a dataset grows: they tell sources apart that look the same, and in what order they come."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuflow.datasets.growth import Axis
from gpuflow.objectstore.growing import Piece, Rows
from gpuflow.objectstore.sources.base import Source
from gpuflow.storage.disk import digest
from gpuflow.storage.record import DatasetRecord


def coordinates_of(record: DatasetRecord, axis: Axis, axes: Mapping[str, int]) -> list[str]:
    """Arrays of numbers of that one dimension, called as it is."""
    found = []
    for path in axes:
        metadata = record.array(path)
        numbers = metadata.dtype is not None and metadata.dtype.kind in "iuf"
        if numbers and len(metadata.shape) == 1 and path.rsplit("/", 1)[-1] == axis:
            found.append(path)
    return found


def identity_of(source: Source, coordinates: Mapping[str, NDArray[Any]]) -> str:
    """The source's, and what its coordinates are: content that the source itself does not look at."""
    if not coordinates:
        return source.identity()
    content = b"".join(digest(np.ascontiguousarray(values).tobytes()) for _, values in sorted(coordinates.items()))
    return f"{source.identity()} coordinates={digest(content).hex()}"


def source_values(piece: Piece, path: str) -> NDArray[Any]:
    """All of a small array of a source."""
    metadata = piece.arrays[path]
    whole = np.empty(metadata.shape, metadata.dtype)
    Rows().fill(piece, path, tuple(slice(0, size) for size in metadata.shape), whole)
    return whole
