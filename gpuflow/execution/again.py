"""Chunks of an output that were made once and that no node has now: what is made in their place must outrank them.

They may lie on a node that is away, made of what the source was then. When it is back, the newest generation counts. So a run that finds
such chunks first raises the record's floor by more than a chunk gains by being made again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from gpuflow.datasets import catalog
from gpuflow.datasets.survey import Survey
from gpuflow.pipelines.plan import ChunkPlan
from gpuflow.storage.record import STRIDE, DatasetRecord


def outranking(found: Survey, record: DatasetRecord, chunks: Iterable[ChunkPlan]) -> DatasetRecord:
    """`record`, of a dataset that is to be written, with the floor that the pending `chunks` need."""
    there = catalog.live(found.records).get(record.name)
    if there is None or not any(_made_before(there, part) for part in chunks):
        return record
    return replace(record, version=there.version + 1, floor=there.floor + STRIDE)


def _made_before(there: DatasetRecord, part: ChunkPlan) -> bool:
    path = part.array.path
    if path not in there.arrays:
        return False
    size = there.becoming[path].grid.size
    return any(chunk < size and not part.newest[chunk] for chunk in part.pending)


def above_floor(part: ChunkPlan, record: DatasetRecord) -> ChunkPlan:
    """The same, as if of chunks that no node has the newest generation were the floor."""
    return replace(part, newest=[generation or record.floor for generation in part.newest]) if record.floor else part
