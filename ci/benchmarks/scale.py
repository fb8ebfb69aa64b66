"""What a million chunks cost: the scheduler, the way to the first result, planning, the inventory; and a simulated thousand nodes.

Runs are real ones, on an embedded cluster of two nodes: a pipeline that carries over an array whose chunks are all fill value, so that
nothing but metadata is read or written. The inventory is filled within a scheduler's process, by the messages that nodes send. Columns are
numbers of chunks."""

from __future__ import annotations

import argparse
import gc
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from distributed import Future, Scheduler, Worker
from distributed.protocol import dumps, loads

import gpuflow
from ci.benchmarks.report import Report
from ci.benchmarks.scratch import folder
from ci.benchmarks.simulation import Result, Scenario, Simulation
from gpuflow.cluster.connection import Connection
from gpuflow.cluster.launch import node_roots
from gpuflow.cluster.messages import ChunkGroup
from gpuflow.execution.run import run_pipeline
from gpuflow.execution.submit import Silent
from gpuflow.objectstore.ingest import remove_dataset
from gpuflow.pipelines.load import from_dict
from gpuflow.storage.manifest import Replica
from gpuflow.storage.metadata import ArrayMetadata
from gpuflow.storage.node import EMPTY, NodeStore
from gpuflow.storage.record import DatasetRecord

PARTS = ("small run", "large run", "inventory", "simulation")
NODES = 2
_AT_ONCE = 2**16  # rows a transaction
_LOOK_SECONDS = 0.05


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--small", type=int, default=10**5, help="chunks of the small run (default 100000)")
    parser.add_argument(
        "--large", type=int, default=10**6, help="chunks of the large run, and of the simulation (default 1000000)"
    )
    parser.add_argument("--inventory", type=int, default=10**7, help="chunks in the inventory (default 10000000)")
    parser.add_argument("--nodes", type=int, default=1000, help="that report to the inventory, and simulated ones (default 1000)")
    parser.add_argument("--rounds", type=int, default=3, help="of the small run")
    parser.add_argument("--folder", type=Path, default=None, help="where the data is made (default: a temporary folder)")


def measure(arguments: argparse.Namespace) -> Report:
    report = Report("by number of chunks")
    parts: dict[str, Callable[[], None]] = {
        "small run": lambda: _small_run(report, arguments),
        "large run": lambda: _large_run(report, arguments),
        "inventory": lambda: _inventory(report, arguments),
        "simulation": lambda: _simulation(report, arguments),
    }
    for part in arguments.parts:
        parts[part]()
    return report


# -- runs ------------------------------------------------------------------------------------------------------------------------

SPEC = from_dict({"source": {"dataset": "in", "arrays": ["few"]}, "steps": [{"clip": [0, 1]}], "output": "out"})
"""`few` is one chunk; the array `many` is carried over."""


@contextmanager
def _cluster(chunks: int, at: Path | None) -> Iterator[Connection]:
    """An embedded cluster that holds a dataset of so many chunks, in turn on its nodes."""
    with folder(at) as base:
        for number, root in enumerate(node_roots(base, NODES)):
            with closing(NodeStore(root, name=f"node{number}")) as store:
                _fill_store(store, range(number, chunks, NODES), chunks)
        with gpuflow.connect(nodes=NODES, root=base) as connection:
            yield connection


def _fill_store(store: NodeStore, mine: Sequence[int], chunks: int) -> None:
    arrays = {"many": (chunks,), "few": (1, 1)}
    made = {path: ArrayMetadata.create(shape, (1,) * len(shape), np.dtype("u1")) for path, shape in arrays.items()}
    store.put_record(DatasetRecord("in", state="ready", arrays={path: metadata.document for path, metadata in made.items()}))
    recipe = b"scale benchmark "
    rows = [("many", chunk) for chunk in mine] + ([("few", 0)] if mine[0] == 0 else [])
    for start in range(0, len(rows), _AT_ONCE):
        replicas = [Replica("in", path, chunk, 1, 0, EMPTY, recipe, EMPTY) for path, chunk in rows[start : start + _AT_ONCE]]
        store.manifest.announce([(replica, 0) for replica in replicas], "benchmark", durable=False)
        store.manifest.finish(replicas, durable=False)


class Watch(Silent):
    """When a run's main pass was planned, and when the first result came."""

    def __init__(self) -> None:
        self.planned = self.first = 0.0

    def begin(self, title: str, chunks: int) -> None:
        self.planned = time.perf_counter()

    def advance(self, chunks: int) -> None:
        self.first = self.first or time.perf_counter()


