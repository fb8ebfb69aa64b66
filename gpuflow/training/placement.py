"""Where the samples lie as the ranks see it: one value that all of them must have alike, since from it follows who takes which sample.

The ranks of a process group agree on it when their loaders are made: the first rank's view counts. It does not decide what a batch is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpuflow.training.assignment import Holders, assign
from gpuflow.training.content import Content
from gpuflow.training.cut import Cut


@dataclass(frozen=True)
class Placement:
    """Pickles, to be handed to ranks that know of no process group.

    ranks: where each rank is: the nodes whose stores it reads directly, as one text. homes: (blocks of samples,) numbers of `sets`, which
    are sets of such texts. block: samples of a block."""

    ranks: tuple[str, ...]
    homes: NDArray[np.uint32]
    sets: tuple[Holders, ...]
    rows_per_block: int
    stride: int

    def split(self, samples: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Places in the batch of `samples`, for each rank."""
        if len(self.ranks) == 1:
            return [np.arange(len(samples))]
        blocks = samples * self.stride // self.rows_per_block
        homes = [self.sets[number] for number in self.homes[blocks].tolist()]
        return [np.array(places, np.int64) for places in assign(samples, homes, self.ranks)]

    def local_share(self, samples: NDArray[np.int64]) -> float:
        """Of `samples`, how much goes to a rank at which it lies."""
        blocks = self.homes[samples * self.stride // self.rows_per_block]
        parts = zip(self.split(samples), self.ranks, strict=True)
        return sum(rank in self.sets[number] for places, rank in parts for number in blocks[places].tolist()) / len(samples)


def where(nodes: Sequence[str]) -> str:
    """What stands in `ranks` for a rank that reads the stores of `nodes` directly."""
    return ",".join(sorted(nodes))


def place(content: Content, cut: Cut, ranks: Sequence[str]) -> Placement:
    """Where samples lie: where all stored objects do that their first row takes of the largest array; else where the most of them do."""
    part = max(cut.parts, key=lambda part: (part.nbytes, part.path))
    table = content.tables[part.path]
    counts = part.metadata.grid.counts
    holders = table.holders.reshape(counts[0], -1)
    rows, inverse = np.unique(holders, axis=0, return_inverse=True)
    places = {rank: frozenset(rank.split(",")) for rank in ranks}
    sets: dict[Holders, int] = {}
    numbers = [sets.setdefault(_home([table.sets[int(n)] for n in row], places), len(sets)) for row in rows]
    homes = np.array(numbers, np.uint32)[inverse.reshape(-1)]
    return Placement(tuple(ranks), homes, tuple(sets), part.metadata.grid.chunks[0], cut.stride)


def _home(objects: Sequence[frozenset[str]], places: dict[str, frozenset[str]]) -> Holders:
    counts = {rank: sum(bool(nodes & held) for held in objects) for rank, nodes in places.items()}
    most = max(counts.values())
    return frozenset(rank for rank, count in counts.items() if count == most and most)
