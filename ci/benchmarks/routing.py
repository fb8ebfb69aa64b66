"""The router against the ideal, with real processes: balanced, skewed, hot, replicated, a slow worker, tiny tasks; `--netns`: a network.

A task reads one chunk and sleeps, so that many workers fit on two cores. Sides: gpuflow; `groups`: gpuflow with tasks of as many chunks as
it would choose; `anywhere`: the same tasks placed by Dask, which knows nothing of chunks; `strict`: GPUFLOW_ROUTING=strict, every task on
its holder. The ideal is what perfect packing of the sleeps would take. Wall time is from submission to the last result in the client.

With `--netns`, see benchmarks/network.py."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import gpuflow
from ci.benchmarks.report import Report, interleave
from ci.benchmarks.scratch import folder
from gpuflow.cluster.connection import Connection
from gpuflow.cluster.launch import node_roots
from gpuflow.datasets.catalog import chunk_table
from gpuflow.execution.groups import in_turn, part_of
from gpuflow.execution.lane import Job, Lane
from gpuflow.execution.passes import Run
from gpuflow.execution.submit import Batch, Outcome, Silent, Submission
from gpuflow.storage.disk import digest
from gpuflow.storage.manifest import Replica
from gpuflow.storage.metadata import ArrayMetadata
from gpuflow.storage.node import NodeStore, Staged
from gpuflow.storage.record import DatasetRecord

ARRAY = "data"
Placement = Callable[[int], Sequence[int]]
"""Numbers of the nodes that hold a chunk, by its number."""


@dataclass(frozen=True)
class Case:
    """`tasks` chunks of `seconds` each on `nodes` nodes with one thread. most: bound on wall time over the ideal; least_local: on the
    share of local chunks. slow: how much longer the first node takes."""

    name: str
    placement: Placement
    most: float
    least_local: float = 0.0
    slow: float = 1.0
    nodes: int = 4
    tasks: int = 120
    seconds: float = 0.05
    nbytes: int = 256 * 1024

    @property
    def ideal_seconds(self) -> float:
        """The first moment at which all tasks can have ended."""
        ends = sorted(
            self.seconds * (self.slow if node == 0 else 1.0) * (number + 1)
            for node in range(self.nodes)
            for number in range(self.tasks)
        )
        return ends[self.tasks - 1]


def skewed(chunk: int) -> Sequence[int]:
    return [0] if chunk % 10 < 7 else [1 + chunk % 3]


def skewed_replicated(chunk: int) -> Sequence[int]:
    return [0, 1 + chunk % 3] if chunk % 10 < 7 else [1 + chunk % 3]


CASES = (
    Case("balanced", lambda chunk: [chunk % 4], 1.05, 1.0),
    Case("70% on one node", skewed, 1.12),
    Case("all on one node", lambda chunk: [0], 1.2),
    Case("70%, two replicas", skewed_replicated, 1.07, 0.8),
    Case("one node 4x slower", lambda chunk: [chunk % 4], 1.2, slow=4.0),
)
TINY = Case("500 x 5 ms, 20 nodes", lambda chunk: [0], 2.0, nodes=20, tasks=500, seconds=0.005, nbytes=16 * 1024)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cases", nargs="+", choices=[case.name for case in (*CASES, TINY)], help="only these")
    parser.add_argument("--sides", nargs="+", choices=["groups", "anywhere", "strict"], default=["groups", "anywhere", "strict"])
    parser.add_argument("--netns", action="store_true", help="also over shaped links between network namespaces (root)")
    parser.add_argument("--folder", type=Path, default=None, help="where the stores are made (default: a temporary folder)")


# -- data ---------------------------------------------------------------------------------------------------------------------------


def lay(roots: Sequence[Path], name: str, chunks: int, nbytes: int, placement: Placement) -> DatasetRecord:
    """A raw float32 dataset with its chunks on the nodes where they are wanted, before any cluster is there."""
    each = nbytes // 4
    metadata = ArrayMetadata.create((chunks * each,), (each,), np.dtype("float32"), compressor="none")
    created = datetime.now(UTC).isoformat()
    record = DatasetRecord(name=name, state="ready", arrays={ARRAY: metadata.document}, created=created)
    for number, root in enumerate(roots):
        with closing(NodeStore(root, name=f"node{number}")) as store:
            store.put_record(record)
            for chunk in range(chunks):
                if number in placement(chunk):
                    store.commit([_staged(store, name, chunk, each)], durable=False)
    return record


def _staged(store: NodeStore, name: str, chunk: int, size: int) -> Staged:
    data = np.full(size, 280 + chunk % 7, np.float32).tobytes()
    replica = Replica(name, ARRAY, chunk, 1, len(data), digest(data), digest(b"laid"), bytes(16))
    return store.stage(replica, data, durable=False)


# -- sides --------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Nap:
    """Reads a chunk, wherever it is, and sleeps; on node `slow` `factor` times as long."""

    records: tuple[DatasetRecord, ...]
    seconds: float
    slow: str = ""
    factor: float = 1.0
    durable: bool = False

    def prepare(self, array: str) -> None:
        """Nothing has to be."""

    def process(self, lane: Lane, chunk: int) -> None:
        """One chunk."""
        lane.read(chunk)
        with lane.tally.timed("compute"):
            time.sleep(self.seconds * (self.factor if lane.store.node_id == self.slow else 1.0))
        lane.keep(chunk, None)

    def result(self, lane: Lane) -> None:
        """Nothing but the counts."""


class Singles(Submission):
    """One chunk a task, all submitted at once."""

    def _cut_first(self, work: Sequence[Batch]) -> list[tuple[Any, Job, int]]:
        single = [iter([part_of(item.group, [i]) for i in range(len(item.group.chunks))]) for item in work]
        return [(group, work[number].job, 1) for number, group in in_turn(single)]


class Unrouted(Submission):
    """Under keys that gpuflow's scheduler plugin leaves alone: Dask decides where a task runs."""

    def _key(self, number: int) -> Any:
        return f"anywhere-{self._run}-{number}"