class Submitted:
    """In the place of a client's `map`: when the scheduler knew the last of `chunks` chunks."""

    def __init__(self, connection: Connection, chunks: int) -> None:
        self._client, self._map, self._left = connection.client, connection.client.map, chunks
        self._thread = threading.Thread()
        self.at, self.tasks = 0.0, 0

    def __call__(self, function: Any, groups: Sequence[ChunkGroup], *others: Any, **options: Any) -> list[Future]:
        futures: list[Future] = self._map(function, groups, *others, **options)
        self.tasks += len(groups)
        self._left -= sum(len(group.chunks) for group in groups)
        if self._left <= 0 and not self._thread.ident:
            self._thread = threading.Thread(target=self._wait, args=(futures[-1],))
            self._thread.start()
        return futures

    def _wait(self, last: Future) -> None:
        while not (last.done() or self._client.run_on_scheduler(_knows, last.key)):
            time.sleep(_LOOK_SECONDS)
        self.at = time.perf_counter()


def _knows(key: Any, dask_scheduler: Scheduler) -> bool:
    return key in dask_scheduler.tasks


def _run(connection: Connection, chunks: int) -> dict[str, float]:
    """One run's figures."""
    pid = connection.client.run_on_scheduler(os.getpid)
    watch, submitted = Watch(), Submitted(connection, chunks + 1)
    connection.client.map = submitted
    before, began = _cpu_seconds(pid), time.perf_counter()
    try:
        receipt = run_pipeline(connection, SPEC, progress=watch)
    finally:
        connection.client.map = submitted._map
    assert receipt.outcome.tally.done == chunks + 1, receipt.outcome.tally
    cpu_seconds, seconds = _cpu_seconds(pid) - before, time.perf_counter() - began
    remove_dataset(connection, "out")
    return {
        "scheduler, us of CPU a chunk": cpu_seconds / chunks * 1e6,
        "scheduler, us of CPU a task": cpu_seconds / submitted.tasks * 1e6,
        "planned, s": watch.planned - began,
        "first result, s from submission": watch.first - watch.planned,
        "planned and submitted, s": submitted.at - began,
        "run, s": seconds,
        "scheduler at its peak, MB": _status_bytes(pid, "VmHWM") / 1e6,
    }


