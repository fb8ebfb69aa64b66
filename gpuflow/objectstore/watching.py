"""Scrub as a service: every replica read again and again, at a bounded rate, beside whatever else the nodes do.

Chunks are read outside of Dask's task slots, some seconds at a time, so that no run waits for it. What is found is repaired as `scrub` does
it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from gpuflow.cluster.connection import Connection
from gpuflow.datasets import catalog
from gpuflow.datasets.survey import survey
from gpuflow.errors import ChunkCorrupt, ChunkLost, NotFound
from gpuflow.execution.pace import at_rate
from gpuflow.execution.scrub import held_by
from gpuflow.execution.tally import Failure
from gpuflow.objectstore.repair import Finding, ScrubReport, heal
from gpuflow.storage.node import NodeStore
from gpuflow.storage.record import DatasetRecord

RATE = 20e6
"""Bytes/s of a node where none is given: a terabyte in 14 hours, and a fiftieth of what a disk can do."""
_SLICE_SECONDS = 2.0
_SLICE_CHUNKS = 1000

Checked = tuple[int, int, list[tuple[int, str]]]
"""Of the first so many chunks, their bytes, and (chunk, what is wrong) of the damaged ones."""


def watch(connection: Connection, names: Sequence[str] | None = None, *, rate: float = RATE) -> Iterator[ScrubReport]:
    """One round over datasets, by default all: a report of each when it is through. rate: bytes/s that each node reads at most."""
    connection.ask("gf_sync")
    for name in names or sorted(catalog.records(connection)):
        try:
            record = catalog.find(connection, name)
        except NotFound:
            if names:
                raise
            continue  # it was removed since
        yield _round(connection, record, rate)


def _round(connection: Connection, record: DatasetRecord, rate: float) -> ScrubReport:
    began, checked, nbytes, failures = time.monotonic(), 0, 0, list[Failure]()
    found = survey(connection, [record.name], lambda path: True)
    for path, metadata in record.metadata.items():
        table = found.table(record.name, path, metadata.grid.size)
        if record.state == "ready":
            lost = np.flatnonzero(~table.present).tolist()
            failures += [_failure(record, path, chunk, "", "no node has it") for chunk in lost]
        left = held_by(table, np.arange(metadata.grid.size))
        while left:
            part = {node: chunks[:_SLICE_CHUNKS] for node, chunks in left.items()}
            for node, (count, read, damaged) in connection.each_node(_check, record.name, path, part, rate).items():
                checked, nbytes = checked + count, nbytes + read
                failures += [_failure(record, path, chunk, node, reason) for chunk, reason in damaged]
                left[node] = left.get(node, [])[count:]
            there = connection.nodes()
            left = {node: chunks for node, chunks in left.items() if chunks and node in there}
    findings, notes = heal(connection, record, failures) if failures else (list[Finding](), list[str]())
    return ScrubReport(record.name, checked, nbytes, time.monotonic() - began, tuple(findings), tuple(notes))


def _failure(record: DatasetRecord, path: str, chunk: int, node: str, reason: str) -> Failure:
    name = record.chunk_name(path, chunk)
    return Failure(name, chunk, node, reason, damaged=name)


def _check(store: NodeStore, dataset: str, array: str, wanted: Mapping[str, Sequence[int]], rate: float) -> Checked:
    """Read this node's chunks, for some seconds at most."""
    until, damaged, nbytes, count = time.monotonic() + _SLICE_SECONDS, list[tuple[int, str]](), 0, 0
    for chunk in wanted.get(store.node_id, ()):
        if time.monotonic() > until:
            break
        count += 1
        with at_rate(rate) as moved:
            try:
                replica, _ = store.read(dataset, array, chunk)
            except ChunkCorrupt as error:
                damaged.append((chunk, error.reason))
            except (ChunkLost, NotFound):  # given up, or removed, since
                continue
            else:
                moved.append(replica.nbytes)
                nbytes += replica.nbytes
    return count, nbytes, damaged
