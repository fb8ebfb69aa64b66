"""Sources appended to a dataset: their slices become chunks behind those that are there.

What is to become is published first, then the chunks are committed, then the new shape is published: whoever is killed when leaves the
dataset as it was, or grown, and the same call goes on. The record says which sources are in, so that none gets in twice."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuflow.cluster.connection import Connection
from gpuflow.datasets import catalog
from gpuflow.datasets.growth import Axis, axes_of, left_over, lengthened
from gpuflow.datasets.leases import leased
from gpuflow.datasets.values import MOST_NBYTES, array_values, chunk_values
from gpuflow.errors import NameTaken, SourceError
from gpuflow.execution.copies import check_nodes
from gpuflow.execution.passes import Run
from gpuflow.execution.receipt import Receipt
from gpuflow.execution.submit import Progress, Silent
from gpuflow.objectstore.coordinates import coordinates_of, identity_of, source_values
from gpuflow.objectstore.fit import check_fit, check_follows, length_of
from gpuflow.objectstore.growing import Piece, slim
from gpuflow.objectstore.grown import make_chunks, new_chunks, wanted_recipes
from gpuflow.objectstore.ingest import check_name, ingest_source
from gpuflow.objectstore.parts import Part, extended, parts_of
from gpuflow.objectstore.sources.base import Source
from gpuflow.pipelines.fingerprint import fingerprint
from gpuflow.storage import dropping
from gpuflow.storage.leases import ADDING
from gpuflow.storage.node import NodeStore
from gpuflow.storage.record import STRIDE, DatasetRecord

_PUBLISH_TRIES = 20  # statistics or snapshots of others may come between


def append_sources(
    connection: Connection,
    sources: Sequence[Source],
    name: str,
    *,
    axis: Axis | None = None,
    replicas: Mapping[str, int] | None = None,
    progress: Progress | None = None,
) -> Receipt:
    """Append `sources`, in order and all or none, to dataset `name` along `axis`; without the dataset, the first one makes it.

    Sources that are in already are left out, and named in the receipt's notes. ConfigError, SourceError for what does not fit; NameTaken
    while a run changes the dataset, and for a dataset that was made or changed otherwise than by ingesting."""
    check_name(name)
    connection.ask("gf_sync")
    same = fingerprint([source.identity() for source in sources])
    run_id = uuid.uuid4().hex[:12]
    first, begins = None, _beginning(catalog.records(connection).get(name), sources)
    if begins is not None:
        first = ingest_source(connection, begins, name, replicas=replicas, progress=progress)
        sources = [source for source in sources if source is not begins]
        if not sources or first.status != "done":
            return first
    # Nobody else changes the dataset meanwhile; one that died with the same sources gives way.
    with leased(connection, name, f"{ADDING}{same}", f"{ADDING}{run_id}"):
        receipt = _append(connection, sources, name, axis, run_id, progress, first)
    return replace(receipt, fingerprint=same)


def _beginning(record: DatasetRecord | None, sources: Sequence[Source]) -> Source | None:
    """The source that makes the dataset: where there is none, or the making of it was not finished."""
    if record is None:
        return sources[0]
    if record.state == "writing" and record.origin.get("kind") == "ingest":
        return next((source for source in sources if source.identity() == record.origin["identity"]), None)
    return None


@dataclass(frozen=True)
class _Growth:
    """What is to be done. record: with its growth, published. parts: of the whole dataset; fresh: pieces for those that are new."""

    record: DatasetRecord
    axes: Mapping[str, int]
    length: int
    parts: tuple[Part, ...]
    fresh: tuple[Piece, ...]
    base: int


def _append(
    connection: Connection,
    sources: Sequence[Source],
    name: str,
    axis: Axis | None,
    run_id: str,
    progress: Progress | None,
    first: Receipt | None,
) -> Receipt:
    began, notes = time.monotonic(), list[str]()
    record = catalog.find(connection, name)
    check_appendable(record)
    identities = {source.location: source.identity() for source in sources}
    growth = _planned(connection, record, sources, axis, notes)
    run = Run(connection, record, progress or Silent(), run_id=run_id)
    total = skipped = 0
    if growth is not None:
        check_nodes(connection, record)
        if growth.record is not record:
            _announce(connection, record, growth.record)
        chunks = new_chunks(growth.record, growth.axes, growth.length)
        recipes = wanted_recipes(growth.record, growth.axes, growth.parts, chunks)
        pieces = (Piece(None, 0, growth.length), *growth.fresh)
        run = Run(connection, growth.record, progress or Silent(), run_id=run_id)
        skipped = make_chunks(run, growth.axes, pieces, recipes, growth.base)
        total = sum(map(len, recipes.values()))
        if not run.stopped:
            _check_unchanged(growth.fresh, identities)
            _finish(connection, growth.record)
    if first is not None:
        run.outcome.tally.add(first.outcome.tally)
        total, skipped = total + first.total, skipped + first.planned_skips
        notes = [*first.notes, *notes]
    locations = ", ".join(source.location for source in sources[:3]) + (", ..." if len(sources) > 3 else "")
    return Receipt(
        run_id=run_id,
        pipeline=f"{locations} -> {name}",
        fingerprint="",
        target=name,
        routing=connection.info()["routing"],
        total=total,
        planned_skips=skipped,
        wall_seconds=time.monotonic() - began,
        statistics_chunks=0,
        outcome=run.outcome,
        sent=connection.sent_bytes(run_id),
        nodes=tuple(connection.nodes()),
        notes=tuple(notes),
    )


def _check_unchanged(pieces: Sequence[Piece], identities: Mapping[str, str]) -> None:
    """SourceError for a source that is not what it was before it was read: some of it may be of before, and some of after."""
    for source in (piece.source for piece in pieces):
        if source is not None and source.identity() != identities[source.location]:
            raise SourceError(source.location, "has changed while it was read", "append it again once it is complete")


def check_appendable(record: DatasetRecord) -> None:
    """NameTaken for a dataset to which nothing can be appended."""
    name = record.name
    kind = record.origin.get("kind")
    if record.state != "ready":
        raise NameTaken(name, "is not complete; finish it first: run the same command again that made it")
    if kind == "pipeline":
        source = record.origin.get("source")
        raise NameTaken(name, f"is made by a pipeline; append to its source {source!r}, and run the pipeline again")
    if kind != "ingest":
        raise NameTaken(name, "was not ingested; append to it with zarr or xarray: `gpuflow.open(name, mode='a')`")
    if record.transforms:
        reason = "was changed in place since it was ingested, and what is appended would not be; ingest under another name"
        raise NameTaken(name, reason)
    if record.snapshots:
        raise NameTaken(name, "has snapshots, which are of its arrays as they are; delete them first")


def _planned(
    connection: Connection, record: DatasetRecord, sources: Sequence[Source], axis: Axis | None, notes: list[str]
) -> _Growth | None:
    """What is to be done for those of `sources` that are not in; None when all are. Nothing is written."""
    along = record.origin.get("along", {}).get("axis")
    axis, axes = axes_of(record.name, record.metadata, axis if axis is not None or along is None else along)
    if along is not None and along != axis:
        raise NameTaken(record.name, f"has grown along `{along}` so far, and cannot grow along `{axis}` too")
    length = length_of(record, axes)
    parts, fresh = parts_of(record.origin, length), list[Piece]()
    known = {part.identity: part for part in parts}
    ends = _Ends(connection, record, axis, axes)
    for source in sources:
        arrays = source.layout().arrays
        count = check_fit(record, axis, axes, source.location, arrays)
        piece = Piece(source, parts[-1].stop, parts[-1].stop + count, slim(arrays, axes))
        values = {path: source_values(piece, path) for path in ends.coordinates}
        identity = identity_of(source, values)
        there = known.get(identity) or known.get(source.identity())
        if there is not None:
            notes.append(f"{source.location} is in already, as {axis} {there.start} to {there.stop}: nothing was done")
            continue
        _check_new(source, parts, bool(values))
        ends.check(source.location, values)
        notes += _left_alone(connection, record, axes, source)
        part = Part(source.location, identity, source.options, piece.start, piece.stop)
        parts, known = (*parts, part), {**known, identity: part}
        fresh.append(piece)
    if not fresh:
        return None
    documents = {path: lengthened(record.array(path), along_axis, parts[-1].stop).document for path, along_axis in axes.items()}
    origin = extended(record.origin, axis, length, parts[-len(fresh) :])
    base = int((record.growth.get("origin") or record.origin).get("along", {}).get("base", 0))
    wanted = _growth(documents, origin, base)
    if record.growth and dict(record.growth) != wanted:
        base += STRIDE
        wanted = _growth(documents, origin, base)
    grown = record if dict(record.growth) == wanted else record.next(growth=wanted)
    return _Growth(grown, axes, length, parts, tuple(fresh), base)


def _growth(documents: Mapping[str, Any], origin: Mapping[str, Any], base: int) -> dict[str, Any]:
    """What a dataset is becoming. base: a generation that its new chunks are above."""
    along = {**origin["along"], "base": base} if base else origin["along"]
    return {"arrays": documents, "origin": {**origin, "along": along}}


def _check_new(source: Source, parts: Sequence[Part], has_coordinates: bool) -> None:
    """SourceError for a source that was appended with other content, where no coordinate tells the two apart."""
    same = [part for part in parts if part.location == source.location]
    if same and not has_coordinates:
        reason = f"was appended already, as {same[-1].start} to {same[-1].stop}, and has other content now"
        raise SourceError(source.location, reason, "if what it holds now is to come behind that, give it another name")


class _Ends:
    """Where the coordinates of the dimension end: arrays of that one dimension, called as it is."""

    def __init__(self, connection: Connection, record: DatasetRecord, axis: Axis, axes: Mapping[str, int]) -> None:
        self.coordinates = coordinates_of(record, axis, axes)
        self._ends: dict[str, NDArray[Any]] = {}
        for path in self.coordinates:
            size = record.array(path).grid.size
            blocks = chunk_values(connection, record, path, range(max(0, size - 2), size))
            self._ends[path] = np.concatenate([np.empty(0, record.array(path).dtype), *blocks.values()])

    def check(self, location: str, values: Mapping[str, NDArray[Any]]) -> None:
        """SourceError when one does not go on; then it ends where `values` do."""
        for path, begin in values.items():
            check_follows(location, path, self._ends[path], begin)
            self._ends[path] = np.concatenate([self._ends[path], begin])[-2:]


def _left_alone(connection: Connection, record: DatasetRecord, axes: Mapping[str, int], source: Source) -> list[str]:
    """What is to be said of arrays that do not grow."""
    layout, notes = source.layout(), []
    for path, metadata in layout.arrays.items():
        if path in axes:
            continue
        if path not in record.arrays:
            notes.append(f"{path} of {source.location} is left out: the dataset has no such array")
            continue
        mine = record.array(path)
        same = metadata.shape == mine.shape and metadata.dtype == mine.dtype
        if same and (mine.dtype is None or prod(mine.shape) * mine.dtype.itemsize > MOST_NBYTES):
            notes.append(f"{path} stays as it is, and was not compared with that of {source.location}")
            continue
        here = array_values(connection, record, path) if same else None
        theirs = source_values(Piece(source, 0, 0, slim(layout.arrays, [path])), path) if same else None
        if here is None or theirs is None or here.tobytes() != theirs.tobytes():
            notes.append(f"{path} stays as it is: that of {source.location} is another one")
    return notes


def _announce(connection: Connection, record: DatasetRecord, grown: DatasetRecord) -> None:
    """Say what is to become, once nothing is left of another append that was not finished."""
    if record.growth:
        drop_left_over(connection, record)
    if not catalog.publish(connection, grown):
        raise NameTaken(record.name, "is being changed by another command; run again when that has ended")


def _finish(connection: Connection, grown: DatasetRecord) -> None:
    """The arrays are what they were to become. NameTaken when somebody has begun something else."""
    for _ in range(_PUBLISH_TRIES):
        record = catalog.find(connection, grown.name)
        if record.origin == grown.growth["origin"] and not record.growth:
            return  # another process with the same sources was faster
        if record.growth != grown.growth:
            break
        arrays = {**record.arrays, **record.growth["arrays"]}
        if catalog.publish(connection, record.next(arrays=arrays, origin=record.growth["origin"], growth={})):
            return
    raise NameTaken(grown.name, "was changed by another command meanwhile; run again")


def drop_left_over(connection: Connection, record: DatasetRecord) -> None:
    """Chunks behind the ends of the arrays, which an append wrote that was not finished, go from every node that is there."""
    for node, gone in connection.each_node(_drop_left_over, record).items():
        for path, chunks in gone.items():
            connection.ask("gf_withdraw", node=node, dataset=record.name, array=path, chunks=chunks)


def _drop_left_over(store: NodeStore, record: DatasetRecord) -> dict[str, list[int]]:
    gone = {}
    for path in record.growth.get("arrays", {}):
        rows = store.manifest.replicas(record.name, path)
        there = dict(zip(rows["chunk"].tolist(), rows["generation"].tolist(), strict=True))
        behind = left_over(record, {path: there}).get(path, [])
        gone[path] = dropping.drop(store, record.name, path, {chunk: there[chunk] for chunk in behind})
    return gone
