"""A seal on a row of the manifest: 64 bits over its values and the names that it stands under, so that what changes on the disk shows.

Against accidents, not adversaries. The columns of a replica are hashed as 64-bit words, each times an odd key (multilinear hashing:
Lemire and Kaser 2014): whatever changes within one word always shows. One row and a whole table are sealed alike."""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Sequence
from functools import lru_cache
from operator import mul
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

COLUMNS = "chunk, generation, nbytes, seq, damaged, digest, recipe, inputs"
"""What is sealed of a replica, in this order; seq and damaged are 0 where a table has none."""

_WORDS = 11
SEALED_DTYPE = np.dtype(
    [(name, "<u8") for name in ("array", "chunk", "generation", "nbytes", "seq", "damaged")]
    + [("digest", "V16"), ("recipe", "V16"), ("inputs", "V16"), ("seal", "<i8")]
)
"""A row of a table of replicas: the array's number, COLUMNS, the seal."""

_MASK = (1 << 64) - 1
_KEYS = [xxhash.xxh3_64_intdigest(b"column %d" % number) | 1 for number in range(_WORDS)]
_KEY_ROW = np.array(_KEYS, dtype=np.uint64)
_ROW, _ROW_WORDS = struct.Struct("<5Q16s16s16s"), struct.Struct("<11Q")


@lru_cache(maxsize=1024)
def seal_of_names(*values: str | int | bytes | None) -> int:
    """Seal of values of any length: the names that a replica stands under, or all of a row of another table. Signed, as SQLite has it."""
    return _signed(xxhash.xxh3_64_intdigest(repr(values).encode("utf-8", "backslashreplace")))


def seal_of(names: int, *row: Any) -> int | None:
    """Seal of a row of COLUMNS under `names`; None when its values are not such as gpuflow writes."""
    try:
        words = _ROW_WORDS.unpack(_ROW.pack(*row))
    except struct.error:
        return None
    return _signed(names + sum(map(mul, words, _KEYS)))


def _signed(value: int) -> int:
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


def as_table(rows: Sequence[tuple[Any, ...]]) -> NDArray[Any]:
    """SEALED_DTYPE; rows that cannot be such are left out."""
    try:
        return np.array(rows, dtype=SEALED_DTYPE)
    except (ValueError, TypeError, OverflowError):
        return np.array([row for row in rows if _fits(row)], dtype=SEALED_DTYPE)


def _fits(row: tuple[Any, ...]) -> bool:
    try:
        np.array([row], dtype=SEALED_DTYPE)
    except (ValueError, TypeError, OverflowError):
        return False
    return True


def are_sound(table: NDArray[Any], names: int) -> NDArray[np.bool_]:
    """Which rows of a table (SEALED_DTYPE), all under `names`, are as they were sealed."""
    words = np.ascontiguousarray(table).view(np.uint64).reshape(-1, _WORDS + 2)
    total = words[:, 1:-1] @ _KEY_ROW + np.uint64(names & _MASK)
    return np.asarray(total == words[:, -1])


def add_functions(connection: sqlite3.Connection) -> None:
    """seal_of_names(...) and seal_of(names, COLUMNS) for the connection's statements."""
    connection.create_function("seal_of_names", -1, seal_of_names, deterministic=True)
    connection.create_function("seal_of", 9, seal_of, deterministic=True)
