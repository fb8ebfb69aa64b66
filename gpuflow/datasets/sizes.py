"""How large the stored chunks of an array are."""

from __future__ import annotations

from dataclasses import dataclass

from gpuflow.datasets.catalog import ChunkTable


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


def stored_sizes(table: ChunkTable) -> StoredSizes:
    """Of the chunks that some node has."""
    nbytes = table.rows["nbytes"][table.present]
    full = int((nbytes > 0).sum())
    return StoredSizes(full, len(nbytes) - full, int(nbytes.sum()), int(nbytes.max(initial=0)))
