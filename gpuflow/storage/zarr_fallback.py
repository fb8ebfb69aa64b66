"""Stored objects through zarr-python itself: slow, and right for every chain that it knows."""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from gpuflow.storage.chains import Block
from gpuflow.storage.metadata import ArrayMetadata


def decode(metadata: ArrayMetadata, data: Any) -> Block:
    """A whole chunk."""
    from zarr.core.buffer import default_buffer_prototype

    array, objects = _one_chunk_array(metadata)
    objects[_only_key(metadata)] = default_buffer_prototype().buffer.from_bytes(bytes(data))
    return np.asarray(array[...])


def encode(metadata: ArrayMetadata, block: Block) -> bytes:
    """The stored object that is `block`, a whole chunk."""
    array, objects = _one_chunk_array(metadata)
    array[...] = block
    return cast(bytes, objects[_only_key(metadata)].to_bytes())


def _one_chunk_array(metadata: ArrayMetadata) -> tuple[Any, dict[str, Any]]:
    """A zarr array that is exactly one stored object of this array, over a dict."""
    import zarr
    from zarr.core.buffer import default_buffer_prototype
    from zarr.storage import MemoryStore

    document = {**metadata.document, "shape": list(metadata.grid.chunks), "attributes": {}}
    document["chunk_key_encoding"] = {"name": "default", "configuration": {"separator": "/"}}
    objects: dict[str, Any] = {"zarr.json": default_buffer_prototype().buffer.from_bytes(ArrayMetadata(document).to_json())}
    # An all-fill chunk must still become bytes: gpuflow stores what it computed.
    array = zarr.open_array(MemoryStore(objects), mode="r+").with_config({"write_empty_chunks": True})
    return array, objects


def _only_key(metadata: ArrayMetadata) -> str:
    return "/".join(["c", *("0" for _ in metadata.grid.chunks)])
