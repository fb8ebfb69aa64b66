"""A dataset in figures, for a look at it: in a fraction of the time that its tables take, also with 10^6 chunks.

Counts and bytes are summed on the nodes; which node has a chunk is asked of some chunks only, evenly over the array."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, prod

from gpuflow.datasets.catalog import Nodes
from gpuflow.grid import Grid
from gpuflow.storage.node import NodeStore
from gpuflow.storage.record import DatasetRecord
from gpuflow.storage.snapshots import kept_generations, kept_totals

_CELLS, _COLUMNS = 1600, 80
"""Chunks of an array that are asked for, at most, and how many of them stand in a row."""


@dataclass(frozen=True)
class ArraySummary:
    """nbytes: encoded, of all copies; copies: replicas on all nodes; by_node: chunks of each. cells: rows of some chunks, each with the
    nodes that have its newest generation; every: one in how many chunks along each axis they are; chunks: their numbers."""

    nbytes: int
    copies: int
    by_node: Mapping[str, int]
    cells: Sequence[Sequence[frozenset[str]]]
    every: tuple[int, ...]
    chunks: Sequence[Sequence[int]]


def summarize(nodes: Nodes, record: DatasetRecord, snapshot: str | None = None) -> dict[str, ArraySummary]:
    """Every array of the dataset as it is, or as the nodes keep it for the snapshot of that identity."""
    picked = {path: _pick(metadata.grid) for path, metadata in record.metadata.items()}
    asked = {path: [chunk for row in rows for chunk in row] for path, (rows, _) in picked.items()}
    answers = nodes.each_node(_look_at_kept, snapshot, asked) if snapshot else nodes.each_node(_look, record.name, asked)
    found = {}
    for path, (rows, every) in picked.items():
        newest: dict[int, int] = {}
        for answer in answers.values():
            for chunk, generation in answer[path][2].items():
                newest[chunk] = max(newest.get(chunk, 0), generation)
        holders = {
            chunk: frozenset(node for node, answer in answers.items() if answer[path][2].get(chunk) == generation)
            for chunk, generation in newest.items()
        }
        cells = [[holders.get(chunk, frozenset()) for chunk in row] for row in rows]
        by_node = {node: answer[path][0] for node, answer in answers.items()}
        found[path] = ArraySummary(sum(a[path][1] for a in answers.values()), sum(by_node.values()), by_node, cells, every, rows)
    return found


_Seen = dict[str, tuple[int, int, dict[int, int]]]


def _look(store: NodeStore, dataset: str, asked: Mapping[str, Sequence[int]]) -> _Seen:
    """By array: chunks and bytes here, and the generations of those of `asked` that are here."""
    found = {}
    for path, chunks in asked.items():
        count, nbytes = store.manifest.totals(dataset, path)
        here = store.manifest.replicas_of(dataset, path, chunks) if count else {}
        found[path] = count, nbytes, {chunk: replica.generation for chunk, replica in here.items()}
    return found


def _look_at_kept(store: NodeStore, identity: str, asked: Mapping[str, Sequence[int]]) -> _Seen:
    """The same of a snapshot."""
    return {
        path: (*kept_totals(store, identity, path), kept_generations(store, identity, path, chunks))
        for path, chunks in asked.items()
    }


def _pick(grid: Grid) -> tuple[list[list[int]], tuple[int, ...]]:
    """Chunks of a grid in rows, all of them or evenly some. The last axis that is longer than one runs along the rows."""
    every = [1] * len(grid.counts)
    while prod(_numbers(grid, every)) > _CELLS:
        counts = _numbers(grid, every)
        every[counts.index(max(counts))] *= 2
    numbers = [range(0, count, step) for count, step in zip(grid.counts, every, strict=True)]
    chunks = [0] if grid.size else []
    for axis, positions in enumerate(numbers):
        inner = prod(grid.counts[axis + 1 :])
        chunks = [chunk + position * inner for chunk in chunks for position in positions]
    width = next((len(positions) for positions in reversed(numbers) if len(positions) > 1), 1)
    if width < 8:
        width = max(width, min(_COLUMNS, ceil(len(chunks) ** 0.5)))
    part = ceil(width / ceil(width / _COLUMNS))  # a long axis is cut into lines of nearly one length
    lines = [
        chunks[start + at : start + min(at + part, width)]
        for start in range(0, len(chunks), width)
        for at in range(0, width, part)
    ]
    return [line for line in lines if line], tuple(every)


def _numbers(grid: Grid, every: Sequence[int]) -> list[int]:
    return [ceil(count / step) for count, step in zip(grid.counts, every, strict=True)]
