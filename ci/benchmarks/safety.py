"""What safety costs: scrub against the bare disk, commits against bare writes, bytes of a second copy, start of a node with many chunks.

Scrub and bare reading read the same files, which are not in the page cache; commits and bare writing do the same calls on files, one with
digests and manifest, the other without. What a second copy costs is counted, by the nodes."""

from __future__ import annotations

import argparse
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np

from ci.benchmarks.report import Report, interleave
from ci.benchmarks.routing import ARRAY, lay
from ci.benchmarks.scratch import folder
from gpuflow.cluster.connection import Connection, connect
from gpuflow.cluster.launch import end_process, node_roots, start_process, worker_command
from gpuflow.datasets.catalog import chunk_table
from gpuflow.execution.run import run_pipeline
from gpuflow.objectstore.repair import scrub_dataset
from gpuflow.pipelines.load import from_dict
from gpuflow.storage import seals
from gpuflow.storage.buffers import Buffer
from gpuflow.storage.disk import digest, read_into, sync_data, sync_directories, write_file
from gpuflow.storage.manifest import Replica
from gpuflow.storage.metadata import ArrayMetadata
from gpuflow.storage.node import NodeStore, Staged
from gpuflow.storage.record import DatasetRecord

Written = TypeVar("Written")

NBYTES = 8 * 2**20
_GROUP = 2  # chunks of a commit, as many as the lane puts into one
_CHUNKS = 16
_START_SECONDS = 120.0


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--chunks", type=int, default=256, help="of 8 MiB, to be scrubbed (default 256)")
    parser.add_argument("--held", type=int, default=10**6, help="chunks of the node that is started (default 1,000,000)")
    parser.add_argument("--folder", type=Path, default=None, help="where the data is made (default: a temporary folder)")


def measure(arguments: argparse.Namespace) -> Report:
    report = Report("GB/s; seconds")
    for job in (_scrub, _commits, _copies, _start):
        with folder(arguments.folder) as place:
            job(report, arguments, place)
    return report


# -- scrub -------------------------------------------------------------------------------------------------------------------------------


def _scrub(report: Report, arguments: argparse.Namespace, place: Path) -> None:
    """Of one node, by as many threads as its workers have."""
    lay([place], "data", arguments.chunks, NBYTES, lambda chunk: [0])
    files = sorted((place / "datasets/data" / ARRAY).glob("c.*"))
    for path in files:
        sync_data(path)  # so that it can leave the page cache
    with connect(nodes=1, root=place) as connection:
        threads = sum(worker["threads"] for worker in connection.info()["workers"].values())

        def scrubbed() -> float:
            _drop(files)
            found = scrub_dataset(connection, "data")
            assert (found.checked, found.findings) == (arguments.chunks, ()), found
            return found.nbytes / found.seconds / 1e9

        sides = {"scrub": scrubbed, "bare": lambda: _read_all(files, threads)}
        interleave(report, "reading from the disk", sides, arguments.rounds)
    report.check("scrub / bare reading of the disk", report.ratio("reading from the disk", "scrub", "bare"), ">=", 0.8)


def _drop(files: list[Path]) -> None:
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def _read_all(files: list[Path], threads: int) -> float:
    _drop(files)
    buffers = [Buffer() for _ in range(threads)]

    def read(number: int) -> None:
        for path in files[number::threads]:
            assert read_into(path, NBYTES, buffers[number]) is not None, path

    with ThreadPoolExecutor(threads) as pool:
        began = time.perf_counter()
        list(pool.map(read, range(threads)))
        return len(files) * NBYTES / (time.perf_counter() - began) / 1e9


# -- commits -----------------------------------------------------------------------------------------------------------------------------


def _commits(report: Report, arguments: argparse.Namespace, place: Path) -> None:
    """Durable ones of new chunks: all of the protocol, and the same calls on files without digests and manifest. Both as the lane does it:
    while a group is committed, the next one is written."""
    data = [np.random.default_rng(chunk).bytes(NBYTES) for chunk in range(_GROUP)]
    record = lay([place], "data", _CHUNKS, NBYTES, lambda chunk: [])
    with closing(NodeStore(place)) as store:

        def committed() -> float:
            name = f"data{time.monotonic_ns()}"
            store.put_record(DatasetRecord(name, state="ready", arrays=record.arrays))

            def stage(chunk: int) -> Staged:
                chunk_data = data[chunk % _GROUP]
                replica = Replica(name, ARRAY, chunk, 1, NBYTES, digest(chunk_data), digest(b"made"), digest(b"from"))
                return store.stage(replica, chunk_data)

            rate = _overlapped(stage, store.commit)
            shutil.rmtree(place / "datasets" / name)
            return rate

        def bare() -> float:
            target = place / f"bare{time.monotonic_ns()}"
            target.mkdir()

            def write(chunk: int) -> Path:
                path = target / f"{chunk}.new"
                write_file(path, data[chunk % _GROUP], durable=False, soon=True)
                return path

            rate = _overlapped(write, _put)
            shutil.rmtree(target)
            return rate

        interleave(report, "writing 8 MiB chunks", {"committed": committed, "bare": bare}, 8 * arguments.rounds)
    report.check("bare writing / commits", report.ratio("writing 8 MiB chunks", "bare", "committed"), "<=", 1.1)


