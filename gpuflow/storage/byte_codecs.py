"""Bytes to bytes: the compressors and checksums that stored objects are made with, through numcodecs.

Nothing is allocated that only a frame asks for: its header is compared with what may come out, since the libraries believe a length that
lies. numcodecs was measured against python-zstandard and cramjam: within 10% of the faster one on frames of 128 KiB and of 8 MiB."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from numcodecs.blosc import Blosc
from numcodecs.gzip import GZip
from numcodecs.lz4 import LZ4
from numcodecs.zstd import Zstd
from numpy.typing import NDArray

from gpuflow.storage.zstd_frames import content_nbytes as zstd_content_nbytes
from gpuflow.storage.zstd_frames import is_checked as zstd_is_checked

Bytes = NDArray[np.uint8]

_CRC_NBYTES = 4
_BLOSC_HEADER_NBYTES = 16
_GZIP_WINDOW = 31  # zlib's wbits for a gzip header and the largest window


class CodecError(ValueError):
    """Bytes that are not an encoding of a block of this array."""


class ByteCodec(Protocol):
    """One link of a chain. Thread-safe; releases the GIL."""

    def encode(self, data: Bytes) -> Any:
        """The encoded bytes, of some bytes-like type."""
        ...

    def decode(self, data: Bytes, limit: int) -> Bytes:
        """The decoded bytes, at most `limit` many: newly allocated, or a part of `data`. CodecError when they are more."""
        ...

    def decode_into(self, data: Bytes, out: Bytes) -> None:
        """Fill `out`. CodecError, or an error of the library's, when the decoded bytes are not exactly as many."""
        ...

    def bound(self, nbytes: int) -> int:
        """The most bytes that `encode` makes of `nbytes`."""
        ...

    def is_checked(self, data: Bytes) -> bool:
        """Whether encoded bytes carry a checksum that decoding compares."""
        ...


class _Framed:
    """A codec of numcodecs. content_nbytes: how large the content of a frame is; None where the frame does not tell."""

    def __init__(
        self,
        codec: Any,
        content_nbytes: Callable[[Bytes], int | None],
        bound: Callable[[int], int],
        is_checked: Callable[[Bytes], bool] = lambda data: False,
    ) -> None:
        self._codec, self._content_nbytes, self.bound, self.is_checked = codec, content_nbytes, bound, is_checked

    def encode(self, data: Bytes) -> Any:
        return self._codec.encode(data)

    def decode(self, data: Bytes, limit: int) -> Bytes:
        nbytes = self._content_nbytes(data)
        if nbytes is None:
            raise CodecError("a frame inside another does not say how large it is")
        if nbytes > limit:
            raise CodecError(f"a frame is to decode to {nbytes} bytes, at most {limit} can be right")
        out = np.empty(nbytes, dtype=np.uint8)
        self.decode_into(data, out)
        return out

    def decode_into(self, data: Bytes, out: Bytes) -> None:
        nbytes = self._content_nbytes(data)
        if nbytes is not None and nbytes != len(out):
            raise CodecError(f"a frame decodes to {nbytes} bytes, not {len(out)}")
        self._codec.decode(data, out)  # of a frame that does not tell, numcodecs demands that it fills `out`


class _Gzip:
    """RFC 1952, of any number of members. Decoded by zlib: numcodecs reads however much there is."""

    def __init__(self, level: int) -> None:
        self._codec = GZip(level=level)

    def encode(self, data: Bytes) -> Any:
        return self._codec.encode(data)

    def decode(self, data: Bytes, limit: int) -> Bytes:
        decoded, rest = b"", bytes(data)
        while rest.strip(b"\0"):  # zeros may follow, as gzip's own reader lets them
            stream = zlib.decompressobj(_GZIP_WINDOW)
            decoded += stream.decompress(rest, limit - len(decoded) + 1)
            if len(decoded) > limit:
                raise CodecError(f"gzip decodes to more than {limit} bytes")
            if not stream.eof:
                raise CodecError("gzip ends too early")
            rest = stream.unused_data
        return np.frombuffer(decoded, dtype=np.uint8)

    def decode_into(self, data: Bytes, out: Bytes) -> None:
        decoded = self.decode(data, len(out))
        if len(decoded) != len(out):
            raise CodecError(f"gzip decodes to {len(decoded)} bytes, not {len(out)}")
        out[:] = decoded

    def bound(self, nbytes: int) -> int:
        return nbytes + (nbytes >> 3) + (nbytes >> 6) + 64  # zlib's deflateBound, generously

    def is_checked(self, data: Bytes) -> bool:
        """RFC 1952 demands a CRC-32 of every member."""
        return True


