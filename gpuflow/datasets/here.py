"""The nodes of this machine as a `Locator`: their stores are opened, and no cluster is needed."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from gpuflow.datasets import catalog
from gpuflow.datasets.settled import changed_by
from gpuflow.datasets.writing import Data, Writing
from gpuflow.errors import ChunkCorrupt, ChunkLost, NotFound
from gpuflow.settings import store_root
from gpuflow.storage import placing
from gpuflow.storage.disk import store_errors
from gpuflow.storage.locator import Found, Parts, Whereabouts, find_record
from gpuflow.storage.manifest import Replica
from gpuflow.storage.node import NodeStore
from gpuflow.storage.opened import read_ranges
from gpuflow.storage.record import DatasetRecord
from gpuflow.storage.roots import existing_roots
from gpuflow.storage.snapshots import Kept

T = TypeVar("T")


class NodesHere(Writing):
    """Stores of one machine. A `Placer`, and `Nodes` for the functions of `catalog`. Other processes may have the same roots open.

    stores: by node id."""

    def __init__(self, *roots: Path) -> None:
        """StoreError when one cannot be used."""
        self.stores: dict[str, NodeStore] = {}
        self.reads: Counter[str] = Counter()
        self._roots = roots
        try:
            for root in roots:
                store = NodeStore(root, create=False)
                self.stores[store.node_id] = store
        except BaseException:
            self.close()
            raise

    @classmethod
    def below(cls, root: str | os.PathLike[str] | None = None) -> NodesHere:
        """Every node below `root` (default `GPUFLOW_ROOT`, else `./.gpuflow`). NotFound when there is none, StoreError when one may not be
        read."""
        base = (Path(root) if root is not None else store_root()).absolute()
        with store_errors(base):
            roots = existing_roots(base)
        if not roots:
            raise NotFound("store", str(base), hint="ingest something first, or give the root, or the scheduler's address")
        return cls(*roots)

    def each_node(self, function: Callable[..., T], *args: Any) -> dict[str, T]:
        """`function(store, *args)` for every store."""
        return {node: function(store, *args) for node, store in self.stores.items()}

    def records(self) -> Mapping[str, DatasetRecord]:
        """See `Locator`."""
        return catalog.records(self)

    def record(self, dataset: str) -> DatasetRecord:
        """See `Locator`. Without a look at the others when it is there."""
        known = [found for store in self.stores.values() if (found := _record(store, dataset)) is not None]
        return max(known, key=lambda record: record.version) if known else find_record(self.records(), dataset)

    def whereabouts(self, dataset: str, array: str, count: int) -> Whereabouts:
        """See `Locator`."""
        table = catalog.chunk_table(self, dataset, array, count)
        sets = [table.sets[number] for number in range(len(table.sets))]
        return Whereabouts(table.rows["generation"].astype(np.uint32), table.holders, sets)

    def generations(self, dataset: str, array: str, count: int) -> NDArray[np.uint32]:
        """See `Locator`."""
        ranges = [store.manifest.generation_range(dataset, array) for store in self.stores.values()]
        values = {value for both in ranges for value in both} - {0}
        if len(values) == 1:
            return np.broadcast_to(np.uint32(values.pop()), (count,))
        return self.whereabouts(dataset, array, count).generations

    def sizes(self, dataset: str, array: str, count: int) -> NDArray[np.uint64]:
        """See `Locator`."""
        return np.asarray(catalog.chunk_table(self, dataset, array, count).rows["nbytes"], np.uint64)

    def changed_by(self, record: DatasetRecord) -> str:
        """See `Locator`."""
        return changed_by(self, record)

    def holders(self, dataset: str, array: str, chunk: int) -> list[str]:
        """Nodes that have the newest generation of a chunk."""
        held = self._holding(dataset, array, chunk)
        newest = max((replica.generation for _, replica in held), default=0)
        return sorted(store.node_id for store, replica in held if replica.generation == newest)

    def write_on(self, node: str, dataset: str, array: str, chunk: int, data: Data) -> Replica:
        """See `Writing`."""
        return placing.write_chunk(self.stores[node], dataset, array, chunk, data)

    def copy_to(self, node: str, replica: Replica, data: Data) -> None:
        """See `Writing`."""
        self.stores[node].adopt(replica, data)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._roots

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NodesHere) and self._roots == other._roots

    def __hash__(self) -> int:
        return hash(self._roots)

    def local(self, dataset: str, array: str, chunk: int) -> tuple[NodeStore, Replica] | None:
        """See `Locator`."""
        return self.local_many(dataset, array, [chunk]).get(chunk)

    def local_many(self, dataset: str, array: str, chunks: Sequence[int]) -> dict[int, tuple[NodeStore, Replica]]:
        """See `Locator`."""
        return newest_local(self.stores.values(), dataset, array, chunks)

    def _holding(self, dataset: str, array: str, chunk: int) -> list[tuple[NodeStore, Replica]]:
        found = ((store, store.manifest.replica(dataset, array, chunk)) for store in self.stores.values())
        return [(store, replica) for store, replica in found if replica is not None]

    def fetch(self, dataset: str, array: str, chunk: int, least: int, but: Set[str] = frozenset()) -> Found:
        """See `Locator`: from another store of this machine."""
        damage: ChunkCorrupt | None = None
        for store, replica in sorted(self._holding(dataset, array, chunk), key=lambda held: -held[1].generation):
            if store.node_id in but or replica.generation < least:
                continue
            try:
                return Found(*store.read(dataset, array, chunk), store.node_id, True)
            except ChunkCorrupt as error:
                damage = error
            except ChunkLost:
                continue
        name = self.record(dataset).chunk_name(array, chunk)
        raise damage or ChunkLost(name, sorted(self.stores))

    def parts(self, replica: Replica, but: Set[str] = frozenset()) -> Parts | None:
        """See `PartLocator`: on another store of this machine."""
        for store, held in self._holding(replica.dataset, replica.array, replica.chunk):
            if store.node_id not in but and held.digest == replica.digest:
                return Parts(store.node_id, partial(read_ranges, store, replica))
        return None

    def kept_on(self, node: str, what: Kept, array: str, chunk: int) -> tuple[Replica, bytes]:
        """See `Keepers`: there are no others."""
        raise ChunkLost(f"{what.dataset}/{array} number {chunk} of snapshot {what.tag!r}", [node])

    def close(self) -> None:
        """See `Locator`."""
        for store in self.stores.values():
            store.close()


def newest_local(
    stores: Iterable[NodeStore], dataset: str, array: str, chunks: Sequence[int]
) -> dict[int, tuple[NodeStore, Replica]]:
    """`Locator.local_many` over open stores."""
    found: dict[int, tuple[NodeStore, Replica]] = {}
    for store in stores:
        for chunk, replica in store.manifest.replicas_of(dataset, array, chunks).items():
            if chunk not in found or found[chunk][1].generation < replica.generation:
                found[chunk] = store, replica
    return found


def _record(store: NodeStore, dataset: str) -> DatasetRecord | None:
    try:
        return store.record(dataset)
    except NotFound:
        return None
