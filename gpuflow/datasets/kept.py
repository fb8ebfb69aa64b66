"""A snapshot of a dataset as a `Locator`: what it was then, whatever changes it now.

Its chunks are read from the hard links that the nodes keep, with their digests checked. A snapshot does not change, so that everything that
is read through this is of one state, also while a pipeline changes the dataset in place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import replace
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from gpuflow.datasets import snapshots
from gpuflow.datasets.catalog import ChunkTable
from gpuflow.errors import ChunkCorrupt, ChunkLost, NotFound
from gpuflow.storage.locator import Found, Locator, Whereabouts
from gpuflow.storage.manifest import Replica
from gpuflow.storage.node import NodeStore
from gpuflow.storage.record import DatasetRecord
from gpuflow.storage.snapshots import Kept, read_kept

T = TypeVar("T")

_CARRIED = 2**16  # chunks of an array


class Keepers(Locator, Protocol):
    """A way to the nodes that keep snapshots.

    stores: those on this machine, by node id."""

    @property
    def stores(self) -> Mapping[str, NodeStore]: ...

    def each_node(self, function: Callable[..., T], *args: Any) -> dict[str, T]:
        """See `Nodes`."""
        ...

    def kept_on(self, node: str, what: Kept, array: str, chunk: int) -> tuple[Replica, bytes]:
        """See `read_kept`: of a node that is not on this machine. OSError when it does not answer, ChunkLost when it is away."""
        ...


class KeptLocator:
    """Snapshot `what` by way of `inner`. nodes: that keep parts of it."""

    def __init__(
        self, inner: Keepers, what: Kept, nodes: Sequence[str], generations: Mapping[str, NDArray[np.uint32]] | None = None
    ) -> None:
        self.inner, self.what, self.nodes = inner, what, tuple(nodes)
        self._generations = dict(generations or {})
        self.reads: Counter[str] = Counter()
        self._tables: dict[str, ChunkTable] = {}

    @classmethod
    def of(cls, inner: Keepers, name: str, tag: str) -> KeptLocator:
        """NotFound when the dataset, or that snapshot of it, is not there."""
        entry = snapshots.find_snapshot(inner.record(name), tag)
        return cls(inner, Kept(name, tag, entry["id"]), sorted(entry["nodes"]))

    def __reduce__(self) -> tuple[Any, ...]:
        """With the generations where they are little: a task on a worker cannot ask all nodes."""
        if not self._generations:
            for path, metadata in self.record(self.what.dataset).metadata.items():
                self.generations(self.what.dataset, path, metadata.grid.size)
        little = {path: column for path, column in self._generations.items() if len(column) <= _CARRIED}
        return type(self), (self.inner, self.what, self.nodes, little)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, KeptLocator) and (self.inner, self.what) == (other.inner, other.what)

    def __hash__(self) -> int:
        return hash((self.inner, self.what))

    def __getattr__(self, name: str) -> Any:
        if name in ("connection", "stores"):  # of whom it reads by way of, where there is such
            return getattr(self.inner, name)
        raise AttributeError(name)

    def record(self, dataset: str) -> DatasetRecord:
        """See `Locator`: as it was then. NotFound when the snapshot has been deleted since."""
        record = self.inner.record(dataset)
        entry = snapshots.find_snapshot(record, self.what.tag)
        if entry["id"] != self.what.identity:
            raise NotFound("snapshot", self.what.tag, hint="it was deleted, and another one has its tag; open it again")
        return replace(record, state="ready", transforms=tuple(entry["transforms"]), statistics={})

    def records(self) -> Mapping[str, DatasetRecord]:
        """See `Locator`: of this dataset."""
        return {self.what.dataset: self.record(self.what.dataset)}

    def table(self, array: str, count: int) -> ChunkTable:
        """What the live nodes keep of an array."""
        if array not in self._tables:
            self._tables[array] = snapshots.kept_table(self.inner, self.inner.record(self.what.dataset), self.what.tag, array)
        return self._tables[array]

    def whereabouts(self, dataset: str, array: str, count: int) -> Whereabouts:
        """See `Locator`."""
        table = self.table(array, count)
        sets = [table.sets[number] for number in range(len(table.sets))]
        return Whereabouts(table.rows["generation"].astype(np.uint32), table.holders, sets)

    def generations(self, dataset: str, array: str, count: int) -> NDArray[np.uint32]:
        """See `Locator`."""
        if array not in self._generations:
            self._generations[array] = self.whereabouts(dataset, array, count).generations
        column = self._generations[array]
        return np.broadcast_to(column[:1], (count,)) if count and (column == column[0]).all() else column

    def sizes(self, dataset: str, array: str, count: int) -> NDArray[np.uint64]:
        """See `Locator`."""
        return np.asarray(self.table(array, count).rows["nbytes"], np.uint64)

    def local(self, dataset: str, array: str, chunk: int) -> tuple[NodeStore, Replica] | None:
        """See `Locator`: all is fetched, also from here."""
        return None

    def local_many(self, dataset: str, array: str, chunks: Sequence[int]) -> dict[int, tuple[NodeStore, Replica]]:
        """See `Locator`."""
        return {}

    def fetch(self, dataset: str, array: str, chunk: int, least: int, but: Set[str] = frozenset()) -> Found:
        """See `Locator`: from this machine if it is kept here, else from another node."""
        damage: ChunkCorrupt | None = None
        here = self.inner.stores
        for node in sorted(set(self.nodes) - but, key=lambda node: (node not in here, node)):
            try:
                if node in here:
                    replica, data = read_kept(here[node], self.what, array, chunk)
                else:
                    replica, data = self.inner.kept_on(node, self.what, array, chunk)
            except ChunkCorrupt as error:
                damage = error
                continue
            except (ChunkLost, OSError):
                continue
            if replica.generation >= least:
                return Found(replica, data, node, node in here)
        name = self.inner.record(dataset).chunk_name(array, chunk)
        raise damage or ChunkLost(f"{name} of snapshot {self.what.tag!r}", self.nodes)

    def changed_by(self, record: DatasetRecord) -> str:
        """See `Locator`: nothing does."""
        return ""

    def close(self) -> None:
        """See `Locator`."""
        self.inner.close()
