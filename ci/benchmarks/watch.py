"""Watch: from a commit to who follows it, from a changed chunk to the committed output, and what a million chunks beside it cost.

Three nodes embedded in this machine. Chunks are written by a client in the nodes' own stores; the follower and the watcher are told by the
workers."""

from __future__ import annotations

import argparse
import os
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import zarr

import gpuflow
from ci.benchmarks.report import Report
from ci.benchmarks.scratch import folder
from gpuflow.cluster.connection import Connection, connect
from gpuflow.datasets import catalog
from gpuflow.datasets.here import NodesHere
from gpuflow.execution.changed import decide, run_changed
from gpuflow.pipelines.fingerprint import recipe
from gpuflow.pipelines.load import from_dict
from gpuflow.pipelines.plan import make_plan
from gpuflow.storage import news
from gpuflow.storage.disk import digest
from gpuflow.storage.manifest import Replica
from gpuflow.storage.metadata import ArrayMetadata
from gpuflow.storage.news import Notes
from gpuflow.storage.node import NodeStore
from gpuflow.storage.record import DatasetRecord
from gpuflow.storage.roots import node_roots
from gpuflow.triggers.feed import events
from gpuflow.triggers.watching import Watching, load_all

NODES = 3
_PAUSE_SECONDS = 0.02  # between changes: each alone
_AT_ONCE = 10_000  # rows in a transaction


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--changes", type=int, default=300, help="chunks changed one after the other (default 300)")
    parser.add_argument("--chunks", type=int, default=1_000_000, help="of the large dataset (default 1,000,000)")
    parser.add_argument("--rounds", type=int, default=40, help="of commits with and without what the feed needs (default 40)")
    parser.add_argument("--folder", type=Path, default=None, help="where the stores are made (default: a temporary folder)")


def measure(arguments: argparse.Namespace) -> Report:
    report = Report("milliseconds")
    with folder(arguments.folder) as place:
        _commits(report, place / "commits", arguments.rounds)
        with connect(nodes=NODES, workers=1, root=place / "small") as connection:
            _latency(report, connection, place, arguments.changes)
        for count in sorted({10_000, arguments.chunks}):
            _large(report, place / f"large {count}", count)
    return report


# -- what the feed adds to a commit ----------------------------------------------------------------------------------------------------


