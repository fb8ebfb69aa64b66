"""Bytes to bytes: the compressors and checksums that stored objects are made with, through numcodecs.

Decoding goes into memory of the caller's where the library can, after the frame's own header was compared with its size: the libraries
take less than a whole frame, or a length that lies, without a word."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from numcodecs.blosc import Blosc
from numcodecs.gzip import GZip
from numcodecs.lz4 import LZ4
from numcodecs.zstd import Zstd
from numpy.typing import NDArray

Out = NDArray[Any] | None
"""Memory of exactly the decoded size, or None to have it allocated."""

_CRC_NBYTES = 4
_BLOSC_HEADER_NBYTES = 16
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


class CodecError(ValueError):
    """Bytes that are not an encoding of a block of this array."""


class ByteCodec(Protocol):
    """One link of a chain. Thread-safe; releases the GIL."""

    def encode(self, data: Any) -> Any:
        """The encoded bytes."""
        ...

    def decode(self, data: Any, out: Out = None) -> Any:
        """The decoded bytes: `out`, filled, where the codec can and they fit it exactly; else newly allocated."""
        ...


class _Framed:
    """A codec whose frame tells how large its content is. content_nbytes: reads that, None where it is not told."""

    def __init__(self, codec: Any, content_nbytes: Callable[[Any], int | None]) -> None:
        self._codec, self._content_nbytes = codec, content_nbytes

    def encode(self, data: Any) -> Any:
        return self._codec.encode(data)

    def decode(self, data: Any, out: Out = None) -> Any:
        fits = self._content_nbytes(data) == (None if out is None else len(out))
        return self._codec.decode(data, out) if out is not None and fits else self._codec.decode(data)


class _Plain:
    """A codec that allocates what it decodes."""

    def __init__(self, codec: Any) -> None:
        self._codec = codec

    def encode(self, data: Any) -> Any:
        return self._codec.encode(data)

    def decode(self, data: Any, out: Out = None) -> Any:
        return self._codec.decode(data)


class _Crc32c:
    """CRC-32C after the data, little-endian (Zarr v3 `crc32c` codec)."""

    def encode(self, data: Any) -> bytes:
        import google_crc32c

        return bytes(data) + int(google_crc32c.value(bytes(data))).to_bytes(_CRC_NBYTES, "little")

    def decode(self, data: Any, out: Out = None) -> bytes:
        import google_crc32c

        body, stored = bytes(data[:-_CRC_NBYTES]), int.from_bytes(data[-_CRC_NBYTES:], "little")
        if len(data) < _CRC_NBYTES or google_crc32c.value(body) != stored:
            raise CodecError("crc32c does not match")
        return body


def _zstd_content_nbytes(data: Any) -> int | None:
    """Frame_Content_Size of the first frame (RFC 8878, 3.1.1.1)."""
    head = bytes(data[:18])
    if len(head) < 6 or head[:4] != _ZSTD_MAGIC:
        return None
    flag, single, dictionary = head[4] >> 6, head[4] >> 5 & 1, (0, 1, 2, 4)[head[4] & 3]
    size = (1 if single else 0, 2, 4, 8)[flag]
    start = 5 + (0 if single else 1) + dictionary
    if not size or len(head) < start + size:
        return None
    return int.from_bytes(head[start : start + size], "little") + (256 if flag == 1 else 0)


def _lz4_content_nbytes(data: Any) -> int | None:
    """numcodecs puts the size before the block, 4 bytes, little-endian."""
    return int.from_bytes(bytes(data[:4]), "little") if len(data) >= 4 else None


def _blosc_content_nbytes(data: Any) -> int | None:
    """The header's nbytes (bytes 4 to 8). CodecError when its cbytes (12 to 16) is not the length, which the library trusts."""
    head = bytes(data[:_BLOSC_HEADER_NBYTES])
    if len(head) < _BLOSC_HEADER_NBYTES or int.from_bytes(head[12:16], "little") != len(data):
        raise CodecError(f"{len(data)} bytes are not one blosc frame")
    return int.from_bytes(head[4:8], "little")


def _blosc(configuration: Mapping[str, Any]) -> ByteCodec:
    shuffle = {"noshuffle": Blosc.NOSHUFFLE, "shuffle": Blosc.SHUFFLE, "bitshuffle": Blosc.BITSHUFFLE}
    blosc = Blosc(
        cname=configuration["cname"],
        clevel=configuration["clevel"],
        shuffle=shuffle[configuration["shuffle"]],
        blocksize=configuration.get("blocksize", 0),
        typesize=configuration.get("typesize") or None,
    )
    return _Framed(blosc, _blosc_content_nbytes)


BYTE_CODECS: dict[str, Callable[[Mapping[str, Any]], ByteCodec]] = {
    "zstd": lambda c: _Framed(Zstd(level=c.get("level", 0), checksum=c.get("checksum", False)), _zstd_content_nbytes),
    "gzip": lambda c: _Plain(GZip(level=c.get("level", 5))),
    "blosc": _blosc,
    "numcodecs.lz4": lambda c: _Framed(LZ4(acceleration=c.get("acceleration", 1)), _lz4_content_nbytes),
    "crc32c": lambda c: _Crc32c(),
}
"""By the codec's name in `zarr.json`: from its configuration to the codec. KeyError, TypeError or ValueError for one it does not know."""
