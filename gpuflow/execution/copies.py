"""Copies of chunks as they are, from node to node: as many as a dataset is to have, or in place of damaged ones."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from gpuflow.cluster.connection import Connection
from gpuflow.datasets import catalog
from gpuflow.datasets.repair import copies_to_make
from gpuflow.datasets.survey import survey
from gpuflow.errors import ClusterError, NotFound
from gpuflow.execution.lane import Lane
from gpuflow.execution.pace import at_rate
from gpuflow.execution.passes import Run
from gpuflow.execution.receipt import Receipt
from gpuflow.execution.submit import Batch, Progress, Silent
from gpuflow.storage.node import NodeStore
from gpuflow.storage.record import DatasetRecord


@dataclass(frozen=True)
class CopyJob:
    """Have each chunk here as a peer has it. anew: also where it is here, which is damaged. rate: bytes/s of a task."""

    records: tuple[DatasetRecord, ...]
    anew: bool = False
    rate: float | None = None
    durable: bool = True

    def prepare(self, array: str) -> None:
        """Nothing has to be."""

    def process(self, lane: Lane, chunk: int) -> None:
        """Copy one chunk."""
        if lane.holds(chunk) and not self.anew:
            return lane.skip()
        here = lane.there(lane.group.dataset).get(chunk)
        with at_rate(self.rate) as moved:
            replica, data = lane.fetch(chunk)
            moved.append(replica.nbytes)
            with lane.tally.timed("commit"):
                staged = lane.store.stage_copy(replica, data, replaces=here.generation if here else 0)
        lane.add(staged)

    def result(self, lane: Lane) -> None:
        """Everything is in the manifest."""


def replicate(
    connection: Connection, name: str, wanted: int, *, rate: float | None = None, progress: Progress | None = None
) -> Receipt:
    """Have at least `wanted` copies of every chunk of a dataset, now and after every run that changes it. rate: bytes/s that each node
    takes at most. ClusterError when there are not so many nodes."""
    began = time.monotonic()
    connection.ask("gf_sync")
    record = catalog.find(connection, name)
    run = Run(connection, record, progress or Silent())
    work = _missing(run, wanted, rate=rate)
    kept = {"min": wanted, "max": max(wanted, record.replicas["max"])}
    if kept != dict(record.replicas):
        catalog.publish(connection, record.next(replicas=kept))
    run.submit("copy", work)
    return _receipt(run, f"{name}: {wanted} copies", name, work, began)


def drain(connection: Connection, node: str, *, rate: float | None = None, progress: Progress | None = None) -> list[Receipt]:
    """Copies elsewhere of all that `node` holds, so that it may leave. NotFound when there is no such node; ClusterError when the others
    are too few for the copies that a dataset is to have."""
    if node not in connection.nodes():
        raise NotFound("node", node, sorted(connection.nodes()))
    connection.ask("gf_sync")
    receipts, records = [], catalog.records(connection)
    for record in records.values():
        check_nodes(connection, record, leaving=1)
    for name, record in records.items():
        began, run = time.monotonic(), Run(connection, record, progress or Silent())
        work = _missing(run, record.replicas["min"], frozenset([node]), rate)
        run.submit("copy", work)
        receipts.append(_receipt(run, f"{name}: away from {node}", name, work, began))
    return receipts


def check_nodes(connection: Connection, record: DatasetRecord, leaving: int = 0) -> None:
    """ClusterError when the nodes, without `leaving` of them, are too few for the copies that the dataset is to have."""
    wanted, left = record.replicas["min"], len(connection.nodes()) - leaving
    if wanted > left:
        hint = f"start more, or ask for fewer: `gpuflow replicate {record.name} {max(1, left)}`"
        raise ClusterError(
            f"dataset {record.name!r} is to have {wanted} copies of each chunk, for which {left} nodes are left", hint
        )


def refresh(run: Run, record: DatasetRecord) -> None:
    """At the end of a run that changed chunks of `record`: as many copies of them as it is to have. The run has not ended before.

    Until then the copies of a chunk that was changed in place are of the generation before, from which a run that goes on after a crash
    makes it again, should the node be lost that had the new one."""
    if record.replicas["min"] > 1 and not run.stopped:
        copying = Run(run.connection, record, run.progress, run.patience_seconds, run.run_id)
        copying.submit("copy", _missing(copying, record.replicas["min"]))
        outcome, tally = run.outcome, copying.outcome.tally
        outcome.tally.read += tally.read
        outcome.tally.remote_chunks += tally.remote_chunks
        outcome.tally.shipped += tally.shipped
        outcome.tally.shipped_why.update(tally.shipped_why)
        outcome.tally.failures += tally.failures
        outcome.interrupted |= copying.outcome.interrupted


def copy_anew(run: Run, damaged: Mapping[str, Mapping[str, Sequence[int]]]) -> None:
    """Write chunks again that are damaged where they lie, from peers that have them whole. damaged: array -> node -> chunks."""
    found = survey(run.connection, [run.source.name], damaged.__contains__)
    job = CopyJob((run.source,), anew=True)
    work = []
    for array, by_node in damaged.items():
        table = found.table(run.source.name, array, run.source.array(array).grid.size)
        work += run.pinned(job, array, by_node, table)
    run.submit("copy", work)


def _missing(run: Run, wanted: int, leaving: Set[str] = frozenset(), rate: float | None = None) -> list[Batch]:
    """Work for the copies that are missing. What no node has is recorded as lost."""
    record, connection = run.source, run.connection
    found = survey(connection, [record.name], lambda path: True)
    free, threads = connection.each_node(_free_nbytes), run.threads()
    work = []
    for path, metadata in record.metadata.items():
        table = found.table(record.name, path, metadata.grid.size)
        if record.state == "ready":
            run.record_lost(path, (~table.present).nonzero()[0].tolist(), table.nodes)
        for node, chunks in copies_to_make(table, wanted, free, leaving).items():
            job = CopyJob((record,), rate=rate / threads.get(node, 1) if rate else None)
            work += run.pinned(job, path, {node: chunks}, table)
    return work


def _free_nbytes(store: NodeStore) -> int:
    return shutil.disk_usage(store.root).free


def _receipt(run: Run, what: str, name: str, work: Sequence[Batch], began: float) -> Receipt:
    return Receipt(
        run_id=run.run_id,
        pipeline=what,
        fingerprint="",
        target=name,
        routing=run.connection.info()["routing"],
        total=sum(len(batch.group.chunks) for batch in work) + len(run.outcome.tally.failures),
        planned_skips=0,
        wall_seconds=time.monotonic() - began,
        statistics_chunks=0,
        outcome=run.outcome,
        sent=run.connection.sent_bytes(run.run_id),
        nodes=tuple(run.connection.nodes()),
    )