def _overlapped(write: Callable[[int], Written], commit: Callable[[Sequence[Written]], None]) -> float:
    with ThreadPoolExecutor(1) as pool:
        began, under_way = time.perf_counter(), None
        for first in range(0, _CHUNKS, _GROUP):
            written = [write(chunk) for chunk in range(first, first + _GROUP)]
            if under_way is not None:
                under_way.result()
            under_way = pool.submit(commit, written)
        assert under_way is not None
        under_way.result()
        return _CHUNKS * NBYTES / (time.perf_counter() - began) / 1e9


def _put(files: Sequence[Path]) -> None:
    for path in files:
        sync_data(path)
    for path in files:
        os.rename(path, path.with_suffix(""))
    sync_directories([files[0].parent])


# -- copies ------------------------------------------------------------------------------------------------------------------------------


def _copies(report: Report, arguments: argparse.Namespace, place: Path) -> None:
    """A run in place over a dataset with two replicas, which ends when both are of the new generation."""
    chunks = 48
    record = lay(node_roots(place, 3), "data", chunks, 2**20, lambda chunk: [chunk % 3, (chunk + 1) % 3])
    for root in node_roots(place, 3):
        with closing(NodeStore(root)) as store:
            store.put_record(record.next(replicas={"min": 2, "max": 2}))
    spec = from_dict({"source": "data", "steps": [{"map": "x + 1"}], "output": {"in_place": True}})
    with connect(nodes=3, root=place) as connection:
        receipt = run_pipeline(connection, spec).to_dict()
        table = chunk_table(connection, "data", ARRAY, chunks)
    assert receipt["chunks"]["done"] == chunks, receipt
    assert all(len(holders) == 2 for holders in table.holder_sets)
    committed = int(table.rows["nbytes"].sum())
    report.notes.append(f"two replicas: {committed:,} bytes committed, {receipt['bytes']['sent']:,} sent by nodes")
    report.check("two replicas: bytes sent / bytes committed", receipt["bytes"]["sent"] / committed, "<=", 1.0)


# -- start -------------------------------------------------------------------------------------------------------------------------------


def _start(report: Report, arguments: argparse.Namespace, place: Path) -> None:
    """From the start of a node's worker process until the scheduler knows every chunk that it holds."""
    roots = {"1 chunk": place / "one", f"{arguments.held:,} chunks": place / "many"}
    for count, root in zip((1, arguments.held), roots.values(), strict=True):
        _hold(root, count)
    for _ in range(arguments.rounds):
        with connect(
            nodes=1, workers=1, root=place / "other"
        ) as connection:  # a new scheduler: one that knows them asks for what is new
            for (name, root), count in zip(roots.items(), (1, arguments.held), strict=True):
                with _joining(connection, root) as seconds:
                    _until_known(connection, root.name, count)
                    report.add("start of a node", name, seconds())
    report.check("start of a node that holds them, seconds", report.median("start of a node", name), "<=", 5.0)


def _hold(root: Path, count: int) -> None:
    """A node whose manifest has `count` chunks. They have no files: nobody looks at those before somebody reads them."""
    metadata = ArrayMetadata.create((count,), (1,), np.dtype("int8"))
    with closing(NodeStore(root, name=root.name)) as store:
        store.put_record(DatasetRecord(root.name, state="ready", arrays={ARRAY: metadata.document}))
        staged = [store.stage_empty(Replica(root.name, ARRAY, 0, 1, 0, bytes(16), bytes(16), bytes(16)))]
        store.commit(staged)
        names, blob = seals.seal_of_names(root.name, ARRAY), digest(b"of all of them")
        with store.manifest.transaction():
            ((array,),) = store.manifest.query("SELECT array FROM replica")
            for chunk in range(1, count):
                row = (chunk, 1, 1, chunk + 1, 0, blob, blob, blob)
                values = (array, chunk, 1, 1, blob, blob, blob, chunk + 1, 0, seals.seal_of(names, *row))
                store.manifest.query("INSERT INTO replica VALUES (?,?,?,?,?,?,?,?,?,?)", *values)
            store.manifest.set_sequence(count)


@contextmanager
def _joining(connection: Connection, root: Path) -> Iterator[Callable[[], float]]:
    assert connection.embedded is not None
    options = ["--host", "127.0.0.1", "--no-nanny", "--no-dashboard", "--nthreads", "1", "--local-directory", str(root)]
    began = time.perf_counter()
    process = start_process(worker_command(connection.embedded.address, root, *options), log=root / "log", lifeline=True)
    try:
        yield lambda: time.perf_counter() - began
    finally:
        end_process(process)


def _until_known(connection: Connection, dataset: str, count: int) -> None:
    deadline = time.monotonic() + _START_SECONDS
    last = {"dataset": dataset, "array": ARRAY, "chunks": [0, count - 1]}
    while not all(connection.ask("gf_locate", **last)):
        assert time.monotonic() < deadline, "the node did not report its chunks"
        time.sleep(0.01)
