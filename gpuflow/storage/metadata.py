"""One array's `zarr.json`, read once: shape, stored-object grid, dtype, keys, codec chain.

Follows the Zarr v3 core specification. The document itself is kept verbatim: what gpuflow does not understand is not lost."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from gpuflow.errors import ConfigError, Problem
from gpuflow.grid import Grid

_INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
_DTYPES = ("bool", *_INTEGERS, "float16", "float32", "float64", "complex64", "complex128")


@dataclass(frozen=True)
class ArrayMetadata:
    """`document` is the content of the array's `zarr.json` (zarr_format 3, node_type array)."""

    document: Mapping[str, Any]

    @classmethod
    def create(
        cls,
        shape: tuple[int, ...],
        chunks: tuple[int, ...],
        dtype: np.dtype[Any],
        *,
        dims: tuple[str | None, ...] | None = None,
        compressor: str = "zstd",
        inner_chunks: tuple[int, ...] | None = None,
        attributes: Mapping[str, Any] | None = None,
    ) -> ArrayMetadata:
        """Little-endian bytes, then `compressor` (a key of `COMPRESSORS`); fill value zero. inner_chunks: their shape, which divides
        `chunks`; each stored object is then a shard. Not when it is None, or `chunks` itself."""
        if dtype.name not in _DTYPES:
            raise ConfigError([Problem(f"dtype {dtype} cannot be stored", hint=f"cast to one of {', '.join(_DTYPES)}")])
        codecs = [_BYTES, *COMPRESSORS[compressor]]
        document: dict[str, Any] = {
            "zarr_format": 3,
            "node_type": "array",
            "shape": list(shape),
            "data_type": dtype.name,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunks)}},
            "chunk_key_encoding": FLAT_KEYS,
            "fill_value": {"b": False, "c": [0.0, 0.0]}.get(dtype.kind, 0),
            "codecs": codecs if inner_chunks in (None, chunks) else [_sharding(inner_chunks, codecs)],
            "attributes": dict(attributes or {}),
            "storage_transformers": [],
        }
        if dims is not None and any(name is not None for name in dims):
            document["dimension_names"] = list(dims)
        return cls(document)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.document["shape"])

    @cached_property
    def grid(self) -> Grid:
        """Grid of stored objects: shards where the array is sharded."""
        return Grid(self.shape, tuple(self.document["chunk_grid"]["configuration"]["chunk_shape"]))

    @cached_property
    def dtype(self) -> np.dtype[Any] | None:
        """The NumPy dtype, native byte order; None for one that has no fixed size in NumPy (such as `string`)."""
        name = self.document["data_type"]
        return np.dtype(name) if isinstance(name, str) and name in _DTYPES else None

    @property
    def dims(self) -> tuple[str | None, ...]:
        """Dimension names, None for a dimension without one."""
        return tuple(self.document.get("dimension_names") or (None,) * len(self.shape))

    @property
    def attributes(self) -> Mapping[str, Any]:
        return self.document.get("attributes") or {}

    @cached_property
    def chunk_nbytes(self) -> int:
        """Decoded bytes of one whole stored object; 0 when the dtype has no fixed size."""
        return int(np.prod(self.grid.chunks, dtype=np.int64)) * self.dtype.itemsize if self.dtype is not None else 0

    def key(self, linear: int) -> str:
        """Zarr key of stored object number `linear`, relative to the array: `c.0.1` or `c/0/1`, or `0.1` in the v2 encoding."""
        prefix, separator = self.key_encoding
        index = self.grid.unravel(linear)
        return separator.join([*prefix, *map(str, index)]) or "0"

    @cached_property
    def key_encoding(self) -> tuple[tuple[str, ...], str]:
        """What stands before the index, and between everything."""
        encoding = self.document["chunk_key_encoding"]
        configuration = encoding.get("configuration") or {}
        if encoding["name"] == "v2":
            return (), str(configuration.get("separator", "."))
        return ("c",), str(configuration.get("separator", "/"))

    def to_json(self) -> bytes:
        """The document as it is laid on disk."""
        return json.dumps(self.document, indent=2).encode()


FLAT_KEYS: dict[str, Any] = {"name": "default", "configuration": {"separator": "."}}
"""Chunks lie side by side in their array's folder: one of its own would have to be made, and fsynced, with each."""

_BYTES: dict[str, Any] = {"name": "bytes", "configuration": {"endian": "little"}}


def _sharding(inner_chunks: Sequence[int], codecs: list[dict[str, Any]]) -> dict[str, Any]:
    """The codec as zarr-python's `create_array(shards=...)` writes it. Inner chunks are read one by one, when the digest of the whole
    object is of no use: zstd frames carry a checksum of their own, which costs 1% of the encoding."""
    configuration = {
        "chunk_shape": list(inner_chunks),
        "codecs": [checked(codec) for codec in codecs],
        "index_codecs": [_BYTES, {"name": "crc32c"}],
        "index_location": "end",
    }
    return {"name": "sharding_indexed", "configuration": configuration}


def checked(codec: Mapping[str, Any]) -> dict[str, Any]:
    """A codec of `COMPRESSORS` as inner chunks have it."""
    return {**codec} if codec["name"] != "zstd" else {**codec, "configuration": {**codec["configuration"], "checksum": True}}


COMPRESSORS: dict[str, list[dict[str, Any]]] = {
    "none": [],
    "zstd": [{"name": "zstd", "configuration": {"level": 1, "checksum": False}}],
    "gzip": [{"name": "gzip", "configuration": {"level": 5}}],
    "blosc": [
        {
            "name": "blosc",
            "configuration": {"typesize": 1, "cname": "lz4", "clevel": 5, "shuffle": "noshuffle", "blocksize": 0},
        }
    ],
    "lz4": [{"name": "numcodecs.lz4", "configuration": {"acceleration": 1}}],
}
"""Output compressors by name, as Zarr v3 codecs. zstd level 1: the rate that keeps up with a disk (research: 0.9-1.8 GB/s)."""
