"""The compressed frames of a shard as one batch, for a device that decodes hundreds at once.

One copy of the shard as it is stored, one batch of its frames, and the inner chunks lie in memory one after the other. What no batch can
be made of is decoded by `codecs`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuflow.storage.byte_codecs import Bytes, CodecError
from gpuflow.storage.chains import name_of
from gpuflow.storage.codecs import ArrayCodec
from gpuflow.storage.metadata import ArrayMetadata
from gpuflow.storage.shards import ABSENT, ALIGNMENT, Shard

_LARGEST_NBYTES = 2**20
"""Of a decoded frame: one is decoded by one group of a device's threads, so that a few large ones leave it idle (nvCOMP advises 64 KiB)."""

LZ4_HEADER_NBYTES = 4
"""numcodecs puts the decoded size, little-endian, before the raw block."""


@dataclass(frozen=True, eq=False)
class Frames:
    """Frames of one shard. codec: zstd, lz4 or gzip. offsets, sizes: of each in the shard, in bytes, without what numcodecs adds. numbers:
    which inner chunk each is; those that are missing are of fill value. nbytes: decoded, of each."""

    codec: str
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    numbers: NDArray[np.int64]
    nbytes: int
    shard: Shard

    @property
    def count(self) -> int:
        """Inner chunks of the shard."""
        return int(np.prod(self.shard.counts, dtype=np.int64))

    @property
    def places(self) -> list[tuple[int, int, int]]:
        """(offset in the shard, bytes there, offset among the decoded inner chunks) of each frame."""
        return list(zip(self.offsets.tolist(), self.sizes.tolist(), (self.numbers * self.nbytes).tolist(), strict=True))

    def arrange(self, decoded: Any) -> Any:
        """The shard's block out of `count * nbytes` decoded bytes, an array of NumPy or CuPy; over them where inner chunks are slabs."""
        inner = self.shard.inner
        chunks = decoded.view(inner.dtype).reshape(self.count, *inner.shape)
        if len(self.numbers) < self.count:
            chunks[np.setdiff1d(np.arange(self.count), self.numbers)] = self.shard.fill_value
        if self.shard.is_slabs:
            return chunks.reshape(self.shard.shape)
        ndim = len(inner.shape)
        turned = [axis + half for axis in range(ndim) for half in (0, ndim)]
        return chunks.reshape(*self.shard.counts, *inner.shape).transpose(turned).reshape(self.shard.shape)


_ALIGNMENT = {"zstd": 8, "lz4": 4, "gzip": 16}
"""Bytes at whose multiples nvCOMP reads a frame. Our shards have it; other writers may not pad."""


def batching(codec: ArrayCodec) -> Callable[[Bytes], Frames | None] | None:
    """What makes batches of an array's stored shards; None where no device can decode them, see `is_fit`."""
    if not is_fit(codec):
        return None
    shard, name = codec.shard, compressor_of(codec.metadata)
    assert shard is not None
    return lambda data: frames_of(name, shard, data)


def is_fit(codec: ArrayCodec) -> bool:
    """Whether stored objects are shards of inner chunks that a device can do: small, in this machine's byte order, and compressed by one
    codec that it has."""
    shard = codec.shard
    if shard is None or len(shard.inner.links) != 1 or not shard.inner.is_native or shard.inner.nbytes > _LARGEST_NBYTES:
        return False
    # Decoders write to aligned memory only.
    return not shard.inner.nbytes % ALIGNMENT and compressor_of(codec.metadata) in _ALIGNMENT


def compressor_of(metadata: ArrayMetadata) -> str:
    """The name of what inner chunks are compressed by, as in `COMPRESSORS`. Of an array that is stored in shards."""
    return name_of(compression_of(metadata))[0].removeprefix("numcodecs.")


def compression_of(metadata: ArrayMetadata) -> Any:
    """The last codec of inner chunks, as the document has it."""
    ((_, configuration),) = [name_of(one) for one in metadata.document["codecs"]]
    return configuration["codecs"][-1]


def frames_of(codec: str, shard: Shard, data: Bytes) -> Frames | None:
    """Of one stored shard; None where a frame lies at an offset that a device cannot read from. CodecError when its index lies, or an LZ4
    frame says that it is of another size."""
    index = shard.frames(data[slice(*shard.index_place(len(data)))], len(data))
    numbers = np.flatnonzero(index[:, 0] != ABSENT)
    offsets, sizes = (index[numbers, column].astype(np.int64) for column in (0, 1))
    nbytes = shard.inner.nbytes
    if codec == "lz4" and len(numbers):
        if (sizes <= LZ4_HEADER_NBYTES).any():
            raise CodecError(f"inner chunk {numbers[np.argmin(sizes)]}: an LZ4 frame of {sizes.min()} bytes")
        heads = data[offsets[:, None] + np.arange(LZ4_HEADER_NBYTES)]
        told = np.ascontiguousarray(heads).view("<u4").reshape(-1)
        if (told != nbytes).any():
            wrong = int(np.argmax(told != nbytes))
            raise CodecError(f"inner chunk {numbers[wrong]}: a frame decodes to {told[wrong]} bytes, not {nbytes}")
        offsets, sizes = offsets + LZ4_HEADER_NBYTES, sizes - LZ4_HEADER_NBYTES
    if (offsets % _ALIGNMENT[codec]).any():
        return None
    return Frames(codec, offsets, sizes, numbers, nbytes, shard)
