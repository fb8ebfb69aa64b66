"""Encoded bytes of one stored object <-> NumPy block.

The common chains (bytes, then zstd, gzip, blosc, crc32c) go straight through numcodecs: 24 us a small chunk against 573 us in
zarr-python. Every other chain (sharding, transpose, third-party codecs) goes through zarr-python itself: slow, and right."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal, cast

import numcodecs
import numpy as np
from numpy.typing import NDArray

from gpuflow.storage.buffers import Buffer
from gpuflow.storage.byte_codecs import BYTE_CODECS, ByteCodec, CodecError
from gpuflow.storage.metadata import ArrayMetadata

__all__ = ["ArrayCodec", "Block", "CodecError"]

Block = NDArray[Any]
_ByteOrder = Literal["<", ">"]


class ArrayCodec:
    """Encodes and decodes the stored objects of one array. Thread-safe."""

    def __init__(self, metadata: ArrayMetadata) -> None:
        self.metadata = metadata
        self._chain = _fast_chain(metadata)

    @property
    def is_fast(self) -> bool:
        """Whether this chain is ours; otherwise zarr-python does it."""
        return self._chain is not None

    @cached_property
    def fill_value(self) -> Any:
        """The array's fill value as a NumPy scalar."""
        value = self.metadata.document["fill_value"]
        if self.metadata.dtype is not None and isinstance(value, int | float):
            return self.metadata.dtype.type(value)
        from zarr.dtype import parse_dtype  # knows the other forms: "NaN", hexadecimal bits, pairs

        return parse_dtype(self.metadata.document["data_type"], zarr_format=3).from_json_scalar(value, zarr_format=3)

    def filled(self) -> Block:
        """A whole chunk of fill value, which is what a chunk that is absent in a Zarr array stands for."""
        return np.full(self.metadata.grid.chunks, self.fill_value, dtype=self.metadata.dtype)

    def decode(self, data: Any, into: Buffer | None = None) -> Block:
        """A whole chunk, ragged edge included: over `data` itself where nothing has to be done to it, else in the buffer where there is
        one and the codec can, else in memory of its own. CodecError when the bytes do not decode to exactly one chunk."""
        if not len(data):
            raise CodecError("no bytes")  # zarr takes an empty shard for one of fill value
        try:
            return self._decode_fast(data, into) if self._chain is not None else self._decode_zarr(data)
        except CodecError:
            raise
        except Exception as error:  # every library has errors of its own for bad bytes
            raise CodecError(f"{type(error).__name__}: {error}") from error

    def encode(self, block: Block, whole: Buffer | None = None) -> bytes | memoryview[int]:
        """Encoded bytes of `block`: a whole chunk, or the valid part of one at the edge, which is padded with fill value.

        The result may be a view of `block`, or of the buffer `whole`, in which a ragged one is padded. CodecError for another dtype,
        and for a block that does not fit into a chunk."""
        chunks = self.metadata.grid.chunks
        if block.dtype != self.metadata.dtype:
            raise CodecError(f"block has dtype {block.dtype}, the array {self.metadata.dtype}")
        if block.ndim != len(chunks) or any(size > chunk for size, chunk in zip(block.shape, chunks, strict=True)):
            raise CodecError(f"block has shape {block.shape}, a chunk {chunks}")
        if block.shape != chunks:
            block = self._padded(block, whole)
        if self._chain is None:
            return self._encode_zarr(block)
        endian, codecs = self._chain
        data: Any = np.ascontiguousarray(block).astype(block.dtype.newbyteorder(endian), copy=False).reshape(-1).view(np.uint8)
        for codec in codecs:
            data = codec.encode(data)
        return memoryview(data)

    def _padded(self, block: Block, buffer: Buffer | None) -> Block:
        whole = (
            np.empty(self.metadata.grid.chunks, block.dtype)
            if buffer is None
            else buffer.array(self.metadata.grid.chunks, block.dtype)
        )
        whole[...] = self.fill_value
        whole[tuple(slice(0, size) for size in block.shape)] = block
        return whole

    def _decode_fast(self, data: Any, into: Buffer | None) -> Block:
        endian, codecs = cast(tuple[_ByteOrder, list[ByteCodec]], self._chain)
        for number, codec in reversed(list(enumerate(codecs))):
            data = codec.decode(data, None if into is None or number else into.bytes(self.metadata.chunk_nbytes))
        dtype = cast("np.dtype[Any]", self.metadata.dtype)
        if len(memoryview(data).cast("B")) != self.metadata.chunk_nbytes:
            raise CodecError(f"decodes to {len(memoryview(data).cast('B'))} bytes, a chunk has {self.metadata.chunk_nbytes}")
        block = np.frombuffer(data, dtype=dtype.newbyteorder(endian)).reshape(self.metadata.grid.chunks)
        return block.astype(dtype, copy=False)

    def _one_chunk_array(self) -> tuple[Any, dict[str, Any]]:
        """A zarr array that is exactly one stored object of this array, over a dict."""
        import zarr
        from zarr.core.buffer import default_buffer_prototype
        from zarr.storage import MemoryStore

        chunks = list(self.metadata.grid.chunks)
        document = {**self.metadata.document, "shape": chunks, "attributes": {}}
        document["chunk_key_encoding"] = {"name": "default", "configuration": {"separator": "/"}}
        objects: dict[str, Any] = {"zarr.json": default_buffer_prototype().buffer.from_bytes(ArrayMetadata(document).to_json())}
        # An all-fill chunk must still become bytes: gpuflow stores what it computed.
        array = zarr.open_array(MemoryStore(objects), mode="r+").with_config({"write_empty_chunks": True})
        return array, objects

    @property
    def _only_key(self) -> str:
        return "/".join(["c", *("0" for _ in self.metadata.grid.chunks)])

    def _decode_zarr(self, data: bytes | memoryview) -> Block:
        from zarr.core.buffer import default_buffer_prototype

        array, objects = self._one_chunk_array()
        objects[self._only_key] = default_buffer_prototype().buffer.from_bytes(bytes(data))
        return np.asarray(array[...])

    def _encode_zarr(self, block: Block) -> bytes:
        array, objects = self._one_chunk_array()
        array[...] = block
        return cast(bytes, objects[self._only_key].to_bytes())


def _fast_chain(metadata: ArrayMetadata) -> tuple[_ByteOrder, list[ByteCodec]] | None:
    """(byte order, bytes-to-bytes codecs) when the chain is one that numcodecs does alone."""
    first, *rest = metadata.document["codecs"]
    if first["name"] != "bytes" or metadata.dtype is None or any(codec["name"] not in BYTE_CODECS for codec in rest):
        return None
    endian = (first.get("configuration") or {}).get("endian") or "little"
    try:
        return ("<" if endian == "little" else ">"), [BYTE_CODECS[c["name"]](c.get("configuration") or {}) for c in rest]
    except (KeyError, TypeError, ValueError):
        return None


numcodecs.blosc.use_threads = False  # one lane thread a chunk; blosc's own pool is global and locks
