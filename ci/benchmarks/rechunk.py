"""Time-major to sample-major and back, against dask.array's rechunk on the same cores.

Sides: gpuflow on an embedded cluster of two nodes of one thread each, so that half of what a chunk needs lies on the other node; and
dask.array on distributed, two processes of one thread, by its peer-to-peer shuffle and by tasks, reading and writing one shared folder. All
write the same chunks with the same compressor; nobody fsyncs. Everything is read from the page cache. Memory is what a worker has at the
peak above what it had before the run; what crosses between nodes is counted by the peers that send it."""

from __future__ import annotations

import argparse
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from distributed import Client, LocalCluster, Worker

import gpuflow
from ci.benchmarks.report import Report
from ci.benchmarks.scratch import folder
from gpuflow.cluster.connection import Connection
from gpuflow.execution.memory import check_memory
from gpuflow.execution.run import look, prepare
from gpuflow.objectstore.ingest import remove_dataset
from gpuflow.pipelines.load import from_dict

FIELD = (720, 1440)
SERIES = (24, 48)
DIMS = ["time", "latitude", "longitude"]


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--gib", type=float, default=4.0, help="size of the array (default 4)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compressor", choices=["none", "zstd"], default="zstd")
    parser.add_argument("--folder", type=Path, default=None, help="where the data is made (default: a temporary folder)")


def measure(arguments: argparse.Namespace) -> Report:
    report = Report("GB/s")
    times = int(arguments.gib * 2**30 / (FIELD[0] * FIELD[1] * 4)) // 8 * 8
    samples, series = (1, *FIELD), (times, *SERIES)
    with folder(arguments.folder) as base, gpuflow.connect(nodes=2, workers=1, root=base / "root") as connection:
        shape = (times, *FIELD)
        for name, chunks in (("samples", samples), ("series", series)):
            make(base / f"{name}.zarr", shape, chunks, arguments.compressor)
            gpuflow.ingest(base / f"{name}.zarr", name, connection=connection)
        sides = Sides(connection, base, times, arguments.compressor, report)
        for _ in range(arguments.rounds):
            for job, source, chunks in (("to series", "samples", series), ("to samples", "series", samples)):
                sides.gpuflow(job, source, chunks)
                sides.dask(job, source, chunks, "p2p")
                sides.dask(job, source, chunks, "tasks")
    for job in ("to series", "to samples"):
        best = max(("dask p2p", "dask tasks"), key=lambda side: report.median(job, side))
        report.check(f"{job}, gpuflow / {best}", report.ratio(job, "gpuflow", best), ">=", 3.0)
        report.check(f"{job}, shipped / size of the array", max(report.samples[job]["shipped / size"]), "<=", 1.0)
        planned = report.median(job, "peak / planned")
        report.check(f"{job}, peak memory / planned", planned, "<=", 1.1)
        report.check(f"{job}, peak memory / planned, at least", planned, ">=", 0.9)
    return report


def make(path: Path, shape: tuple[int, ...], chunks: tuple[int, ...], compressor: str) -> None:
    """A field in kelvin with one decimal that drifts, as measurements have it."""
    array = zarr.create_array(
        path, shape=shape, chunks=chunks, dtype="float32", compressors=codecs(compressor), dimension_names=DIMS
    )
    field = np.round(np.random.default_rng(0).normal(280.0, 12.0, FIELD), 1).astype(np.float32)
    if chunks[0] == 1:
        for time_ in range(shape[0]):
            array[time_] = np.roll(field, time_ * 13)
        return
    for first in range(0, FIELD[0], chunks[1]):
        rows = np.stack([np.roll(field, number * 13).reshape(FIELD)[first : first + chunks[1]] for number in range(shape[0])])
        array[:, first : first + chunks[1]] = rows


def codecs(compressor: str) -> Any:
    from zarr.codecs import ZstdCodec

    return None if compressor == "none" else ZstdCodec(level=1)


class Sides:
    """Each adds its GB/s of the array to the report."""

    def __init__(self, connection: Connection, base: Path, times: int, compressor: str, report: Report) -> None:
        self.connection, self.base, self.compressor, self.report = connection, base, compressor, report
        self.shape = (times, *FIELD)
        self.nbytes = times * FIELD[0] * FIELD[1] * 4

    def timed(self, work: Callable[[], Any]) -> float:
        os.sync()
        began = time.perf_counter()
        work()
        return self.nbytes / (time.perf_counter() - began) / 1e9

    def gpuflow(self, job: str, source: str, chunks: tuple[int, ...]) -> None:
        output = {"dataset": "out", "shards": list(chunks), "chunks": "whole", "compressor": self.compressor}
        spec = from_dict({"source": source, "steps": [], "output": output, "run": {"durability": "atomic"}})
        found = look(self.connection, spec)
        planned = check_memory(self.connection, found, prepare(found, spec)[0])
        assert planned is not None
        self.connection.client.run(_reset_peak)
        receipt: dict[str, Any] = {}

        def work() -> None:
            receipt.update(gpuflow.run(spec, connection=self.connection).to_dict())

        self.report.add(job, "gpuflow", self.timed(work))
        assert receipt["chunks"]["failed"] == 0, receipt["failures"][:1]
        self.report.add(job, "peak / planned", max(self.connection.client.run(_peak).values()) / planned.need_nbytes)
        self.report.add(job, "shipped / size", receipt["bytes"]["sent"] / self.nbytes)
        remove_dataset(self.connection, "out")

    def dask(self, job: str, source: str, chunks: tuple[int, ...], method: str) -> None:
        import dask
        import dask.array

        target = self.base / "dask.zarr"
        read = zarr.open_array(self.base / f"{source}.zarr", mode="r")
        with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster):

            def work() -> None:
                with dask.config.set({"array.rechunk.method": method}):
                    x = dask.array.from_zarr(read, chunks=read.chunks).rechunk(chunks)
                    out = zarr.create_array(
                        target, shape=self.shape, chunks=chunks, dtype="float32", compressors=codecs(self.compressor)
                    )
                    dask.array.store(x, out, lock=False)

            self.report.add(job, f"dask {method}", self.timed(work))
        shutil.rmtree(target)


def _reset_peak(dask_worker: Worker) -> None:
    """VmHWM of this process begins anew (proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")


def _peak(dask_worker: Worker) -> int:
    """Bytes of resident memory at the peak (proc(5), VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
