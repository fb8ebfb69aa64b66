"""Copies of chunks as they are, from node to node: as many as a dataset is to have, or in place of damaged ones."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace

from gpuflow.cluster.connection import Connection
from gpuflow.datasets import catalog
from gpuflow.datasets.catalog import ChunkTable
from gpuflow.datasets.repair import copies_to_make
from gpuflow.datasets.survey import Survey, survey
from gpuflow.errors import ClusterError, NotFound
from gpuflow.execution.dropping import drop_surplus, racks_in, room_of
from gpuflow.execution.lane import Lane
from gpuflow.execution.pace import at_rate
from gpuflow.execution.passes import Run
from gpuflow.execution.receipt import Receipt
from gpuflow.execution.submit import Batch, Progress, Silent
from gpuflow.execution.tally import Failure
from gpuflow.storage.record import DatasetRecord
from gpuflow.units import format_nbytes

_ROUNDS = 5
_COPY_PATIENCE_SECONDS = 10.0  # for a node that is to have a copy: its worker may be started again; else another one gets it


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
    """Have `wanted` copies of every chunk of a dataset, now and after every run that changes it: copies are made, or dropped down to as
    many as it may have, and with them what lies about of older generations. rate: bytes/s that each node takes at most.

    ClusterError when there are not so many nodes, or no room on them; NameTaken when copies are to be dropped while a run changes the
    dataset in place."""
    began = time.monotonic()
    connection.ask("gf_sync")
    record = catalog.find(connection, name)
    run = Run(connection, record, progress or Silent())
    work = _missing(run, record, _found(run), wanted, rate=rate)
    _check_room(run, [work])
    most = record.replicas["max"]
    kept = {"min": wanted, "max": max(wanted, most) if most > record.replicas["min"] else wanted}
    if kept != dict(record.replicas):
        catalog.publish(connection, record.next(replicas=kept))
    run.submit("copy", work)
    if not run.stopped:
        drop_surplus(run, kept["max"], rate)
    return receipt_of(run, f"{name}: {wanted} copies", work, began)


def drain(connection: Connection, node: str, *, rate: float | None = None, progress: Progress | None = None) -> list[Receipt]:
    """Copies elsewhere of all that `node` holds, so that it may leave. NotFound when there is no such node; ClusterError when the others
    are too few for the copies that a dataset is to have, or have no room for them."""
    if node not in connection.nodes():
        raise NotFound("node", node, sorted(connection.nodes()))
    connection.ask("gf_sync")
    receipts, records = [], catalog.records(connection)
    planned: dict[str, tuple[Run, list[Batch]]] = {}
    for record in records.values():
        check_nodes(connection, record, leaving=1)
    for name, record in records.items():
        run = Run(connection, record, progress or Silent())
        planned[name] = run, _missing(run, record, _found(run), record.replicas["min"], frozenset([node]), rate)
    if planned:
        _check_room(next(iter(planned.values()))[0], [work for _, work in planned.values()])
    for name, (run, work) in planned.items():
        began = time.monotonic()
        run.submit("copy", work)
        receipts.append(receipt_of(run, f"{name}: away from {node}", work, began))
    return receipts


def check_nodes(connection: Connection, record: DatasetRecord, leaving: int = 0) -> None:
    """ClusterError when the nodes, without `leaving` of them, are too few for the copies that the dataset is to have."""
    wanted, left = record.replicas["min"], len(connection.nodes()) - leaving
    if wanted > left:
        hint = f"start more, or ask for fewer: `gpuflow replicate {record.name} {max(1, left)}`"
        raise ClusterError(
            f"dataset {record.name!r} is to have {wanted} copies of each chunk, for which {left} nodes are left", hint
        )


def _check_room(run: Run, work: Sequence[Sequence[Batch]]) -> None:
    """ClusterError when a node has no room for what it is to get."""
    wanted: Counter[str] = Counter()
    for batch in (batch for part in work for batch in part):
        wanted[str(batch.group.node)] += batch.group.nbytes
    for node, room in run.connection.each_node(room_of).items():
        if wanted[node] > room.free_nbytes:
            reason = (
                f"node {node} has {format_nbytes(room.free_nbytes)} free, and is to get copies of {format_nbytes(wanted[node])}"
            )
            raise ClusterError(reason, "free some space, or start another node; nothing was copied")


def keep_up(run: Run, record: DatasetRecord, pending: Callable[[Survey], Sequence[Batch]]) -> None:
    """At the end of a run that made chunks of `record`: as many copies of them as it is to have. It has ended when one look at all nodes
    shows all of them.

    pending: which of the run's chunks are not made, as far as one look shows: a node that goes away takes with it what it alone had, and
    that is made again from the generation before, or from the source. ClusterError when there is no end of nodes that go away."""
    if record.replicas["min"] < 2:
        return
    names = list({run.source.name, record.name})
    for _ in range(_ROUNDS):
        if run.halted:
            return
        found = survey(run.connection, names, lambda path: True)
        again = pending(found)
        if again:
            run.outcome.tally.failures += _aside(run, run.source, "again", again)
            continue
        copies = _missing(run, record, found, record.replicas["min"])
        if not copies:
            return
        failures = _aside(run, record, "copy", copies)
        there = run.connection.nodes()
        if any(failure.node in there for failure in failures):
            run.outcome.tally.failures += failures
            return
        check_nodes(run.connection, record)
    raise ClusterError(f"nodes go away while {record.name!r} is copied", "run again when they are back")


def _aside(run: Run, source: DatasetRecord, title: str, work: Sequence[Batch]) -> list[Failure]:
    """Do it within `run`; what it read and shipped counts there, but its chunks do not. What failed."""
    patience_seconds = min(run.patience_seconds, _COPY_PATIENCE_SECONDS)
    aside = Run(run.connection, source, run.progress, patience_seconds, run.run_id)
    aside.submit(title, work)
    tally, other = run.outcome.tally, aside.outcome.tally
    tally.read += other.read
    tally.remote_chunks += other.remote_chunks
    tally.shipped += other.shipped
    tally.shipped_why.update(other.shipped_why)
    tally.healed += other.healed
    run.outcome.interrupted |= aside.outcome.interrupted
    return other.failures


def copy_anew(run: Run, damaged: Mapping[str, Mapping[str, Sequence[int]]]) -> None:
    """Write chunks again that are damaged where they lie, from peers that have them whole. damaged: array -> node -> chunks."""
    found = survey(run.connection, [run.source.name], damaged.__contains__)
    job = CopyJob((run.source,), anew=True)
    work = []
    for array, by_node in damaged.items():
        table = found.table(run.source.name, array, run.source.array(array).grid.size)
        work += run.pinned(job, array, by_node, table)
    run.submit("copy", work)


def _found(run: Run) -> Survey:
    """What there is of the run's dataset. What no node has is recorded as lost."""
    record = run.source
    found = survey(run.connection, [record.name], lambda path: True)
    for path, metadata in record.metadata.items():
        table = found.table(record.name, path, metadata.grid.size)
        if record.state == "ready":
            run.record_lost(path, (~table.present).nonzero()[0].tolist(), table.nodes)
    return found


