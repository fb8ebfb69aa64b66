"""A shard: inner chunks, each through a chain of its own, and an index of where they lie (Zarr v3 `sharding_indexed`).

Inner chunks that are contiguous slabs of the shard are decoded straight to where they belong, and without a compressor the shard is
read where it lies. Nothing that an index says is believed before it was compared with what there is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuflow.storage.buffers import Buffer
from gpuflow.storage.byte_codecs import Bytes, CodecError, Crc32c
from gpuflow.storage.chains import Block, Chain, UnknownCodec, name_of, parse_chain

ALIGNMENT = 16
"""Bytes to which frames are padded: what GPU decoders ask for (nvCOMP: at most 16)."""
ABSENT = 2**64 - 1
"""Offset and size of an inner chunk that is not stored, being all fill value."""

Part = tuple[slice, ...]
"""A box within a shard: one slice with start and stop per axis."""


@dataclass(frozen=True)
class Shard:
    """Shards of `shape`. inner: the chain of an inner chunk. index: that of the index, (inner chunk, offset or nbytes) uint64.
    at_start: whether the index comes first. fill_value: what an absent inner chunk stands for."""

    shape: tuple[int, ...]
    inner: Chain
    index: Chain
    at_start: bool
    fill_value: Any

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Inner chunks along each axis."""
        return tuple(size // part for size, part in zip(self.shape, self.inner.shape, strict=True))

    @cached_property
    def bound(self) -> int:
        """The most bytes that `encode` makes."""
        return prod(self.counts) * _aligned(self.inner.bound) + self.index.bound + ALIGNMENT

    @cached_property
    def is_slabs(self) -> bool:
        """Whether the inner chunks, one after the other, are the shard in C order."""
        cut = [axis for axis, count in enumerate(self.counts) if count > 1]
        return not cut or all(part == 1 for part in self.inner.shape[: cut[-1]])

    def view(self, data: Bytes) -> Block | None:
        """The shard over `data`, where its inner chunks are stored as they are and in order."""
        if self.inner.links or not self.inner.is_native or not self.is_slabs:
            return None
        frames = self._frames(data)
        nbytes, first = self.inner.nbytes, int(frames[0, 0])
        in_order = np.arange(first, first + len(frames) * nbytes, nbytes, dtype=np.uint64) if first != ABSENT else None
        if in_order is None or not np.array_equal(frames[:, 0], in_order) or not (frames[:, 1] == nbytes).all():
            return None
        return data[first : first + len(frames) * nbytes].view(self.inner.dtype).reshape(self.shape)

    def decode_into(self, data: Bytes, place: Block, scratch: Buffer, parts: Sequence[Part] | None = None) -> None:
        """Fill `place`, of the shard's shape and dtype, with whatever strides; where `parts` are given, only inner chunks that they touch.
        CodecError names the inner chunk that does not decode."""
        wanted = None if parts is None else self._touched(parts)
        for number, (part, (start, nbytes)) in enumerate(zip(self._parts(place), self._frames(data).tolist(), strict=True)):
            if wanted is not None and not wanted[number]:
                continue
            if start == ABSENT:
                part[...] = self.fill_value
                continue
            try:
                self.inner.decode_into(data[start : start + nbytes], part, scratch)
            except Exception as error:
                raise CodecError(f"inner chunk {number}: {error}") from error

    def _touched(self, parts: Sequence[Part]) -> NDArray[np.bool_]:
        """Which inner chunks have something of `parts`."""
        touched = np.zeros(self.counts, dtype=bool)
        for part in parts:
            boxes = zip(part, self.inner.shape, strict=True)
            touched[tuple(slice(axis.start // size, -(-axis.stop // size)) for axis, size in boxes)] = True
        return touched.reshape(-1)

    def place(self, encoded: Buffer) -> Block | None:
        """Where in `encoded` the block of a whole shard will lie, if it is stored as it is."""
        if not self._is_raw:
            return None
        begin, nbytes = self.begin, prod(self.counts) * self.inner.nbytes
        return encoded.bytes(self.bound)[begin : begin + nbytes].view(self.inner.dtype).reshape(self.shape)

    @cached_property
    def _is_raw(self) -> bool:
        """Whether inner chunks are stored as they are, one after the other."""
        return not self.inner.links and self.inner.is_native and self.is_slabs and not self.inner.nbytes % ALIGNMENT

    @cached_property
    def begin(self) -> int:
        """Where the first inner chunk lies."""
        return _aligned(self.index.bound) if self.at_start else 0

    def encode(self, block: Block, extent: tuple[int, ...], encoded: Buffer, scratch: Buffer) -> Bytes:
        """The shard that holds `block`, in `encoded`. Inner chunks wholly outside `extent`, the valid part of it, are left out."""
        memory, frames = encoded.bytes(self.bound), self.no_frames()
        begin = position = self.begin
        valid = self.within(extent)
        slabs = self._raw_slabs(block, valid)
        if slabs is not None:
            nbytes = self.inner.nbytes
            position += len(slabs)
            if slabs.ctypes.data != memory.ctypes.data + begin:  # else it was made in place
                memory[begin:position] = slabs
            frames[: len(valid), 0] = np.arange(begin, position, nbytes)
            frames[: len(valid), 1] = nbytes
        else:
            position = self._add_frames(block, set(valid.tolist()), frames, memory, position, scratch)
        return self.with_index(frames, memory, position)

    def no_frames(self) -> NDArray[np.uint64]:
        """(offset, nbytes) of each inner chunk, where none is stored."""
        return np.full((prod(self.counts), 2), ABSENT, dtype=np.uint64)

    def with_index(self, frames: NDArray[np.uint64], memory: Bytes, position: int) -> Bytes:
        """The shard in `memory`, whose frames lie there already, up to `position`."""
        index = np.frombuffer(self.index.encode(frames, Buffer()), dtype=np.uint8)
        end = position if self.at_start else position + len(index)
        place = memory[: self.begin] if self.at_start else memory[position:end]
        place[: len(index)] = index
        place[len(index) :] = 0
        return memory[:end]

    def _add_frames(
        self, block: Block, valid: set[int], frames: NDArray[np.uint64], memory: Bytes, position: int, scratch: Buffer
    ) -> int:
        """Encode the inner chunks, each from an aligned offset on; where the last one's padding ends."""
        for number, part in enumerate(self._parts(block)):
            if number in valid:
                frame = np.frombuffer(self.inner.encode(part, scratch), dtype=np.uint8)
                end = position + len(frame)
                memory[position:end] = frame
                frames[number] = position, len(frame)
                position = _aligned(end)
                memory[end:position] = 0
        return position

    def _raw_slabs(self, block: Block, valid: NDArray[np.intp]) -> Bytes | None:
        """The bytes of the valid inner chunks, where they are stored as they are and lie one after the other."""
        count = len(valid)
        if not self._is_raw or not block.flags.c_contiguous or not count or valid[-1] != count - 1:
            return None
        return block.reshape(-1).view(np.uint8)[: count * self.inner.nbytes]

    def within(self, extent: tuple[int, ...]) -> NDArray[np.intp]:
        """Inner chunks that have something of the valid part of a shard."""
        inside = np.zeros(self.counts, dtype=bool)
        inside[tuple(slice(0, -(-size // part)) for size, part in zip(extent, self.inner.shape, strict=True))] = True
        return np.flatnonzero(inside)

    def _parts(self, block: Block) -> Iterator[Block]:
        """The inner chunks of `block` in C order, as views."""
        if self.is_slabs and block.flags.c_contiguous:
            yield from block.reshape(-1, *self.inner.shape)
            return
        for place in product(*self._slices):
            yield block[place]

    @cached_property
    def _slices(self) -> list[list[slice]]:
        parts = zip(self.counts, self.inner.shape, strict=True)
        return [[slice(number * part, (number + 1) * part) for number in range(count)] for count, part in parts]

    def _frames(self, data: Bytes) -> NDArray[np.uint64]:
        return self.frames(data[slice(*self.index_place(len(data)))], len(data))

    def index_place(self, nbytes: int) -> tuple[int, int]:
        """From where to where the index lies in a shard of `nbytes`. CodecError when the shard is too short for it."""
        if nbytes < self.index.bound:
            raise CodecError(f"{nbytes} bytes, the index of a shard alone has {self.index.bound}")
        return (0, self.index.bound) if self.at_start else (nbytes - self.index.bound, nbytes)

    def frames(self, stored: Bytes, nbytes: int) -> NDArray[np.uint64]:
        """(offset, nbytes) of each inner chunk in C order: within the shard, of `nbytes`, beside the index and one another, or both
        `ABSENT`. stored: the index, as it lies in the shard."""
        index_nbytes = self.index.bound
        begin, end = (index_nbytes, nbytes) if self.at_start else (0, nbytes - index_nbytes)
        try:
            index: NDArray[np.uint64] = np.array(self.index.view(stored), dtype=np.uint64)
        except CodecError as error:
            raise CodecError(f"index of the shard: {error}") from error
        starts, sizes = index[:, 0], index[:, 1]
        absent = (starts == ABSENT) & (sizes == ABSENT)
        lies = ~absent & ((starts < begin) | (starts > end) | (sizes > np.uint64(end) - np.minimum(starts, np.uint64(end))))
        if lies.any():
            number = int(np.argmax(lies))
            where = f"{sizes[number]} bytes from {starts[number]} on, inner chunks lie from {begin} to {end}"
            raise CodecError(f"the index of the shard puts inner chunk {number} at {where}")
        self._check_apart(starts[~absent], sizes[~absent])
        return index

    @staticmethod
    def _check_apart(starts: NDArray[np.uint64], sizes: NDArray[np.uint64]) -> None:
        if (starts[1:] >= starts[:-1] + sizes[:-1]).all():
            return
        order = np.argsort(starts, kind="stable")
        starts, sizes = starts[order], sizes[order]
        if (starts[1:] < starts[:-1] + sizes[:-1]).any():
            raise CodecError("the index of the shard puts inner chunks over one another")


def parse_shard(configuration: Mapping[str, Any], shape: tuple[int, ...], dtype: np.dtype[Any], fill_value: Any) -> Shard:
    """From the configuration of `sharding_indexed`. UnknownCodec, or an error of its kind, when it is not one that is decoded here."""
    inner_shape = tuple(configuration["chunk_shape"])
    even = len(inner_shape) == len(shape) and not any(size % part for size, part in zip(shape, inner_shape, strict=True))
    if not even or any(part < 1 for part in inner_shape):
        raise UnknownCodec(f"inner chunks of {inner_shape} in a shard of {shape}")
    inner = parse_chain(configuration["codecs"], inner_shape, dtype)
    entries = prod(size // part for size, part in zip(shape, inner_shape, strict=True))
    index = parse_chain(configuration["index_codecs"], (entries, 2), np.dtype(np.uint64))
    location = configuration.get("index_location") or "end"
    first, *_ = configuration["index_codecs"]
    if name_of(first)[0] != "bytes" or not all(isinstance(link, Crc32c) for link in index.links):
        raise UnknownCodec("index_codecs")
    if location not in ("start", "end"):
        raise UnknownCodec(f"index at {location}")
    return Shard(shape, inner, index, location == "start", fill_value)


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
