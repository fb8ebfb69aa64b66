"""Plan: `gpuflow plan` from the shell for a million chunks, mapped, filtered with a halo, and rechunked; by number of chunks. And the time
that a plan expects against what the run takes.

The million chunks are rows of the manifests of two nodes; planning reads nothing else. The runs are warm, on two calibrated nodes: kernels
are compiled and the source is in the page cache, so that the plan's figure for that case is what they are held against."""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from contextlib import closing
from math import isqrt
from pathlib import Path

import numpy as np
import zarr

import gpuflow
from ci.benchmarks.engine import STEPS, make_source
from ci.benchmarks.report import Report
from ci.benchmarks.scratch import folder
from gpuflow.cluster.connection import Connection
from gpuflow.cluster.launch import node_roots
from gpuflow.objectstore.ingest import remove_dataset
from gpuflow.pipelines.load import from_dict
from gpuflow.storage.manifest import Replica
from gpuflow.storage.metadata import ArrayMetadata
from gpuflow.storage.node import NodeStore
from gpuflow.storage.record import DatasetRecord

NODES, _SIDE = 2, 4
_AT_ONCE = 2**16  # rows a transaction
_SMALL_VALUES = 2**14
_JOBS = {
    "map": "steps: [clip: [0, 1]]\noutput: out\n",
    "halo": "steps: [median: {size: {y: 3, x: 3}}]\noutput: out\n",
    "rechunk": "steps: []\noutput: {dataset: out, shards: [1, 16]}\n",
    "halo, rechunked": "steps: [median: {size: {y: 3, x: 3}}]\noutput: {dataset: out, shards: [1, 16]}\n",
}
_CODECS = {"raw": "none", "zstd": "zstd"}
"""Of what is timed: what the source is stored with, and the output's compressor."""


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--chunks", type=int, default=10**6, help="about so many (default 1000000)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--timed", type=int, default=32, help="chunks of 8 MiB of the runs that are timed (default 32: 256 MiB)")
    parser.add_argument("--small", type=int, default=4096, help="chunks of 64 KiB of such runs (default 4096)")
    parser.add_argument("--folder", type=Path, default=None, help="where the manifests are made (default: a temporary folder)")


def measure(arguments: argparse.Namespace) -> Report:
    report = Report("seconds of `gpuflow plan`, and of CPU; of runs, planned and measured")
    side = isqrt(arguments.chunks)
    with folder(arguments.folder) as base:
        for number, root in enumerate(node_roots(base, NODES)):
            with closing(NodeStore(root, name=f"node{number}")) as store:
                _fill(store, number, side)
        for _ in range(arguments.rounds):
            for job, text in _JOBS.items():
                path = base / "p.yaml"
                path.write_text("source: {dataset: in}\n" + text)
                wall, cpu, chunks = _planned(path, base)
                assert chunks == side**2, chunks
                report.add(job, "seconds", wall)
                report.add(job, "of CPU", cpu)
    for job in _JOBS:
        report.check(f"plan of {side**2:,} chunks, {job}, s", report.median(job, "seconds"), "<=", 5.0)
    with folder(arguments.folder) as base, gpuflow.connect(nodes=NODES, root=base / "root") as connection:
        for codec in _CODECS:
            gpuflow.ingest(make_source(base, codec, arguments.timed), codec, connection=connection)
        gpuflow.ingest(_small(base, arguments.small), "small", connection=connection)
        gpuflow.calibrate(connection=connection)
        for codec, compressor in _CODECS.items():
            _expected(report, connection, f"normalise {codec}", codec, compressor, "durable", arguments.rounds)
        for durability in ("atomic", "durable"):
            _expected(report, connection, f"64 KiB chunks, {durability}", "small", "none", durability, arguments.rounds)
    return report


def _small(base: Path, count: int) -> Path:
    """So many chunks of 64 KiB of float32, raw."""
    path = base / "small.zarr"
    array = zarr.create_array(path, shape=(count * _SMALL_VALUES,), chunks=(_SMALL_VALUES,), dtype="float32", compressors=None)
    array[...] = np.random.default_rng(0).normal(280.0, 12.0, array.shape).astype(np.float32)
    return path


def _expected(
    report: Report, connection: Connection, job: str, source: str, compressor: str, durability: str, rounds: int
) -> None:
    """Seconds that the plan of a normalisation says, and that the run takes; the first run does not count."""
    output = {"dataset": "out", "compressor": compressor}
    steps, run = [*STEPS, {"cast": "float16"}], {"durability": durability}
    spec = from_dict({"source": source, "steps": steps, "output": output, "run": run})
    planned = gpuflow.plan(spec, connection=connection).details["time"]
    report.add(job, "planned", planned["cached_seconds"])
    report.add(job, "planned, from the disk", planned["seconds"])
    for number in range(rounds + 1):
        os.sync()  # what the run before wrote is not to be written back meanwhile
        receipt = gpuflow.run(spec, connection=connection)
        remove_dataset(connection, "out")
        if number:
            report.add(job, "seconds", receipt.wall_seconds)
    ratio = report.median(job, "planned") / report.median(job, "seconds")
    report.check(f"{job}: planned / measured seconds", ratio, ">=", 0.5)
    report.check(f"{job}: planned / measured seconds", ratio, "<=", 2.0)


def _fill(store: NodeStore, node: int, side: int) -> None:
    """A square of chunks, in turn on the nodes."""
    metadata = ArrayMetadata.create((side * _SIDE,) * 2, (_SIDE,) * 2, np.dtype("f4"), dims=("y", "x"))
    store.put_record(DatasetRecord("in", state="ready", arrays={"a": metadata.document}))
    digests = np.random.default_rng(node).bytes(16 * side**2)
    mine = range(node, side**2, NODES)
    for start in range(0, len(mine), _AT_ONCE):
        rows = [
            Replica("in", "a", chunk, 1, 64, digests[16 * chunk : 16 * chunk + 16], bytes(16), bytes(16))
            for chunk in mine[start : start + _AT_ONCE]
        ]
        store.manifest.announce([(row, 0) for row in rows], "benchmark", durable=False)
        store.manifest.finish(rows, durable=False)


def _planned(path: Path, root: Path) -> tuple[float, float, int]:
    """Seconds, seconds of CPU, and chunks that are to be made."""
    command = [sys.executable, "-m", "gpuflow", "plan", str(path), "--root", str(root), "--nodes", str(NODES), "--json"]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, cpu, json.loads(done.stdout)["arrays"]["a"]["chunks"]["pending"]
