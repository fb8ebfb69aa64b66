"""Digests that decide what need not be done again. Pure.

A pipeline's fingerprint covers everything that its output's bytes depend on but the input; a chunk's recipe is that and the input's
digest. Equal recipe, equal bytes: such a chunk is skipped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from gpuflow.grid import Grid

ALGEBRA = 1
"""Raised when a step of the same name and parameters begins to compute something else."""


def fingerprint(content: Any) -> str:
    """32 hexadecimal digits of plain data, independent of the order of keys."""
    text = json.dumps([ALGEBRA, content], sort_keys=True, separators=(",", ":"), allow_nan=True)
    return xxhash.xxh3_128_hexdigest(text.encode())


def recipe(made_by: str, inputs: bytes) -> bytes:
    """16 bytes: the fingerprint `made_by`, applied to inputs with the digest `inputs`."""
    return xxhash.xxh3_128_digest(bytes.fromhex(made_by) + inputs)


def cut_short(digest: bytes, extent: Sequence[int], chunks: Sequence[int]) -> bytes:
    """What stands for a chunk with the bytes `digest` of which only `extent` is the array's. When an array grows by what its last chunk was
    padded with, the bytes stay the same, and yet there is more to compute."""
    if tuple(extent) == tuple(chunks):
        return digest
    return xxhash.xxh3_128_digest(digest + np.array(extent, "<i8").tobytes())


def cut_shorts(digests: NDArray[Any], grid: Grid) -> NDArray[Any]:
    """The same of all chunks of an array: (chunks,) V16."""
    ragged = np.zeros(grid.counts, bool)
    for axis, (size, chunk) in enumerate(zip(grid.shape, grid.chunks, strict=True)):
        if size % chunk:
            ragged[(slice(None),) * axis + (-1,)] = True
    found = np.array(digests)
    for number in np.flatnonzero(ragged).tolist():
        found[number] = np.void(cut_short(found[number].tobytes(), grid.extent(number), grid.chunks))
    return found


def recipes(made_by: str, inputs: NDArray[Any]) -> NDArray[Any]:
    """The recipe of each of `inputs`: (chunks,) V16."""
    prefix, digest = bytes.fromhex(made_by), xxhash.xxh3_128_digest
    return np.frombuffer(b"".join([digest(prefix + each) for each in inputs.tolist()]), "V16")
