"""Chunks moved to where there is more room, as after nodes have joined: copied first, dropped where they were when that is done.

There is no other state than what lies where: interrupted, the same command goes on. Never are there fewer copies than before."""

from __future__ import annotations

import time
from collections.abc import Mapping

from gpuflow.cluster.connection import Connection
from gpuflow.datasets import catalog
from gpuflow.datasets.balance import Move, moves
from gpuflow.datasets.catalog import ChunkTable
from gpuflow.datasets.survey import survey
from gpuflow.execution.copies import copying_work, receipt_of
from gpuflow.execution.dropping import drop, drop_surplus, racks_in, room_of
from gpuflow.execution.passes import Run
from gpuflow.execution.receipt import Receipt
from gpuflow.execution.submit import Batch, Progress, Silent


def rebalance(connection: Connection, name: str, *, rate: float | None = None, progress: Progress | None = None) -> Receipt:
    """Have each node hold a share of the dataset's chunks that fits its disk, on as many racks as before. rate: bytes/s that each node
    takes at most. NotFound without the dataset; NameTaken while a run changes it in place."""
    began = time.monotonic()
    connection.ask("gf_sync")
    record = catalog.find(connection, name)
    run = Run(connection, record, progress or Silent())
    drop_surplus(run, record.replicas["max"], rate)  # also what an interrupted one left
    work, planned = list[Batch](), dict[str, list[Move]]()
    if not run.stopped:
        room = connection.each_node(room_of)
        disks = {node: each.disk_nbytes for node, each in room.items()}
        found = survey(connection, [name], lambda path: True)
        for path, metadata in record.metadata.items():
            table = found.table(name, path, metadata.grid.size)
            planned[path] = moves(table, disks, racks_in(room))
            for move in planned[path]:
                work += copying_work(run, record, path, {move.target: move.chunks}, table, rate)
        run.submit("copy", work)
    if work and not run.stopped:
        drop(run, lambda path, table: _moved(planned[path], table), rate)
    return receipt_of(run, f"{name}: balanced", work, began)


def _moved(planned: list[Move], table: ChunkTable) -> Mapping[str, list[int]]:
    """Chunks that each node gives up: those that are where they were to go, by now."""
    given: dict[str, list[int]] = {}
    for move in planned:
        there = [chunk for chunk in move.chunks if {move.source, move.target} <= table.sets[int(table.holders[chunk])]]
        given.setdefault(move.source, []).extend(there)
    return {node: sorted(chunks) for node, chunks in given.items()}
