"""A source becomes a dataset: scanned in the client, its chunks read by the workers of the nodes that are to hold them.

An ingest that was interrupted continues; one that was finished does again only what is damaged. Nothing decides that but the recipes in
the manifests."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from gpuflow.cluster.connection import Connection
from gpuflow.cluster.messages import ChunkGroup
from gpuflow.datasets import catalog, snapshots
from gpuflow.datasets.placement import assign
from gpuflow.datasets.survey import Survey, survey
from gpuflow.errors import ClusterError, ConfigError, NameTaken, Problem, SourceError
from gpuflow.execution.copies import check_nodes, keep_up
from gpuflow.execution.groups import by_holders
from gpuflow.execution.lane import Lane
from gpuflow.execution.passes import Run
from gpuflow.execution.receipt import Receipt
from gpuflow.execution.submit import Batch, Progress, Silent
from gpuflow.objectstore.sources.base import Layout, Source
from gpuflow.pipelines.fingerprint import fingerprint, recipe
from gpuflow.pipelines.spec import check_dataset_name
from gpuflow.steps.parameters import StepError
from gpuflow.storage.disk import digest, read_file
from gpuflow.storage.node import NodeStore
from gpuflow.storage.record import DatasetRecord


@dataclass(frozen=True)
class IngestJob:
    """Read a chunk from the source, or link its file, and commit it on this node."""

    records: tuple[DatasetRecord, ...]
    source: Source
    made_by: str
    link: bool = False
    durable: bool = True

    def prepare(self, array: str) -> None:
        """Nothing has to be."""

    def process(self, lane: Lane, chunk: int) -> None:
        """Take in one chunk; one that is absent in the source is recorded as fill value."""
        group, inputs = lane.group, digest(f"{lane.group.array}:{chunk}".encode())
        wanted = recipe(self.made_by, inputs)
        there = lane.there(group.dataset).get(chunk)
        if there is not None and there.recipe == wanted:
            return lane.skip()
        path = self.source.path(group.array, chunk) if self.link else None
        with lane.tally.timed("read"):
            data = self._read(group.array, chunk, path)
        lane.tally.read += len(data or b"")
        lane.tally.local_chunks += 1
        replica, here = lane.output(group.dataset, chunk, data or b"", wanted, inputs)
        with lane.tally.timed("commit"):
            if data is None:
                staged = lane.store.stage_empty(replica, replaces=here)
            elif path is not None:
                staged = lane.store.stage_link(replica, path, replaces=here)
            else:
                staged = lane.store.stage(replica, data, replaces=here)
        lane.add(staged)

    def _read(self, array: str, chunk: int, path: Path | None) -> bytes | None:
        if self.link:
            return read_file(path) if path is not None else None
        return self.source.read(array, chunk)

    def result(self, lane: Lane) -> None:
        """Everything is in the manifest."""


def ingest_source(
    connection: Connection,
    source: Source,
    name: str,
    *,
    link: bool = False,
    replicas: Mapping[str, int] | None = None,
    progress: Progress | None = None,
) -> Receipt:
    """Make dataset `name` of `source`, its chunks spread evenly over the live nodes; with `link`, as hard links of the source's files.

    replicas: on how many nodes each chunk is to lie at the end, "min", and may come to lie, "max"; None leaves it as it is, or 1.

    NameTaken when the name is in use for something else. The receipt tells what failed."""
    began = time.monotonic()
    check_name(name)
    connection.ask("gf_sync")
    layout = source.layout()
    record = _record(connection, source, layout, name).keeping(replicas)
    check_nodes(connection, record)
    nodes = _linking_nodes(connection, source) if link else list(connection.nodes())
    if not catalog.publish(connection, record):
        raise NameTaken(name, "is being made by another run; run again when that has ended")
    run = Run(connection, record, progress or Silent())
    made_by = fingerprint({"ingest": source.identity()})
    job = IngestJob((record,), source, made_by, link)
    work = _work(run, job, nodes, survey(connection, [name], record.arrays.__contains__))
    run.submit("ingest", work)
    keep_up(run, record, partial(_work, run, job, nodes))
    if record.state != "ready" and not run.stopped:
        catalog.publish(connection, record.next(state="ready"))
    total = sum(metadata.grid.size for metadata in record.metadata.values())
    return Receipt(
        run_id=run.run_id,
        pipeline=f"{source.location} -> {name}",
        fingerprint=made_by,
        target=name,
        routing=connection.info()["routing"],
        total=total,
        planned_skips=total - sum(len(batch.group.chunks) for batch in work),
        wall_seconds=time.monotonic() - began,
        statistics_chunks=0,
        outcome=run.outcome,
        sent=connection.sent_bytes(run.run_id),
        nodes=tuple(connection.nodes()),
        notes=layout.notes,
    )


def check_name(name: str) -> None:
    """ConfigError when no dataset can be called that."""
    try:
        check_dataset_name(name)
    except StepError as error:
        raise ConfigError([Problem(error.message, "name", hint=error.hint)]) from error


def _record(connection: Connection, source: Source, layout: Layout, name: str) -> DatasetRecord:
    """The dataset's record as it is, when this very source made it, else a new one."""
    every = catalog.newest(connection)
    there = catalog.live(every).get(name)
    origin = {"kind": "ingest", "location": source.location, "identity": source.identity(), "options": dict(source.options)}
    arrays = {path: metadata.document for path, metadata in layout.arrays.items()}
    if there is None:
        return catalog.fresh(every, DatasetRecord(name=name, arrays=arrays, groups=layout.groups, origin=origin))
    if there.transforms:
        raise NameTaken(
            name, "was changed in place since it was ingested; ingest under another name, or remove it with `gpuflow remove`"
        )
    if there.origin.get("appended"):
        count = len(there.origin["appended"])
        raise NameTaken(
            name, f"has grown by {count} more sources since it was ingested; add others with `gpuflow ingest --append`"
        )
    if not there.is_made_like(origin):
        same = there.origin.get("location") == source.location
        reason = "was ingested from this source with other options or other content" if same else "exists already"
        raise NameTaken(name, f"{reason}; choose another name, or remove it with `gpuflow remove`")
    if there.arrays != arrays:
        reason = "was ingested by another version of gpuflow, which stores it in another form"
        raise NameTaken(name, f"{reason}; choose another name, or remove it with `gpuflow remove`")
    return there


