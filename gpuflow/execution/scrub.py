"""Every replica read and compared with its digest, on the node where it lies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpuflow.datasets.catalog import ChunkTable
from gpuflow.execution.lane import Lane
from gpuflow.execution.pace import at_rate
from gpuflow.execution.passes import Run
from gpuflow.execution.submit import Batch, Outcome
from gpuflow.storage.record import DatasetRecord

Chunks = NDArray[np.int64]
"""Their numbers."""


@dataclass(frozen=True)
class ScrubJob:
    """Read each chunk and forget it. rate: bytes/s of a task, None for as fast as may be."""

    records: tuple[DatasetRecord, ...]
    rate: float | None = None
    durable: bool = True

    def prepare(self, array: str) -> None:
        """Nothing has to be."""

    def process(self, lane: Lane, chunk: int) -> None:
        """Verify one chunk. ChunkCorrupt or ChunkLost says what is wrong with it."""
        if not self.rate:
            lane.read_ahead(chunk)
        with at_rate(self.rate) as moved:
            replica, _ = lane.read(chunk, heal=False)
            moved.append(replica.nbytes)
        lane.keep(chunk, None)

    def result(self, lane: Lane) -> None:
        """Nothing but the counts."""


def verify(run: Run, tables: Mapping[str, ChunkTable], chunks: Mapping[str, Chunks], rate: float | None = None) -> Outcome:
    """All replicas of the newest generation of `chunks`, by array. rate: bytes/s of each node. Failures of the outcome are what is
    damaged."""
    work = []
    for array, wanted in chunks.items():
        work += reading_work(run, array, held_by(tables[array], wanted), tables[array], rate)
    return run.submit("scrub", work)


def reading_work(
    run: Run, array: str, by_node: Mapping[str, list[int]], table: ChunkTable, rate: float | None = None
) -> list[Batch]:
    """For replicas of an array that nodes are to read and verify, at `rate` bytes/s of each."""
    work = []
    for node, held in by_node.items():
        threads = run.threads().get(node, 1)
        job = ScrubJob((run.source,), rate / threads if rate else None)
        work += run.pinned(job, array, {node: held}, table)
    return work


def held_by(table: ChunkTable, wanted: Chunks) -> dict[str, list[int]]:
    """Those of the wanted chunks whose newest generation each node has."""
    found: dict[str, list[int]] = {}
    holders = table.holders[wanted]
    for number in np.unique(holders).tolist():
        chunks = wanted[holders == number].tolist()
        for node in table.sets[number]:
            found.setdefault(node, []).extend(chunks)
    return {node: sorted(chunks) for node, chunks in sorted(found.items())}
