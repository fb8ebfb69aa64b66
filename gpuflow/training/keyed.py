"""Randomness that is looked up, never drawn: numbers that belong to a key and a position.

Pure. The mixing is splitmix64 (Steele et al. 2014); a key is the digest of what it is made of, so that (1, 23) and (12, 3) differ."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

Numbers = NDArray[np.uint64]

_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15


def key_of(*parts: str | int) -> int:
    """A 64-bit key that stands for `parts`."""
    return xxhash.xxh3_64_intdigest(json.dumps(parts).encode())


def mixed(key: int, numbers: NDArray[Any]) -> Numbers:
    """64 random bits for each of `numbers`."""
    bits = numbers.astype(np.uint64) * np.uint64(_GOLDEN) + np.uint64((key * _GOLDEN + _GOLDEN) & _MASK)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(bits ^ (bits >> np.uint64(31)), dtype=np.uint64)


def uniform(key: int, numbers: NDArray[Any]) -> NDArray[np.float64]:
    """A number in [0, 1) for each of `numbers`."""
    return np.asarray((mixed(key, numbers) >> np.uint64(11)) * 2.0**-53, dtype=np.float64)


class Permutation:
    """A permutation of range(size) that needs no table: a Feistel network of eight rounds over the next power of two, walked along its
    cycles until it is inside (Black and Rogaway 2002). Thread-safe."""

    _ROUNDS = 8

    def __init__(self, key: int, size: int) -> None:
        bits = max(2, (size - 1).bit_length())
        self.size, self._low = size, bits // 2
        self._low_mask, self._high_mask = np.uint64(2**self._low - 1), np.uint64(2 ** (bits - self._low) - 1)
        self._keys = [key_of("round", key, number) for number in range(self._ROUNDS)]

    def __call__(self, positions: NDArray[Any]) -> NDArray[np.int64]:
        """What stands at `positions`, each in range(size)."""
        return self._walk(positions, list(enumerate(self._keys)))

    def inverse(self, values: NDArray[Any]) -> NDArray[np.int64]:
        """At which positions `values` stand."""
        return self._walk(values, list(enumerate(self._keys))[::-1])

    def _walk(self, start: NDArray[Any], rounds: list[tuple[int, int]]) -> NDArray[np.int64]:
        found = self._pass(start.astype(np.uint64), rounds)
        while (outside := found >= self.size).any():
            found[outside] = self._pass(found[outside], rounds)
        return found.astype(np.int64)

    def _pass(self, values: Numbers, rounds: list[tuple[int, int]]) -> Numbers:
        low, high = values & self._low_mask, values >> np.uint64(self._low)
        for number, key in rounds:
            if number % 2:
                high = high ^ (mixed(key, low) & self._high_mask)
            else:
                low = low ^ (mixed(key, high) & self._low_mask)
        return np.asarray(high << np.uint64(self._low) | low, dtype=np.uint64)