def _can_link(store: NodeStore, location: str) -> bool:
    try:
        return os.stat(location).st_dev == os.stat(store.root).st_dev
    except OSError:
        return False


def _linking_nodes(connection: Connection, source: Source) -> list[str]:
    """Nodes that have the source on the file system of their store, where a hard link can be made."""
    if not source.linkable:
        hint = "ingest it without --link"
        raise SourceError(source.location, "cannot be linked: only a local Zarr whose chunks need no conversion can", hint)
    nodes = [node for node, can in connection.each_node(_can_link, source.location).items() if can]
    if not nodes:
        hint = "put the store root on the same file system as the source, or ingest without --link"
        raise SourceError(source.location, "is on no node's file system", hint)
    return nodes


def _work(run: Run, job: IngestJob, nodes: Sequence[str], found: Survey, arrays: Iterable[str] = ()) -> list[Batch]:
    """For the chunks that are not there, and have not failed. A chunk that is there, damaged, stays on its node."""
    failed = {failure.chunk for failure in run.outcome.tally.failures}
    workers = run.connection.nodes()
    live = [node for node in nodes if node in workers]
    if not live:
        raise ClusterError(f"none of the nodes that are to hold {run.source.name!r} is there", "run again when they are back")
    slots = {node: len(addresses) for node, addresses in workers.items()}
    return [batch for path in arrays or run.source.arrays for batch in _batches(run, path, job, live, slots, found, failed)]


def _batches(
    run: Run, array: str, job: IngestJob, nodes: Sequence[str], slots: Mapping[str, int], found: Survey, failed: Set[str]
) -> list[Batch]:
    record, metadata = run.source, run.source.array(array)
    table = found.table(record.name, array, metadata.grid.size)
    recipes = [recipe(job.made_by, digest(f"{array}:{chunk}".encode())) for chunk in range(metadata.grid.size)]
    pending = [chunk for chunk, wanted in enumerate(recipes) if table.rows["recipe"][chunk].tobytes() != wanted]
    pending = [chunk for chunk in pending if not failed or record.chunk_name(array, chunk) not in failed]
    placed = assign(metadata.grid.size, nodes)
    target = [min(table.holder_sets[chunk], default=placed[chunk]) for chunk in pending]
    newest = table.rows["generation"].tolist()
    nbytes = metadata.chunk_nbytes or 1
    return [
        Batch(
            ChunkGroup(
                run=run.run_id,
                dataset=record.name,
                array=array,
                chunks=tuple(chunks),
                generations=(0,) * len(chunks),
                newest=tuple(newest[chunk] for chunk in chunks),
                nbytes=nbytes * len(chunks),
                work=nbytes * len(chunks),
                node=node,
                movable=False,
            ),
            job,
            slots[node],
        )
        for node, chunks, _ in by_holders(pending, target, slots, sum(slots.values()))
    ]


def ingest_again(connection: Connection, source: Source, record: DatasetRecord, arrays: Sequence[str]) -> None:
    """Whatever is damaged of some arrays of a dataset that `source` made."""
    run = Run(connection, record)
    job = IngestJob((record,), source, fingerprint({"ingest": source.identity()}))
    found = survey(connection, [record.name], record.arrays.__contains__)
    run.submit("ingest", _work(run, job, list(connection.nodes()), found, arrays))


def remove_dataset(connection: Connection, name: str, *, with_snapshots: bool = False) -> None:
    """Delete a dataset from every live node; a node that is away deletes it when it is back. NotFound when there is none, NameTaken when it
    has snapshots that are not to go with it."""
    record = catalog.find(connection, name)
    if record.snapshots and not with_snapshots:
        tags = ", ".join(sorted(record.snapshots))
        raise NameTaken(name, f"has snapshots: {tags}; remove it with --with-snapshots, or delete them first")
    gone = record.next(state="removed", arrays={}, groups={}, statistics={}, transforms=(), snapshots={})
    catalog.publish(connection, gone)
    snapshots.sweep(connection, gone)
    connection.ask("gf_drop", dataset=name)
