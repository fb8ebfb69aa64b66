"""Which nodes should hold a chunk.

Pure: no I/O, clock or globals. Rendezvous hashing with a bound on each node's share (Mirrokni et al. 2018, consistent hashing with bounded
loads): shares differ by at most one chunk, and adding one node moves about 1/N of the chunks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xxhash
from numpy.typing import NDArray


def assign(count: int, nodes: Sequence[str]) -> list[str]:
    """Node of each of `count` chunks, by linear index. Arrays with equally many chunks get equal placements, so that chunks of the same
    samples lie together."""
    if not nodes:
        raise ValueError("no node to place chunks on")
    names = sorted(nodes)
    preference = np.argsort(-weights(count, names).astype(np.float64), axis=1, kind="stable")
    share, extra = divmod(count, len(names))
    load = [0] * len(names)
    placed = []
    for order in preference:
        choice = next(node for node in order if load[node] < share or (load[node] == share and extra))
        extra -= load[choice] == share
        load[choice] += 1
        placed.append(names[choice])
    return placed


def weights(count: int, names: Sequence[str]) -> NDArray[np.uint64]:
    """Score of every chunk (row) on every node (column): a mixed 64-bit hash (splitmix64, Steele et al. 2014)."""
    seeds = np.array([xxhash.xxh3_64_intdigest(name.encode()) for name in names], dtype=np.uint64)
    mixed = np.arange(1, count + 1, dtype=np.uint64)[:, None] * np.uint64(0x9E3779B97F4A7C15) ^ seeds[None, :]
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)), dtype=np.uint64)