def _cpu_seconds(pid: int) -> float:
    """User and system time of a process (proc(5), fields 14 and 15 of stat)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _status_bytes(pid: int | str, name: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))


def _column(chunks: int) -> str:
    return f"{chunks:,}"


def _small_run(report: Report, arguments: argparse.Namespace) -> None:
    column, cpu, first = _column(arguments.small), "scheduler, us of CPU a chunk", "first result, s from submission"
    with _cluster(arguments.small, arguments.folder) as connection:
        for number in range(arguments.rounds + 1):
            figures = _run(connection, arguments.small)
            if not number:
                report.add(f"{first}, a new cluster's first run", column, figures[first])
            for job, value in figures.items() if number else ():
                report.add(job, column, value)
    report.check(f"{cpu}, {column} chunks", report.median(cpu, column), "<=", 40)
    report.check(f"{first}, {column} chunks", report.median(first, column), "<=", 1.0)
    cold = f"{first}, a new cluster's first run"
    report.check(f"{cold}, {column} chunks", report.median(cold, column), "<=", 1.0)


def _large_run(report: Report, arguments: argparse.Namespace) -> None:
    column = _column(arguments.large)
    with _cluster(arguments.large, arguments.folder) as connection:
        rate = max(connection.client.run(_read_seconds).values()) / (arguments.large / NODES)
        report.add("a node reads its own for a report, us a chunk", column, rate * 1e6)
        for job, value in _run(connection, arguments.large).items():
            report.add(job, column, value)
    jobs = {"scheduler, us of CPU a chunk": 40, "planned and submitted, s": 30, "scheduler at its peak, MB": 1000}
    for job, most in jobs.items():
        report.check(f"{job}, {column} chunks", report.median(job, column), "<=", most)


def _read_seconds(dask_worker: Worker) -> float:
    """What a node that joins reads from its manifest."""
    began = time.perf_counter()
    dask_worker.gpuflow.store.manifest.changes(0)
    return time.perf_counter() - began


# -- inventory ---------------------------------------------------------------------------------------------------------------------


def _inventory(report: Report, arguments: argparse.Namespace) -> None:
    chunks, nodes, column = arguments.inventory, arguments.nodes, _column(arguments.inventory)
    each = chunks // nodes
    for replicas in (1, 2):
        with _cluster(NODES * each, arguments.folder) as connection:
            read = max(connection.client.run(_read_seconds).values())
            megabytes, seconds = connection.client.run_on_scheduler(_fill_inventory, chunks, nodes, replicas)
        what = f"inventory, {replicas} replica{'s'[: replicas - 1]} on {nodes:,} nodes"
        report.add(f"{what}, MB", column, megabytes)
        report.add(f"{what}, reported, s", column, seconds + replicas * read)
        report.check(f"{what}: MB", megabytes, "<=", 150)
        report.check(f"{what}: s to report it, a node's reading in it", seconds + replicas * read, "<=", 3.0)


def _fill_inventory(chunks: int, nodes: int, replicas: int, dask_scheduler: Scheduler) -> tuple[float, float]:
    """In the scheduler: MB that the inventory takes, and seconds from the nodes' messages to it. Each node's chunks are scattered; a
    replica lies on the next node."""
    inventory = dask_scheduler.plugins["gpuflow"].inventory
    inventory.report("warm", ("warm", "a"), *np.ones((2, 1), np.uint32))
    gc.collect()
    before, seconds = _status_bytes("self", "VmRSS"), 0.0
    for number in range(nodes * replicas):
        holder = number % nodes
        message = _message((holder - number // nodes) % nodes, chunks, nodes)
        began = time.perf_counter()
        ((dataset, array, *columns),) = loads(message)["arrays"]
        inventory.report(f"node{holder:05}", (dataset, array), *(np.frombuffer(column, np.uint32) for column in columns))
        seconds += time.perf_counter() - began
    megabytes = (_status_bytes("self", "VmRSS") - before) / 1e6
    sample = inventory.holders(("bench", "a"), range(0, chunks, max(1, chunks // 1000)))
    assert all(len(holders) == replicas for holders in sample)
    inventory.drop("bench")
    return megabytes, seconds


def _message(part: int, chunks: int, nodes: int) -> list[Any]:
    """What a node answers to `gf_changes`, as it comes over the wire: one `part` of the chunks."""
    numbers = np.sort(np.arange(part, chunks, nodes, dtype=np.uint64) * np.uint64(7_368_787) % np.uint64(chunks)).astype(
        np.uint32
    )
    columns = [column.tobytes() for column in (numbers, np.ones(len(numbers), np.uint32))]
    frames: list[Any] = dumps({"newest": len(numbers), "arrays": [("bench", "a", *columns)]})
    return frames


# -- simulation ----------------------------------------------------------------------------------------------------------------------


def _simulation(report: Report, arguments: argparse.Namespace) -> None:
    """The healthy cluster at full size; what may befall it at a tenth, since simulating that takes minutes too."""
    nodes, chunks = arguments.nodes, arguments.large
    result = _simulated(report, "balanced", Scenario(nodes, chunks))
    report.check(f"simulated {nodes:,} nodes x {chunks:,} chunks: time / work-conserving bound", result.ratio, "<=", 1.05)
    report.check(f"simulated {nodes:,} nodes x {chunks:,} chunks: local", result.local, ">=", 0.95)
    tenth = Scenario(max(2, nodes // 10), chunks // 10)
    few = max(1, tenth.nodes // 100)
    _simulated(report, "1% of the nodes slow", replace(tenth, slow=0.01))
    _simulated(report, "10% of the chunks on a tenth of the nodes, beside its own", replace(tenth, skew=0.1))
    _simulated(report, "1% of the nodes lost, two replicas", replace(tenth, replicas=2, losses=((10.0, few),)))
    _simulated(report, "1% more nodes join", replace(tenth, joins=((10.0, few),)))


def _simulated(report: Report, what: str, scenario: Scenario) -> Result:
    result, job = Simulation(scenario).run(), f"simulated {scenario.nodes:,} nodes, {what}"
    report.add(f"{job}: time / bound", _column(scenario.chunks), result.ratio)
    report.add(f"{job}: local", _column(scenario.chunks), result.local)
    report.add(f"{job}: router, us of CPU a chunk", _column(scenario.chunks), result.router_seconds / scenario.chunks * 1e6)
    return result
