"""Sets of nodes by number.

Pure. A set that many chunks share is kept once, so that a chunk's holders are one number in a column, however many nodes there are."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Column = NDArray[np.uint32]


class HolderSets:
    """Every set that was ever asked for; number 0 is the empty set. Numbers stay valid."""

    def __init__(self) -> None:
        self._sets: list[frozenset[str]] = [frozenset()]
        self._numbers: dict[frozenset[str], int] = {frozenset(): 0}

    def __len__(self) -> int:
        return len(self._sets)

    def __getitem__(self, number: int) -> frozenset[str]:
        return self._sets[number]

    def names(self, node: str) -> bool:
        """Whether some set has `node` in it."""
        return any(node in nodes for nodes in self._sets)

    def number(self, nodes: frozenset[str]) -> int:
        """Of the set `nodes`."""
        number = self._numbers.setdefault(nodes, len(self._sets))
        if number == len(self._sets):
            self._sets.append(nodes)
        return number

    def joined(self, numbers: Column, node: str) -> Column:
        """The same sets with `node` in them."""
        return self._changed(numbers, lambda nodes: nodes | {node})

    def left(self, numbers: Column, node: str) -> Column:
        """The same sets without `node`."""
        return self._changed(numbers, lambda nodes: nodes - {node})

    def _changed(self, numbers: Column, change: Callable[[frozenset[str]], frozenset[str]]) -> Column:
        distinct, inverse = np.unique(numbers, return_inverse=True)
        return np.array([self.number(change(self._sets[number])) for number in distinct], np.uint32)[inverse]


def newest_wins(
    sets: HolderSets, node: str, known: tuple[Column, Column], generations: Column
) -> tuple[NDArray[np.bool_], tuple[Column, Column]]:
    """What `node`'s report of `generations` makes of the (holder-set numbers, generations) that are `known` of the same chunks.

    A newer generation takes the place of the older one's holders; `node` joins those of an equal one. Also which rows are newer."""
    holders, newest = known
    newer, equal = generations > newest, generations == newest
    after = np.where(newer, np.uint32(sets.number(frozenset([node]))), holders)
    after[equal] = sets.joined(holders[equal], node)
    return newer, (after, np.maximum(newest, generations))
