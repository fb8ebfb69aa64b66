"""One chunk through its chain of codecs: transposes, `bytes`, then bytes to bytes.

A chain decodes into the place where the chunk belongs, which may be a strided part of something larger; what has to be copied to get
there passes through memory that the caller lends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuflow.storage.buffers import Buffer
from gpuflow.storage.byte_codecs import BYTE_CODECS, ByteCodec, Bytes, CodecError, Crc32c

Block = NDArray[Any]
_SLACK_NBYTES = 2**16


class UnknownCodec(ValueError):
    """This chain is not one that is decoded here."""


@dataclass(frozen=True)
class Chain:
    """Codecs of a chunk of `shape`. dtype: in native byte order. order: its axes as they are stored. stored: dtype with the stored byte
    order. links: bytes-to-bytes codecs, in the order of encoding."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    order: tuple[int, ...]
    stored: np.dtype[Any]
    links: tuple[ByteCodec, ...]

    @cached_property
    def nbytes(self) -> int:
        """Decoded bytes of a chunk."""
        return prod(self.shape) * self.dtype.itemsize

    @cached_property
    def stored_shape(self) -> tuple[int, ...]:
        """Shape after the transposes."""
        return tuple(self.shape[axis] for axis in self.order)

    @cached_property
    def is_native(self) -> bool:
        """Whether the stored bytes, decompressed, are a C-contiguous block as it lies in memory."""
        return self.order == tuple(range(len(self.order))) and self.stored == self.dtype

    @cached_property
    def bound(self) -> int:
        """The most bytes that `encode` makes."""
        nbytes = self.nbytes
        for link in self.links:
            nbytes = link.bound(nbytes)
        return nbytes

    @cached_property
    def _packed(self) -> ByteCodec | None:
        """The first link, if it does more than append a checksum."""
        return self.links[0] if self.links and not isinstance(self.links[0], Crc32c) else None

    @cached_property
    def _outer(self) -> tuple[tuple[ByteCodec, int], ...]:
        """The other links in the order of decoding, and how many bytes may come out of each: other writers may need some more."""
        found, nbytes = [], self.nbytes
        for link in self.links:
            if link is not self._packed:
                found.append((link, 2 * nbytes + _SLACK_NBYTES))
            nbytes = link.bound(nbytes)
        return tuple(reversed(found))

    def is_checked(self, data: Bytes) -> bool:
        """Whether an encoded chunk, or what is in it, carries a checksum that decoding compares: a flipped bit is then an error."""
        return bool(self.links) and self.links[-1].is_checked(data)

    def view(self, data: Bytes) -> Block | None:
        """The chunk over `data`, in any byte order and order of axes; None where it has to be decompressed."""
        return self._over(self._unwrapped(data)) if self._packed is None else None

    def decode_into(self, data: Bytes, place: Block, scratch: Buffer) -> None:
        """Fill `place`, of the chunk's shape and dtype, with whatever strides. CodecError when `data` does not decode to it exactly."""
        data = self._unwrapped(data)
        if self._packed is None:
            place[...] = self._over(data)
        elif self.is_native and place.flags.c_contiguous:
            self._packed.decode_into(data, place.reshape(-1).view(np.uint8))
        else:
            memory = scratch.bytes(self.nbytes)
            self._packed.decode_into(data, memory)
            place[...] = self._over(memory)

    def encode(self, block: Block, scratch: Buffer) -> Any:
        """The encoded bytes of `block`, of the chunk's shape and dtype with whatever strides: a view of it where nothing is to be done,
        or of `scratch`, else of memory of the codec's."""
        data: Any = self._flat(block, scratch)
        for link in self.links:
            data = link.encode(data)
        return data

    def _flat(self, block: Block, scratch: Buffer) -> Bytes:
        stored = block if self._inverse is None else block.transpose(self.order)
        if self.stored != self.dtype or not stored.flags.c_contiguous:
            copied = scratch.array(stored.shape, self.stored)
            copied[...] = stored
            stored = copied
        return stored.reshape(-1).view(np.uint8)

    def _unwrapped(self, data: Bytes) -> Bytes:
        for link, limit in self._outer:
            data = link.decode(data, limit)
        return data

    def _over(self, data: Bytes) -> Block:
        if len(data) != self.nbytes:
            raise CodecError(f"decodes to {len(data)} bytes, a chunk has {self.nbytes}")
        block = data.view(self.stored).reshape(self.stored_shape)
        return block if self._inverse is None else block.transpose(self._inverse)

    @cached_property
    def _inverse(self) -> tuple[int, ...] | None:
        """The order that undoes the transposes; None when there are none."""
        return None if self.order == tuple(range(len(self.order))) else tuple(np.argsort(self.order).tolist())


def parse_chain(codecs: Sequence[Any], shape: tuple[int, ...], dtype: np.dtype[Any]) -> Chain:
    """The chain that `codecs`, as they stand in `zarr.json`, make for chunks of `shape`. UnknownCodec when it is none of ours."""
    order, (first, *rest) = parse_transposes(codecs, len(shape))
    name, configuration = name_of(first)
    endian = configuration.get("endian") or "little"
    if name != "bytes" or endian not in ("little", "big"):
        raise UnknownCodec(name)
    stored = dtype.newbyteorder("<" if endian == "little" else ">")
    return Chain(shape, dtype, order, stored, parse_links(rest))


def parse_transposes(codecs: Sequence[Any], ndim: int) -> tuple[tuple[int, ...], Sequence[Any]]:
    """The order of axes that the leading transposes lead to, and the codecs after them, at least one."""
    order = tuple(range(ndim))
    for number, codec in enumerate(codecs):
        name, configuration = name_of(codec)
        if name != "transpose":
            return order, codecs[number:]
        axes = configuration.get("order")
        if not isinstance(axes, list | tuple) or sorted(axes) != list(range(ndim)):
            raise UnknownCodec(f"transpose to {axes}")
        order = tuple(order[axis] for axis in axes)
    raise UnknownCodec("no codec makes bytes")


def parse_links(codecs: Sequence[Any]) -> tuple[ByteCodec, ...]:
    """The bytes-to-bytes codecs."""
    links = []
    for name, configuration in map(name_of, codecs):
        try:
            links.append(BYTE_CODECS[name](configuration))
        except (KeyError, TypeError, ValueError) as error:
            raise UnknownCodec(name) from error
    return tuple(links)


def name_of(codec: Any) -> tuple[str, Mapping[str, Any]]:
    """Name and configuration of a codec, which may be its bare name."""
    if isinstance(codec, str):
        return codec, {}
    configuration = codec.get("configuration") or {}
    return str(codec["name"]), configuration


def chain_names(codecs: Sequence[Any]) -> str:
    """For people: the codecs by name, those inside a shard in brackets."""
    names = []
    for name, configuration in map(name_of, codecs):
        inner = configuration.get("codecs")
        names.append(f"{name}({chain_names(inner)})" if isinstance(inner, list | tuple) else name)
    return ", ".join(names)
