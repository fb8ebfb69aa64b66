"""How large the stored chunks of a dataset are: one question to each node, sums in answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gpuflow.datasets.catalog import Nodes
from gpuflow.storage.node import NodeStore


@dataclass(frozen=True, slots=True)
class StoredSizes:
    """Of one array, in encoded bytes. count: chunks that have bytes; empty: chunks that are all fill value and have none."""

    count: int = 0
    empty: int = 0
    total_nbytes: int = 0
    largest_nbytes: int = 0

    @property
    def chunks(self) -> int:
        """Of either kind."""
        return self.count + self.empty

    def __add__(self, other: StoredSizes) -> StoredSizes:
        return StoredSizes(
            self.count + other.count,
            self.empty + other.empty,
            self.total_nbytes + other.total_nbytes,
            max(self.largest_nbytes, other.largest_nbytes),
        )


def stored_sizes(nodes: Nodes, dataset: str, arrays: Sequence[str]) -> dict[str, StoredSizes]:
    """By array. A chunk that several nodes have counts for each of them."""
    answers = nodes.each_node(_sizes, dataset, list(arrays)).values()
    return {array: sum((answer[array] for answer in answers), StoredSizes()) for array in arrays}


def _sizes(store: NodeStore, dataset: str, arrays: Sequence[str]) -> dict[str, StoredSizes]:
    return {array: StoredSizes(*store.manifest.sizes(dataset, array)) for array in arrays}
