"""Which chunk a key of a dataset's Zarr hierarchy names.

Pure."""

from __future__ import annotations

from dataclasses import dataclass

from gpuflow.storage.record import DatasetRecord

METADATA = "zarr.json"


@dataclass(frozen=True, slots=True)
class Chunk:
    """Stored object number `linear` of an array."""

    array: str
    linear: int


def parse(record: DatasetRecord, key: str) -> Chunk | None:
    """None for the key of a `zarr.json`, and of what else lies in the hierarchy."""
    path, _, name = key.rpartition("/")
    if name == METADATA:
        return None
    while True:
        if path in record.arrays:
            linear = chunk_number(record, path, key[len(path) + 1 :] if path else key)
            return None if linear is None else Chunk(path, linear)
        if not path:
            return None
        path = path.rpartition("/")[0]


def chunk_number(record: DatasetRecord, array: str, text: str) -> int | None:
    """Number of the chunk with key `text`, relative to its array; None when it has no such chunk."""
    metadata = record.array(array)
    grid = metadata.grid
    prefix, separator = metadata.key_encoding
    parts = text.split(separator)
    if parts[: len(prefix)] != list(prefix):
        return None
    parts = parts[len(prefix) :]
    if not grid.counts:
        return 0 if text == metadata.key(0) else None
    if len(parts) != len(grid.counts) or not all(part.isascii() and part.isdecimal() for part in parts):
        return None
    index = tuple(map(int, parts))
    if any(position >= count for position, count in zip(index, grid.counts, strict=True)):
        return None
    linear = grid.ravel(index)
    return linear if metadata.key(linear) == text else None
