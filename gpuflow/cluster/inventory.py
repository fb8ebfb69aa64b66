"""Which nodes hold the newest generation of each chunk.

Pure and rebuilt from the nodes' reports. Two compact columns an array (holder-set number, generation): 8 bytes a chunk."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Column = NDArray[np.uint32]
ArrayName = tuple[str, str]  # (dataset, path of the array)


class Inventory:
    """Grows with what is reported. Reports are idempotent and may come in any order."""

    def __init__(self) -> None:
        self._sets: list[frozenset[str]] = [frozenset()]
        self._numbers: dict[frozenset[str], int] = {frozenset(): 0}
        self._columns: dict[ArrayName, tuple[Column, Column]] = {}

    def report(self, node: str, array: ArrayName, chunks: Column, generations: Column) -> None:
        """`node` holds `chunks` at `generations`. A newer generation takes the place of the older one's holders."""
        if not len(chunks):
            return
        holders, newest = self._grown(array, int(chunks.max()) + 1)
        known = newest[chunks]
        newer, equal = generations > known, generations == known
        holders[chunks[newer]] = self._number(frozenset([node]))
        newest[chunks[newer]] = generations[newer]
        for number in np.unique(holders[chunks[equal]]):
            joined = self._number(self._sets[number] | {node})
            same = chunks[equal]
            holders[same[holders[same] == number]] = joined

    def drop(self, dataset: str) -> None:
        """Forget a dataset that was removed; a new one of its name begins at generation 1 again."""
        self._columns = {array: columns for array, columns in self._columns.items() if array[0] != dataset}

    def holders(self, array: ArrayName, chunks: Iterable[int]) -> list[frozenset[str]]:
        """Holder set of each of `chunks`; empty for one nobody reported."""
        holders, _ = self._columns.get(array, (np.zeros(0, np.uint32), None))
        return [self._sets[holders[chunk]] if 0 <= chunk < len(holders) else frozenset() for chunk in chunks]

    def common_holders(self, array: ArrayName, chunks: Iterable[int]) -> frozenset[str]:
        """Nodes that hold every one of `chunks`."""
        sets = set(self.holders(array, chunks))
        return frozenset.intersection(*sets) if sets else frozenset()

    def _grown(self, array: ArrayName, size: int) -> tuple[Column, Column]:
        columns = self._columns.get(array)
        if columns is None or len(columns[0]) < size:
            old = columns or (np.zeros(0, np.uint32), np.zeros(0, np.uint32))
            room = max(size, 2 * len(old[0])) if len(old[0]) else size
            columns = (np.zeros(room, np.uint32), np.zeros(room, np.uint32))
            for new, previous in zip(columns, old, strict=True):
                new[: len(previous)] = previous
            self._columns[array] = columns
        return columns

    def _number(self, nodes: frozenset[str]) -> int:
        if nodes not in self._numbers:
            self._numbers[nodes] = len(self._sets)
            self._sets.append(nodes)
        return self._numbers[nodes]
