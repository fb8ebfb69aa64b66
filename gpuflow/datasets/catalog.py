"""Which datasets there are, and where their chunks lie, as the nodes together tell it.

Pure functions over what `Nodes` answers; a `Nodes` is a cluster's connection, or the store roots on this machine's disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from gpuflow.datasets.holders import Column, HolderSets, newest_wins
from gpuflow.errors import NotFound
from gpuflow.storage.manifest import REPLICA_DTYPE
from gpuflow.storage.node import NodeStore
from gpuflow.storage.record import DatasetRecord

T = TypeVar("T")


class Nodes(Protocol):
    """The nodes of a cluster, alive or only on disk."""

    def each_node(self, function: Callable[..., T], *args: Any) -> dict[str, T]:
        """`function(store, *args)` for the store of every node: {node id: result}."""
        ...


@dataclass(frozen=True)
class NodesOnDisk:
    """Store roots of this machine, opened without any cluster."""

    roots: tuple[Path, ...]

    def each_node(self, function: Callable[..., T], *args: Any) -> dict[str, T]:
        return dict(self._answers(function, *args))

    def _answers(self, function: Callable[..., T], *args: Any) -> Iterator[tuple[str, T]]:
        for root in self.roots:
            with closing(NodeStore(root, create=False)) as store:
                yield store.node_id, function(store, *args)


Known = Mapping[str, DatasetRecord]
"""The newest record of every name, those of removed datasets too."""


def newest(nodes: Nodes) -> Known:
    """What the nodes know, by name."""
    return newest_of(list(nodes.each_node(_records).values()))


def newest_of(reports: Sequence[Sequence[DatasetRecord]]) -> Known:
    """Of what each node knows, the newest record of every name. Where two are as new, since who published one died at it and its node was
    away when the other was made, that which most nodes have. Pure."""
    found: dict[str, list[DatasetRecord]] = {}
    for record in (record for known in reports for record in known):
        newest = found.setdefault(record.name, [])
        if newest and record.version > newest[0].version:
            newest.clear()
        if not newest or record.version == newest[0].version:
            newest.append(record)
    return {name: _of_most(records) for name, records in sorted(found.items())}


def _of_most(records: Sequence[DatasetRecord]) -> DatasetRecord:
    if all(record == records[0] for record in records):
        return records[0]
    texts = Counter(record.to_json() for record in records)
    text = max(sorted(texts), key=lambda one: texts[one])
    return next(record for record in records if record.to_json() == text)


def live(known: Known) -> dict[str, DatasetRecord]:
    """Those of datasets that are there."""
    return {name: record for name, record in known.items() if record.state != "removed"}


def records(nodes: Nodes) -> dict[str, DatasetRecord]:
    """Every dataset's newest record, by name."""
    return live(newest(nodes))


def fresh(known: Known, record: DatasetRecord) -> DatasetRecord:
    """The first record of a new dataset: above that of one of the same name that was removed, and dated."""
    removed = known.get(record.name)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return replace(record, version=removed.version + 1 if removed else 1, created=created)


def find(nodes: Nodes, name: str) -> DatasetRecord:
    """The newest record of dataset `name`. NotFound lists what there is."""
    return find_among(records(nodes), name)


def find_among(there: Mapping[str, DatasetRecord], name: str) -> DatasetRecord:
    """The same, of the records of live datasets."""
    if name not in there:
        raise NotFound("dataset", name, list(there), "" if there else "nothing has been ingested here; see `gpuflow ingest`")
    return there[name]


def publish(nodes: Nodes, record: DatasetRecord) -> bool:
    """Give `record` to every node, durably. Whether all of them now have it: one that had another of that version keeps that one."""
    return all(nodes.each_node(_publish, record).values())


def _publish(store: NodeStore, record: DatasetRecord) -> bool:
    store.put_record(record)
    kept = store.manifest.record(record.name)
    return kept is not None and kept.to_json() == record.to_json()


def _records(store: NodeStore) -> list[DatasetRecord]:
    return store.manifest.records()


def _replicas(store: NodeStore, dataset: str, array: str) -> NDArray[Any]:
    return store.manifest.replicas(dataset, array)


@dataclass(frozen=True)
class ChunkTable:
    """The newest generation of every chunk of one array.

    rows: (chunks,) REPLICA_DTYPE, generation 0 where no node has the chunk. holders: (chunks,) numbers of `sets`, which are sets of
    nodes out of `nodes`."""

    nodes: tuple[str, ...]
    rows: NDArray[Any]
    holders: Column
    sets: HolderSets

    @cached_property
    def present(self) -> NDArray[np.bool_]:
        """Whether some node has the chunk, in any generation."""
        return np.asarray(self.rows["generation"] > 0)

    @cached_property
    def holder_sets(self) -> list[frozenset[str]]:
        """Holders of each chunk."""
        return [self.sets[number] for number in self.holders.tolist()]

    def chunks_by_node(self, chunks: Sequence[int] | None = None) -> dict[str, int]:
        """Number of chunks, of all or of `chunks`, that each node holds at the newest generation."""
        counts = dict.fromkeys(self.nodes, 0)
        numbers = self.holders if chunks is None else self.holders[np.array(chunks, np.int64)]
        for number, count in zip(*np.unique(numbers, return_counts=True), strict=True):
            for node in self.sets[number]:
                counts[node] += int(count)
        return counts


def generations(nodes: Nodes, dataset: str, array: str, chunk: int) -> dict[str, list[int]]:
    """What generation of a chunk each node has, if it has one."""
    return nodes.each_node(_generation, dataset, array, chunk)


def _generation(store: NodeStore, dataset: str, array: str, chunk: int) -> list[int]:
    replica = store.manifest.replica(dataset, array, chunk)
    return [replica.generation] if replica else []


def chunk_table(nodes: Nodes, dataset: str, array: str, count: int) -> ChunkTable:
    """What the nodes hold of an array of `count` chunks."""
    return merge(nodes.each_node(_replicas, dataset, array), count)


def merge(reports: Mapping[str, NDArray[Any]], count: int) -> ChunkTable:
    """Newest generation wins; nodes that have it at the same generation hold it together. Pure."""
    sets, holders = HolderSets(), np.zeros(count, np.uint32)
    rows = np.zeros(count, dtype=REPLICA_DTYPE)
    rows["chunk"] = np.arange(count)
    for node in sorted(reports):
        report = reports[node]
        report = report[report["chunk"] < count] if len(report) and report["chunk"].max() >= count else report
        chunks = report["chunk"]
        known = holders[chunks], rows["generation"][chunks]
        newer, (holders[chunks], _) = newest_wins(sets, node, known, report["generation"])
        rows[chunks[newer]] = report[newer]
    return ChunkTable(tuple(sorted(reports)), rows, holders, sets)
