"""What zstd frames say of themselves (RFC 8878, 3.1), read without decoding them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_MAGIC = b"\x28\xb5\x2f\xfd"
_SKIPPABLE = b"\x2a\x4d\x18"  # after a byte from 0x50 to 0x5f; then the length, 4 bytes
_LONGEST_HEADER_NBYTES = 18
_RLE_BLOCK = 1


def content_nbytes(data: NDArray[np.uint8]) -> int | None:
    """Decoded bytes of all frames of `data` together; None when one of them does not tell. ValueError when `data` is not whole frames."""
    total: int | None = 0
    position = 0
    while position < len(data):
        head = data[position : position + _LONGEST_HEADER_NBYTES].tobytes()
        if len(head) >= 8 and head[0] >> 4 == 5 and head[1:4] == _SKIPPABLE:
            position += 8 + int.from_bytes(head[4:8], "little")
            continue
        header_nbytes, nbytes, checksum_nbytes = _header(head)
        total = None if nbytes is None or total is None else total + nbytes
        position = _blocks_end(data, position + header_nbytes) + checksum_nbytes
    if position > len(data):
        raise ValueError("zstd frame ends too early")
    return total


def is_checked(data: NDArray[np.uint8]) -> bool:
    """Whether `data` begins with a frame that ends with a checksum of its content, which the library compares."""
    return len(data) > 4 and data[:4].tobytes() == _MAGIC and bool(data[4] >> 2 & 1)


def _header(head: bytes) -> tuple[int, int | None, int]:
    """(bytes of the header, Frame_Content_Size, bytes of the checksum)."""
    if len(head) < 5 or head[:4] != _MAGIC:
        raise ValueError("not a zstd frame")
    flag, single, dictionary = head[4] >> 6, head[4] >> 5 & 1, (0, 1, 2, 4)[head[4] & 3]
    size = (single, 2, 4, 8)[flag]
    start = 5 + (1 - single) + dictionary
    nbytes = int.from_bytes(head[start : start + size], "little") + (256 if flag == 1 else 0)
    return start + size, nbytes if size else None, 4 * (head[4] >> 2 & 1)


def _blocks_end(data: NDArray[np.uint8], position: int) -> int:
    """Where the last block of the frame whose blocks begin at `position` ends."""
    while position + 3 <= len(data):
        word = int.from_bytes(data[position : position + 3].tobytes(), "little")
        last, kind, size = word & 1, word >> 1 & 3, word >> 3
        position += 3 + (1 if kind == _RLE_BLOCK else size)
        if last:
            return position
    raise ValueError("zstd frame ends too early")