class Anywhere(Singles, Unrouted):
    """One chunk a task, placed by Dask."""


@dataclass
class Side:
    """A way to run a case. outcomes: of the rounds, the uncounted first one too."""

    connection: Connection
    case: Case
    kind: type[Submission]
    outcomes: list[Outcome] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)

    def __call__(self) -> float:
        """Wall seconds of one run."""
        connection, case = self.connection, self.case
        record = connection.each_node(_record, dataset_of(case)).popitem()[1]
        slow = next(node for node in connection.nodes() if node.startswith("node0-")) if case.slow > 1 else ""
        run = Run(connection, record)
        table = chunk_table(connection, record.name, ARRAY, case.tasks)
        work = run.batches(Nap((record,), case.seconds, slow, case.slow), ARRAY, range(case.tasks), table)
        began = time.perf_counter()
        outcome = self.kind(connection, "nap", run.run_id, Silent()).execute(work)
        seconds = time.perf_counter() - began
        if outcome.tally.failures or outcome.tally.done != case.tasks:
            raise RuntimeError(f"{case.name}: {outcome.tally}")
        self.outcomes.append(outcome)
        self.sent.append(connection.sent_bytes(run.run_id))
        return seconds

    @property
    def local_share(self) -> float:
        """Median over the rounds."""
        return median(outcome.tally.local_chunks / self.case.tasks for outcome in self.outcomes[1:])


def _record(store: NodeStore, name: str) -> DatasetRecord:
    return store.record(name)


def dataset_of(case: Case) -> str:
    return f"case{(*CASES, TINY).index(case)}"


@contextmanager
def cluster(root: Path, nodes: int, routing: str) -> Iterator[Connection]:
    before = os.environ.get("GPUFLOW_ROUTING")
    os.environ["GPUFLOW_ROUTING"] = routing
    try:
        connection = gpuflow.connect(nodes=nodes, workers=1, root=root)
    finally:
        if before is None:
            del os.environ["GPUFLOW_ROUTING"]
        else:
            os.environ["GPUFLOW_ROUTING"] = before
    with connection:
        yield connection


# -- the table ----------------------------------------------------------------------------------------------------------------------


def measure(arguments: argparse.Namespace) -> Report:
    report = Report("wall seconds")
    wanted = [case for case in (*CASES, TINY) if not arguments.cases or case.name in arguments.cases]
    for nodes in sorted({case.nodes for case in wanted}):
        with folder(arguments.folder) as base:
            _measure(report, base, [case for case in wanted if case.nodes == nodes], arguments)
    if arguments.netns:
        from ci.benchmarks import network

        network.measure(report, arguments)
    return report


def _measure(report: Report, base: Path, cases: Sequence[Case], arguments: argparse.Namespace) -> None:
    nodes, sides = cases[0].nodes, set(arguments.sides)
    roots = node_roots(base, nodes)
    for case in cases:
        lay(roots, dataset_of(case), case.tasks, case.nbytes, case.placement)
    with ExitStack() as stack:
        late = stack.enter_context(cluster(base, nodes, "late"))
        # Twenty more processes would be in the way of what is measured.
        strict = stack.enter_context(cluster(base, nodes, "strict")) if "strict" in sides and nodes <= 4 else None
        for case in cases:
            runs = {"gpuflow": Side(late, case, Singles)}
            if "groups" in sides:
                runs["groups"] = Side(late, case, Submission)
            if "anywhere" in sides:
                runs["anywhere"] = Side(late, case, Anywhere)
            if strict is not None:
                runs["strict"] = Side(strict, case, Singles)
            interleave(report, case.name, {**runs, "ideal": partial(float, case.ideal_seconds)}, arguments.rounds)
            _check(report, case, runs)


def _check(report: Report, case: Case, runs: dict[str, Side]) -> None:
    report.check(f"{case.name}: gpuflow / ideal", report.median(case.name, "gpuflow") / case.ideal_seconds, "<=", case.most)
    ours = runs["gpuflow"]
    if case.least_local:
        report.check(f"{case.name}: share of local chunks", ours.local_share, ">=", case.least_local)
    if case.least_local == 1.0:
        report.check(f"{case.name}: bytes shipped", max(ours.sent + [o.tally.shipped for o in ours.outcomes]), "<=", 0)
    texts = []
    for name, side in runs.items():
        over = report.median(case.name, name) / case.ideal_seconds
        texts.append(f"{name} {over:.2f}x, {side.local_share:.0%}, {median(side.sent[1:]) / 1e6:.1f} MB")
    report.notes.append(f"{case.name}: wall over the ideal, local chunks, bytes shipped: {'; '.join(texts)}")
