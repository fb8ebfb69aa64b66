"""A worker's peak memory over the size of the dataset, and how soon an engine is ready.

Each size has a cluster and a store of its own: statistics over everything, then normalise to a new dataset. All chunks of the source are
hard links of one file, so that what it takes on the disk is the output."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import zarr
from distributed import Worker

import gpuflow
from ci.benchmarks.engine import NBYTES, SHAPE, make_source
from ci.benchmarks.report import Report
from ci.benchmarks.scratch import folder
from gpuflow.pipelines.load import from_dict

READY = """
import numpy as np
import gpuflow.execution.run
from gpuflow.execution.jobs import MapJob, compile_for
from gpuflow.pipelines.load import from_dict
from gpuflow.storage.metadata import ArrayMetadata
from gpuflow.storage.record import DatasetRecord

steps = [{"standardize": {"mean": 280.0, "std": 12.0}}, {"clip": [-3, 3]}, {"cast": "float16"}]
spec = from_dict({"source": "a", "steps": steps, "output": "b"})
metadata = ArrayMetadata.create((4, 4), (4, 4), np.dtype("float32"))
record = DatasetRecord("a", arrays={"data": metadata.document})
compile_for(record, "data", MapJob((record,), "b", spec.steps, ""))
"""


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--gib", type=int, nargs=2, default=(1, 16), help="sizes of the small and the large dataset (default 1 16)"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None, help="where the data is made (default: a temporary folder)")


def measure(arguments: argparse.Namespace) -> Report:
    report = Report("MiB at the peak; seconds")
    small, large = arguments.gib
    for _ in range(arguments.rounds):
        for gib in (small, large):
            with folder(arguments.folder) as base:
                report.add("peak of a worker", f"{gib} GiB", _peak_mib(base, gib * 2**30 // NBYTES))
    job = "peak of a worker"
    report.check("peak, large / small dataset", report.ratio(job, f"{large} GiB", f"{small} GiB"), "<=", 1.05)
    for number in range(arguments.rounds + 1):
        seconds = _seconds_to_ready()
        if number:  # the first one compiles
            report.add("start: import, kernel from the cache", "seconds", seconds)
    report.check("start, seconds", median(report.samples["start: import, kernel from the cache"]["seconds"]), "<=", 1.0)
    return report


def _peak_mib(base: Path, chunks: int) -> float:
    source = make_source(base, "raw", 1)
    _repeat(source, chunks)
    spec = from_dict(
        {
            "source": "in",
            "steps": [{"standardize": {}}, {"clip": [-3, 3]}, {"cast": "float16"}],
            "output": {"dataset": "out", "compressor": "none"},
            "run": {"durability": "atomic", "cache": "off"},
        }
    )
    with gpuflow.connect(nodes=1, root=base / "root") as connection:
        gpuflow.ingest(source, "in", connection=connection, link=True)
        receipt = gpuflow.run(spec, connection=connection)
        assert receipt.outcome.tally.done == 2 * chunks
        return max(connection.client.run(_peak).values()) / 2**20


def _repeat(path: Path, chunks: int) -> None:
    """Have the array of one chunk be one of `chunks`, all the same file."""
    array = zarr.open_array(path)
    array.resize((SHAPE[0] * chunks, *SHAPE[1:]))
    for number in range(1, chunks):
        target = path / "c" / str(number) / "0"
        target.mkdir(parents=True)
        os.link(path / "c" / "0" / "0" / "0", target / "0")


def _peak(dask_worker: Worker) -> int:
    return peak_nbytes()


def peak_nbytes() -> int:
    """Bytes of resident memory at the peak, of the process that this runs in (proc(5), VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def _seconds_to_ready() -> float:
    """Of a process that finds its modules as bytecode, as an installed package has them."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", READY], check=True, env=environment)
    return time.perf_counter() - began
