"""How a block that lies on a device becomes a stored shard: its inner chunks compressed there as one batch, and only the frames copied
back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuflow.storage.buffers import Buffer
from gpuflow.storage.byte_codecs import Bytes
from gpuflow.storage.codecs import ArrayCodec
from gpuflow.storage.frames import LZ4_HEADER_NBYTES, compression_of, compressor_of, is_fit
from gpuflow.storage.metadata import COMPRESSORS, checked
from gpuflow.storage.shards import ALIGNMENT, Shard

_ENCODED = ("zstd", "lz4")
"""Codecs whose frames nvCOMP makes as others read them; without a checksum of their own."""


@dataclass(frozen=True)
class Framing:
    """Of blocks of `extent`: the valid part of a shard. codec: zstd or lz4. All inner chunks that hold something of it are stored."""

    codec: str
    shard: Shard
    extent: tuple[int, ...]

    @cached_property
    def numbers(self) -> NDArray[np.intp]:
        """Which inner chunks are stored."""
        return self.shard.within(self.extent)

    @property
    def count(self) -> int:
        """How many they are."""
        return len(self.numbers)

    @property
    def nbytes(self) -> int:
        """Of each, before it is encoded."""
        return self.shard.inner.nbytes

    @property
    def lead_nbytes(self) -> int:
        """Left free before what the encoder makes of an inner chunk; the frame begins in it where numcodecs adds something of its own."""
        return ALIGNMENT if self.codec == "lz4" else 0

    @property
    def _added_nbytes(self) -> int:
        return LZ4_HEADER_NBYTES if self.codec == "lz4" else 0

    def split(self, array: Any, xp: Any) -> Any:
        """The inner chunks that are stored, one after the other, as bytes. array: of NumPy or CuPy, which is `xp`."""
        shard = self.shard
        if array.shape != shard.shape:
            whole = xp.full(shard.shape, shard.fill_value, shard.inner.dtype)
            whole[tuple(slice(0, size) for size in array.shape)] = array
            array = whole
        ndim = len(shard.shape)
        parts = [size for pair in zip(shard.counts, shard.inner.shape, strict=True) for size in pair]
        turned = [*range(0, 2 * ndim, 2), *range(1, 2 * ndim, 2)]
        chunks = array.reshape(parts).transpose(turned).reshape(-1, *shard.inner.shape)
        if self.count < len(chunks):
            chunks = chunks[xp.asarray(self.numbers)]
        return xp.ascontiguousarray(chunks).reshape(-1).view(np.uint8)

    def pack(self, room: Any, sizes: NDArray[np.int64], xp: Any) -> Any:
        """Frames, each from an aligned offset on, out of the rows of `room`, (count, bytes of the longest) uint8, in which each has
        `lead_nbytes` and then so many bytes of its own."""
        units = room.reshape(self.count, -1, ALIGNMENT)
        taken = xp.asarray(self._units(sizes))
        return units[xp.arange(units.shape[1])[None, :] < taken[:, None]].reshape(-1)

    def _units(self, sizes: NDArray[np.int64]) -> NDArray[np.int64]:
        return -(-(self.lead_nbytes + sizes) // ALIGNMENT)

    def place(self, sizes: NDArray[np.int64], encoded: Buffer) -> Bytes:
        """Where in `encoded` the frames are to lie that `pack` gives."""
        begin, nbytes = self.shard.begin, int(self._units(sizes).sum()) * ALIGNMENT
        return encoded.bytes(begin + nbytes + self.shard.index.bound)[begin : begin + nbytes]

    def finish(self, sizes: NDArray[np.int64], encoded: Buffer) -> Bytes:
        """The shard, when its frames are there."""
        memory = self.place(sizes, encoded)
        ends = np.cumsum(self._units(sizes) * ALIGNMENT)
        starts = ends - self._units(sizes) * ALIGNMENT
        for start, size, end in zip(starts.tolist(), sizes.tolist(), ends.tolist(), strict=True):
            memory[start + self.lead_nbytes + size : end] = 0  # what the encoder left there
        if self.codec == "lz4":
            lead = np.zeros(self.lead_nbytes, np.uint8)
            lead[-LZ4_HEADER_NBYTES:] = np.frombuffer(np.uint32(self.nbytes).astype("<u4").tobytes(), np.uint8)
            memory[starts[:, None] + np.arange(self.lead_nbytes)] = lead
        frames = self.shard.no_frames()
        frames[self.numbers, 0] = self.shard.begin + starts + self.lead_nbytes - self._added_nbytes
        frames[self.numbers, 1] = sizes + self._added_nbytes
        end = self.shard.begin + len(memory)
        return self.shard.with_index(frames, encoded.bytes(end + self.shard.index.bound), end)


def framing(codec: ArrayCodec) -> Callable[[tuple[int, ...]], Framing] | None:
    """What makes stored shards of an array's blocks, given the extent of one; None where a device cannot make them: see `frames.batching`.
    It has one level of compression, so another than our own is left to the CPU."""
    if not is_fit(codec):
        return None
    shard, name = codec.shard, compressor_of(codec.metadata)
    assert shard is not None
    usual = name in _ENCODED and compression_of(codec.metadata) in (COMPRESSORS[name][0], checked(COMPRESSORS[name][0]))
    return (lambda extent: Framing(name, shard, extent)) if usual else None