def _missing(
    run: Run, record: DatasetRecord, found: Survey, wanted: int, leaving: Set[str] = frozenset(), rate: float | None = None
) -> list[Batch]:
    """Work for the copies that are missing of `record`."""
    room, work = run.connection.each_node(room_of), list[Batch]()
    for path, metadata in record.becoming.items():
        table = found.table(record.name, path, metadata.grid.size)
        free, racks = {node: each.free_nbytes for node, each in room.items()}, racks_in(room)
        work += copying_work(run, record, path, copies_to_make(table, wanted, free, leaving, racks), table, rate)
    return work


def copying_work(
    run: Run, record: DatasetRecord, array: str, by_node: Mapping[str, Sequence[int]], table: ChunkTable, rate: float | None
) -> list[Batch]:
    """For chunks of an array of `record` that nodes are to get, at `rate` bytes/s of each."""
    threads, copying, work = run.threads(), replace(run, source=record), list[Batch]()
    for node, chunks in by_node.items():
        job = CopyJob((record,), rate=rate / threads.get(node, 1) if rate else None)
        work += copying.pinned(job, array, {node: chunks}, table)
    return work


def receipt_of(run: Run, what: str, work: Sequence[Batch], began: float) -> Receipt:
    """Of a run that copies."""
    return Receipt(
        run_id=run.run_id,
        pipeline=what,
        fingerprint="",
        target=run.source.name,
        routing=run.connection.info()["routing"],
        total=sum(len(batch.group.chunks) for batch in work) + len(run.outcome.tally.failures),
        planned_skips=0,
        wall_seconds=time.monotonic() - began,
        statistics_chunks=0,
        outcome=run.outcome,
        sent=run.connection.sent_bytes(run.run_id),
        nodes=tuple(run.connection.nodes()),
    )