def _commits(report: Report, root: Path, rounds: int) -> None:
    """Of one chunk of 64 KiB, in turn as it is and without what is noted of it; each figure the median of a round's commits. Alone: as when
    no other commit of its run is near, so that each has a row of its own for its time."""
    metadata = ArrayMetadata.create((4096, 16384), (1, 16384), np.dtype("float32"), compressor="none")
    data = np.zeros(16384, "float32").tobytes()
    with closing(NodeStore(root)) as store:
        store.put_record(DatasetRecord("d", state="ready", arrays={"x": metadata.document}))
        generations = dict.fromkeys(range(32), 0)

        def commit(durable: bool) -> float:
            seconds = []
            for chunk in generations:
                generations[chunk] += 1
                replica = Replica("d", "x", chunk, generations[chunk], len(data), digest(data), digest(b"r"), digest(b"i"))
                began = time.perf_counter()
                store.commit([store.stage(replica, data, replaces=generations[chunk] - 1, durable=durable)], durable=durable)
                seconds.append(time.perf_counter() - began)
            return sorted(seconds)[len(seconds) // 2] * 1000

        jobs = {"atomic": (False, 0.05), "durable": (True, 0.05), "atomic, alone": (False, 0.0), "durable, alone": (True, 0.0)}
        for name, (durable, together) in jobs.items():
            job = f"a commit, {name}"
            with patch.object(news, "MOMENT_SECONDS", together):
                for number in range(rounds + 1):
                    sides = ["with the feed", "without"]
                    for side in sides if number % 2 else reversed(sides):
                        noted = Notes.committed if side == "with the feed" else _nothing
                        with patch.object(Notes, "committed", noted):
                            value = commit(durable)
                        if number:
                            report.add(job, side, value)
            cost = (report.ratio(job, "with the feed", "without") - 1) * 100
            if name == "atomic, alone":
                report.notes.append(f"{job}: {cost:.1f} % more, where no other follows within 50 ms and nothing is waited for")
            else:
                report.check(f"{job}: cost of the feed, percent", cost, "<=", 2)


def _nothing(*_: object) -> None:
    """What would be without the feed."""


# -- latencies ---------------------------------------------------------------------------------------------------------------------------


@contextmanager
def _watching(connection: Connection, file: Path) -> Iterator[None]:
    watching = Watching(load_all([file]), lambda: nullcontext(connection), lambda text: None)
    thread = threading.Thread(target=watching.forever)
    thread.start()
    try:
        yield
    finally:
        watching.stop.set()
        thread.join()


def _latency(report: Report, connection: Connection, place: Path, changes: int) -> None:
    dataset = gpuflow.open("raw", connection=connection, mode="a")
    array = zarr.create_group(dataset.store).create_array("x", shape=(300, 128, 128), chunks=(1, 128, 128), dtype="float32")
    array[...] = 1
    with events("now", connection=connection, follow=True, dataset="raw") as feed:
        for number in range(changes):
            array[number % 300] = np.float32(number)
            committed = time.perf_counter()
            event = feed.next(10)
            assert event is not None, "a commit was not seen"
            report.add("commit to follower", "ms", (time.perf_counter() - committed) * 1000)
            time.sleep(_PAUSE_SECONDS)
    file = place / "watch.yaml"
    file.write_text("source: raw\nsteps:\n  - map: x * 2 + 1\noutput: out\non: {dataset: raw, batch_seconds: 0}\n")
    with _watching(connection, file):
        while (record := catalog.records(connection).get("out")) is None or record.state != "ready":
            time.sleep(0.1)
        with events("now", connection=connection, follow=True, dataset="out") as feed:
            while feed.next(1) is not None:
                pass
            for number in range(changes):
                array[number % 300] = np.float32(-1 - number)
                committed = time.perf_counter()
                event = feed.next(30)
                assert event is not None, "a change was not dealt with"
                if number >= 10:  # warm
                    report.add("changed chunk to committed output", "ms", (time.perf_counter() - committed) * 1000)
                time.sleep(_PAUSE_SECONDS)
    seen, done = (report.samples[job]["ms"] for job in ("commit to follower", "changed chunk to committed output"))
    report.check("an event seen by a follower after its commit, p99, ms", float(np.percentile(seen, 99)), "<=", 50)
    report.check("changed chunk to committed output, p95, ms", float(np.percentile(done, 95)), "<=", 300)


# -- many chunks -------------------------------------------------------------------------------------------------------------------------

_PIPELINE: dict[str, Any] = {"source": "large", "steps": [{"map": "x * 2"}], "output": "made"}


def _large(report: Report, root: Path, count: int) -> None:
    began = time.monotonic()
    _fill(root, count)
    with connect(nodes=NODES, workers=1, root=root) as connection:
        connection.ask("gf_sync")
        report.notes.append(f"{count:,} chunks, and as many of the output, laid in {time.monotonic() - began:.0f} s")
        spec = from_dict(_PIPELINE)
        chunk = count // 2
        for number in range(6):
            with closing(NodesHere.below(root)) as here:
                _change(here, chunk, number)
            began = time.perf_counter()
            decision = decide(connection, spec, {"x": [chunk]})
            seconds = time.perf_counter() - began
            assert decision is not None
            assert decision.pending == 1, "the changed chunk, and no other"
            if number:
                report.add(f"decided, 1 of {count:,} changed", "ms", seconds * 1000)
        name = f"decided, 1 of {count:,} changed"
        report.check(f"{name}, ms", report.median(name, "ms"), "<=", 100 if count <= 10_000 else 1000)
        again = run_changed(connection, spec, {"x": [chunk + 1]})
        assert again is not None
        assert again.total == 1
        _replay(report, connection, count)


def _fill(root: Path, count: int) -> None:
    """Rows of `large` and of what a pipeline made of it: their files are read by nobody here."""
    metadata = ArrayMetadata.create((count, 4), (1, 4), np.dtype("float32"), compressor="none")
    source = DatasetRecord("large", state="ready", arrays={"x": metadata.document}, created="2026-01-01T00:00:00+00:00")
    plan = make_plan(from_dict(_PIPELINE), source)
    target = plan.output_record().next(state="ready")
    made_by = plan.arrays[0].made_by(None)
    for number, path in enumerate(node_roots(root, NODES)):
        with closing(NodeStore(path, name=f"node{number}")) as store:
            for record in (source, target):
                store.put_record(record)
            chunks = range(number, count, NODES)
            for start in range(0, len(chunks), _AT_ONCE):
                rows = []
                for chunk in chunks[start : start + _AT_ONCE]:
                    content = digest(chunk.to_bytes(8, "little"))
                    rows.append(Replica("large", "x", chunk, 1, 16, content, digest(b"made"), bytes(16)))
                    rows.append(Replica("made", "x", chunk, 1, 16, content, recipe(made_by, content), content))
                store.manifest.announce([(row, 0) for row in rows], store.writer.name, durable=False)
                store.manifest.finish(rows, durable=False)


def _change(here: NodesHere, chunk: int, number: int) -> None:
    """A new generation of one chunk."""
    (node,) = here.holders("large", "x", chunk)
    here.write_on(node, "large", "x", chunk, np.full(4, number, "float32").tobytes())


def _replay(report: Report, connection: Connection, count: int) -> None:
    """All events of the source from the beginning, one by one; and how this process grows meanwhile."""
    before, most, began, seen = _resident(), 0, time.perf_counter(), 0
    with events(connection=connection, dataset="large") as feed:
        for _ in feed:
            seen += 1
            if seen % 20_000 == 0:
                most = max(most, _resident())
    seconds = time.perf_counter() - began
    assert seen == count + 1, "each chunk, and that they are published"
    job = f"{count:,} events replayed"
    report.add(job, "ms", seconds * 1000)
    grown = max(0, most - before) / 2**20
    report.notes.append(f"{job}: {seen / seconds:,.0f}/s, and {grown:.0f} MiB more memory at most")
    if count >= 1_000_000:
        report.check(f"{job}, s", seconds, "<=", 10)
        report.check(f"{job}: memory grown by, MiB", grown, "<=", 64)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
