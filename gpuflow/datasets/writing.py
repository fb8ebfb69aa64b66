"""How somebody who is no run writes to a dataset: chunk by chunk, through the commit protocol, on every node that has the chunk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from gpuflow.datasets import catalog
from gpuflow.datasets.placement import assign
from gpuflow.errors import ChunkLost
from gpuflow.storage import placing
from gpuflow.storage.manifest import Replica
from gpuflow.storage.node import NodeStore
from gpuflow.storage.record import DatasetRecord

T = TypeVar("T")
Data = bytes | memoryview


class Writing:
    """The writing half of a `Placer`, over the nodes that the other half knows."""

    def each_node(self, function: Callable[..., T], *args: Any) -> dict[str, T]:
        """`function(store, *args)` for every node's store."""
        raise NotImplementedError

    def write_on(self, node: str, dataset: str, array: str, chunk: int, data: Data) -> Replica:
        """`placing.write_chunk` on a node."""
        raise NotImplementedError

    def copy_to(self, node: str, replica: Replica, data: Data) -> None:
        """`NodeStore.adopt` on a node."""
        raise NotImplementedError

    def holders(self, dataset: str, array: str, chunk: int) -> list[str]:
        """Live nodes with the newest generation of a chunk, ordered."""
        raise NotImplementedError

    def publish(self, record: DatasetRecord) -> bool:
        """See `Placer`."""
        return catalog.publish(self, record)

    def last_version(self, dataset: str) -> int:
        """See `Placer`."""
        return max(self.each_node(_version, dataset).values(), default=0)

    def lay(self, record: DatasetRecord, array: str, first: int = 0) -> None:
        """See `Placer`."""
        nodes = sorted(self.each_node(_node_id))
        placed = assign(record.array(array).grid.size, nodes)
        shares: dict[str, list[int]] = {node: [] for node in nodes}
        for chunk, node in enumerate(placed[first:], first):
            start = nodes.index(node)
            for step in range(min(record.replicas["min"], len(nodes))):
                shares[nodes[(start + step) % len(nodes)]].append(chunk)
        self.each_node(_lay_share, record, array, {node: np.array(chunks, np.uint32) for node, chunks in shares.items()})

    def put(self, record: DatasetRecord, array: str, chunk: int, data: Data) -> int:
        """See `Placer`."""
        holders = self.holders(record.name, array, chunk)
        if not holders:
            raise ChunkLost(record.chunk_name(array, chunk))
        replica = self.write_on(holders[0], record.name, array, chunk, data)
        for node in holders[1:]:
            self.copy_to(node, replica, data)
        return replica.generation

    def check_free(self, dataset: str) -> None:
        """See `Placer`."""
        self.each_node(placing.check_free, dataset)

    def forget(self, dataset: str, array: str | None = None) -> None:
        """See `Placer`. The nodes have done so."""


def _node_id(store: NodeStore) -> str:
    return store.node_id


def _version(store: NodeStore, dataset: str) -> int:
    known = store.manifest.version(dataset)
    return known[0] if known else 0


def _lay_share(store: NodeStore, record: DatasetRecord, array: str, shares: dict[str, Any]) -> None:
    placing.lay_empty(store, record, array, shares[store.node_id].tolist())