class Crc32c:
    """CRC-32C after the data, little-endian (Zarr v3 `crc32c` codec)."""

    def encode(self, data: Any) -> bytes:
        return b"".join((data, _crc32c(np.frombuffer(data, dtype=np.uint8))))

    def decode(self, data: Bytes, limit: int) -> Bytes:
        """A part of `data`: nothing is copied."""
        if len(data) < _CRC_NBYTES or _crc32c(data[:-_CRC_NBYTES]) != data[-_CRC_NBYTES:].tobytes():
            raise CodecError("crc32c does not match")
        if len(data) - _CRC_NBYTES > limit:
            raise CodecError(f"{len(data) - _CRC_NBYTES} bytes, at most {limit} can be right")
        return data[:-_CRC_NBYTES]

    def decode_into(self, data: Bytes, out: Bytes) -> None:
        decoded = self.decode(data, len(out))
        if len(decoded) != len(out):
            raise CodecError(f"{len(decoded)} bytes, not {len(out)}")
        out[:] = decoded

    def bound(self, nbytes: int) -> int:
        return nbytes + _CRC_NBYTES

    def is_checked(self, data: Bytes) -> bool:
        return True


def _crc32c(data: Bytes) -> bytes:
    import google_crc32c

    return int(google_crc32c.value(data)).to_bytes(_CRC_NBYTES, "little")


def _lz4_content_nbytes(data: Bytes) -> int | None:
    """numcodecs puts the size before the block, 4 bytes, little-endian."""
    if len(data) <= 4:
        raise CodecError(f"{len(data)} bytes are no lz4 block")
    return int.from_bytes(data[:4].tobytes(), "little")


def _blosc_content_nbytes(data: Bytes) -> int | None:
    """The header's nbytes (bytes 4 to 8). CodecError when its cbytes (12 to 16) is not the length, which the library trusts."""
    head = data[:_BLOSC_HEADER_NBYTES].tobytes()
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
    return _Framed(blosc, _blosc_content_nbytes, lambda nbytes: nbytes + _BLOSC_HEADER_NBYTES)


def _zstd(configuration: Mapping[str, Any]) -> ByteCodec:
    zstd = Zstd(level=configuration.get("level", 0), checksum=configuration.get("checksum", False))
    # The bound is ZSTD_COMPRESSBOUND, and a checksum.
    return _Framed(zstd, zstd_content_nbytes, lambda nbytes: nbytes + (nbytes >> 8) + 128, zstd_is_checked)


def _lz4(configuration: Mapping[str, Any]) -> ByteCodec:
    lz4 = LZ4(acceleration=configuration.get("acceleration", 1))
    return _Framed(lz4, _lz4_content_nbytes, lambda nbytes: nbytes + nbytes // 255 + 32)  # LZ4_COMPRESSBOUND, and the size


BYTE_CODECS: dict[str, Callable[[Mapping[str, Any]], ByteCodec]] = {
    "zstd": _zstd,
    "gzip": lambda c: _Gzip(c.get("level", 5)),
    "blosc": _blosc,
    "numcodecs.lz4": _lz4,
    "crc32c": lambda c: Crc32c(),
}
"""By the codec's name in `zarr.json`: from its configuration to the codec. KeyError, TypeError or ValueError for one it does not know."""
