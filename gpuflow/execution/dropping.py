"""Copies that are not wanted any more, dropped: never the last, and none before those that stay have been read and found whole.

Of two who drop copies of one dataset, or change it in place, the second is refused by name; and a node gives up only what is still at the
generation that was looked at. So whatever is dropped, some node has the newest."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpuflow.datasets.catalog import ChunkTable
from gpuflow.datasets.leases import leased
from gpuflow.datasets.repair import Racks, copies_to_drop
from gpuflow.datasets.survey import Survey, survey
from gpuflow.execution.passes import Run
from gpuflow.execution.scrub import held_by, reading_work
from gpuflow.storage import dropping
from gpuflow.storage.node import NodeStore

Going = Mapping[str, Mapping[str, list[int]]]
"""Chunks of which nodes are to give up the newest generation: array -> node -> chunks."""


class Room(NamedTuple):
    """Of a node's disk, and where the node stands."""

    free_nbytes: int
    disk_nbytes: int
    rack: str


def room_of(store: NodeStore) -> Room:
    """For `each_node`."""
    state = os.statvfs(store.root)
    return Room(state.f_bavail * state.f_frsize, state.f_blocks * state.f_frsize, store.rack)


def racks_in(room: Mapping[str, Room]) -> Racks:
    """Of the nodes that say theirs."""
    return {node: each.rack for node, each in room.items() if each.rack}


def drop_surplus(run: Run, most: int, rate: float | None = None) -> None:
    """Of every chunk of the run's dataset no more than `most` copies stay, and none of older generations."""
    room = run.connection.each_node(room_of)
    free, racks = {node: each.free_nbytes for node, each in room.items()}, racks_in(room)
    drop(run, lambda path, table: copies_to_drop(table, most, free, racks), rate)


def drop(run: Run, surplus: Callable[[str, ChunkTable], Mapping[str, list[int]]], rate: float | None = None) -> None:
    """Drop what `surplus` names of each array, and what older generations there are of chunks. What stays is read first, and a chunk of
    which that is damaged keeps all its copies. NameTaken while a run changes the dataset in place."""
    record, connection = run.source, run.connection
    if not any(work for work in _to_do(run, survey(connection, [record.name], _every), surplus)):
        return
    with leased(connection, record.name, f"drop {run.run_id}", run.run_id):
        found = survey(connection, [record.name], _every)
        plans = {path: (going, older) for path, going, older in _to_do(run, found, surplus)}
        damaged = _damaged(run, found, plans, rate)
        for path, (going, older) in plans.items():
            rows = found.table(record.name, path, record.array(path).grid.size).rows
            given: dict[str, dict[int, int]] = {node: dict(chunks) for node, chunks in older.items()}
            for node, chunks in going.items():
                given.setdefault(node, {}).update(zip(chunks, rows["generation"][chunks].tolist(), strict=True))
            wanted = {node: {c: g for c, g in each.items() if (path, c) not in damaged} for node, each in given.items()}
            dropped = connection.each_node(_drop, record.name, path, wanted)
            for node, gone in dropped.items():
                run.outcome.tally.dropped += len(gone)
                newest = sorted(set(gone) & set(going.get(node, ())))
                connection.ask("gf_withdraw", node=node, dataset=record.name, array=path, chunks=newest)


def _to_do(
    run: Run, found: Survey, surplus: Callable[[str, ChunkTable], Mapping[str, list[int]]]
) -> list[tuple[str, Mapping[str, list[int]], dict[str, dict[int, int]]]]:
    """(array, chunks that each node gives up, what each node has of older generations), of arrays with either."""
    record, work = run.source, list[tuple[str, Mapping[str, list[int]], dict[str, dict[int, int]]]]()
    for path, metadata in record.metadata.items():
        table = found.table(record.name, path, metadata.grid.size)
        going = surplus(path, table)
        older = {node: _older(table, held) for node, held in found.held(record.name, path).items()}
        if any(going.values()) or any(older.values()):
            work.append((path, going, older))
    return work


def _older(table: ChunkTable, held: NDArray[Any]) -> dict[int, int]:
    held = held[held["chunk"] < len(table.rows)]
    old = held[held["generation"] < table.rows["generation"][held["chunk"]]]
    return dict(zip(old["chunk"].tolist(), old["generation"].tolist(), strict=True))


def _damaged(
    run: Run, found: Survey, plans: Mapping[str, tuple[Mapping[str, list[int]], dict[str, dict[int, int]]]], rate: float | None
) -> set[tuple[str, int]]:
    """(array, chunk) of which a copy that is to stay is not whole. They are failures of the run."""
    record, work = run.source, []
    checking = Run(run.connection, record, run.progress, run.patience_seconds, run.run_id)
    for path, (going, older) in plans.items():
        table = found.table(record.name, path, record.array(path).grid.size)
        concerned = {chunk for part in (going, older) for chunks in part.values() for chunk in chunks}
        staying = {
            node: sorted(set(chunks) - set(going.get(node, ())))
            for node, chunks in held_by(table, np.array(sorted(concerned), np.int64)).items()
        }
        work += reading_work(checking, path, {node: chunks for node, chunks in staying.items() if chunks}, table, rate)
    failures = checking.submit("check", work).tally.failures
    run.outcome.tally.failures += failures
    run.outcome.interrupted |= checking.outcome.interrupted
    if run.outcome.interrupted:
        return {(path, chunk) for path in plans for chunk in range(record.array(path).grid.size)}
    bad = {failure.chunk for failure in failures}
    indices = {failure.index for failure in failures}
    return {(path, chunk) for path in plans for chunk in indices if record.chunk_name(path, chunk) in bad}


def _drop(store: NodeStore, dataset: str, array: str, wanted: Mapping[str, Mapping[int, int]]) -> list[int]:
    return dropping.drop(store, dataset, array, wanted.get(store.node_id, {}))


def _every(path: str) -> bool:
    return True
