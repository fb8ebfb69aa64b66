"""What a loader reads: a dataset as it was when the loader was made. Chunks are known by their digests, so that one that changed since is
told from one that was copied, or made again just the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import xxhash

from gpuflow.datasets.catalog import ChunkTable, Nodes, chunk_table, find
from gpuflow.errors import ChunkLost, ConfigError, Problem
from gpuflow.storage.manifest import Replica
from gpuflow.storage.record import DatasetRecord


@dataclass(frozen=True)
class Content:
    """tables: of the arrays that are read, by path."""

    record: DatasetRecord
    tables: Mapping[str, ChunkTable]

    @property
    def name(self) -> str:
        """Of the dataset."""
        return self.record.name

    def replica(self, array: str, chunk: int) -> Replica:
        """A chunk as it was."""
        return Replica(self.name, array, *self.tables[array].rows[chunk].tolist())

    def holders(self, array: str, chunk: int) -> frozenset[str]:
        """Nodes that had it."""
        table = self.tables[array]
        return table.sets[int(table.holders[chunk])]

    def chunk_name(self, array: str, chunk: int) -> str:
        """As in messages."""
        return self.record.chunk_name(array, chunk)

    @cached_property
    def fingerprint(self) -> str:
        """Of the stored bytes of all chunks and of what they mean; wherever they lie, and however the dataset is called."""
        found = xxhash.xxh3_128()
        for path, table in sorted(self.tables.items()):
            metadata = self.record.array(path)
            found.update(repr((path, metadata.shape, metadata.document["data_type"], metadata.document["codecs"])).encode())
            found.update(table.rows["digest"].tobytes())
        return found.hexdigest()


def look(nodes: Nodes, name: str) -> DatasetRecord:
    """The record of a dataset that is complete. NotFound, or ConfigError when it is not."""
    record = find(nodes, name)
    if record.state != "ready":
        hint = "finish it first: run the same command again that made it"
        raise ConfigError([Problem(f"dataset {name!r} is not complete (it is {record.state})", "dataset", hint=hint)])
    return record


def content(nodes: Nodes, record: DatasetRecord, arrays: Sequence[str]) -> Content:
    """Of these arrays. ChunkLost when a chunk is on no node."""
    tables = {path: chunk_table(nodes, record.name, path, record.array(path).grid.size) for path in arrays}
    for path, table in tables.items():
        if not table.present.all():
            raise ChunkLost(record.chunk_name(path, int(table.present.argmin())), table.nodes)
    return Content(record, tables)
