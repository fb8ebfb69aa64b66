"""The second pass over a dataset that fits in its workers' memory against the first, and passes over one of twice their budget.

Mean, std and extrema of zstd chunks, by a cluster of one node with its default workers. Each round has a cluster of its own, whose tiers
are empty; `off` is the same pass without them. The bound of 2 for RAM is what makes it worth its memory: what is left of a pass is
computing and the tasks themselves, however well the source compresses."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from distributed import Worker

import gpuflow
from ci.benchmarks.engine import NBYTES, make_source
from ci.benchmarks.memory import peak_nbytes
from ci.benchmarks.report import Report
from ci.benchmarks.scratch import folder
from gpuflow.cluster.connection import Connection
from gpuflow.datasets import catalog
from gpuflow.execution.passes import Run
from gpuflow.execution.statistics import reduce_array
from gpuflow.execution.tally import Tally
from gpuflow.pipelines.load import from_dict
from gpuflow.pipelines.memory import Caching
from gpuflow.reductions.requests import MomentsRequest

PASSES = 4
AWHILE_SECONDS = 2.5  # after which a worker has forgotten that a run before left its tier less


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--mib", type=int, default=256, help="size of the dataset, decoded (default 256)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None, help="where the data is made (default: a temporary folder)")


def measure(arguments: argparse.Namespace) -> Report:
    report, chunks = Report("seconds; chunks; bytes; MiB"), arguments.mib * 2**20 // NBYTES
    for number in range(arguments.rounds + 1):  # the first one compiles
        with folder(arguments.folder) as base:
            source = make_source(base, "zstd", chunks)
            with gpuflow.connect(nodes=1, root=base / "root") as connection:
                gpuflow.ingest(source, "in", connection=connection, link=True)
                _round(report if number else Report(""), connection, chunks)
    report.check("first pass / second pass", report.ratio("a pass", "first", "second"), ">=", 2.0)
    report.ratio("a pass", "off", "second")
    report.ratio("a pass", "first", "off")
    report.check("bytes read in the second pass", max(report.samples["bytes read"]["second"]), "<=", 0)
    hits = [each / chunks for each in report.samples["chunks from memory"]["of twice the budget"]]
    report.check("hits of a scan of twice the budget, least", min(hits), ">=", 0.4)
    for what, of in (("peak of a worker", "its plan"), ("a tier", "its budget")):
        sides = report.samples[what]
        most = max(a / b for a, b in zip(sides["is"], sides[of], strict=True))
        report.check(f"{what} / {of}", most, "<=", 1.0)
    return report


def _round(report: Report, connection: Connection, chunks: int) -> None:
    whole, workers = chunks * NBYTES, len(connection.info()["workers"])
    planned = _planned(connection) + whole
    _pass(connection, Caching(0))  # has the file in the page cache, and the machine code loaded
    report.add("a pass", "off", _pass(connection, Caching(0))[0])
    time.sleep(AWHILE_SECONDS)
    for side in ("first", "second"):
        seconds, tally = _pass(connection, Caching(whole, takes=True, fills=True))
        report.add("a pass", side, seconds)
        report.add("bytes read", side, tally.read)
    report.add("peak of a worker", "is", max(connection.client.run(_peak).values()) / 2**20)
    report.add("peak of a worker", "its plan", planned / 2**20)
    _pass(connection, Caching(0))
    time.sleep(AWHILE_SECONDS)
    budget = whole // workers // 2
    for number in range(PASSES):
        _, tally = _pass(connection, Caching(budget, takes=True, fills=True))
        if number:
            report.add("chunks from memory", "of twice the budget", tally.ram_chunks)
    report.add("a tier", "is", max(connection.client.run(_tier_nbytes).values()) / 2**20)
    report.add("a tier", "its budget", budget / 2**20)


def _pass(connection: Connection, caching: Caching) -> tuple[float, Tally]:
    """Over everything, and what it counted."""
    source = catalog.find(connection, "in")
    table = catalog.chunk_table(connection, "in", "data", source.array("data").grid.size)
    run = Run(connection, source, caching=caching)
    began = time.perf_counter()
    assert reduce_array(run, "data", table, MomentsRequest(())) is not None
    return time.perf_counter() - began, run.outcome.tally


def _planned(connection: Connection) -> int:
    """Bytes of a worker that reads the dataset, without what it keeps."""
    spec = from_dict({"source": "in", "steps": [{"clip": [0, 1]}], "output": "out", "run": {"cache": "off"}})
    return int(gpuflow.plan(spec, connection=connection).details["memory"]["need_nbytes"])


def _tier_nbytes(dask_worker: Worker) -> int:
    return int(dask_worker.gpuflow.ram.tier.nbytes)


def _peak(dask_worker: Worker) -> int:
    return peak_nbytes()
