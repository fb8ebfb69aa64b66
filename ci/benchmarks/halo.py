"""Halo: a filter that looks 8 values around, over chunks of 512 x 512 on three nodes, against the same filter within each chunk.

The filter is a Gaussian of sigma 2; within a chunk it is the same SciPy function, as an `apply` step, so that nothing travels. Beside the
times the bytes that are shipped, against those of the borders: what the chunks of a source need of others, each by itself."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import zarr

import gpuflow
from ci.benchmarks.report import Report
from ci.benchmarks.scratch import folder
from gpuflow.cluster.connection import Connection
from gpuflow.objectstore.ingest import remove_dataset
from gpuflow.pipelines.load import from_dict

CHUNK, HALO = 512, 8
_SIGMA, _TRUNCATE = 2.0, 4.0


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--side", type=int, default=16, help="chunks along each of two dimensions (default 16)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=None, help="where the data is made (default: a temporary folder)")


def within(xp: Any, block: Any) -> Any:
    """The filter of a chunk by itself."""
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(block, _SIGMA, truncate=_TRUNCATE)


def measure(arguments: argparse.Namespace) -> Report:
    report = Report("seconds")
    size = arguments.side * CHUNK
    halo = {"gaussian": {"sigma": {"y": _SIGMA, "x": _SIGMA}, "truncate": _TRUNCATE}}
    jobs: dict[str, Any] = {"with halo": halo, "without": {"apply": {"function": "ci.benchmarks.halo:within"}}}
    with folder(arguments.folder) as base, gpuflow.connect(nodes=3, workers=1, root=base / "root") as connection:
        values = np.random.default_rng(0).normal(280.0, 12.0, (size, size)).astype("f4")
        zarr.create_array(base / "in.zarr", data=values, chunks=(CHUNK, CHUNK), dimension_names=["y", "x"], compressors=None)
        gpuflow.ingest(base / "in.zarr", "in", connection=connection)
        for number in range(arguments.rounds + 1):
            for side, step in jobs.items():
                seconds, shipped = _run(connection, step)
                if number:
                    report.add("filter", side, seconds)
                    report.add("shipped / borders", side, shipped / _border_nbytes(size))
    report.check("time with halo / without", report.ratio("filter", "with halo", "without"), "<=", 1.5)
    report.check("shipped / bytes of the borders", max(report.samples["shipped / borders"]["with halo"]), "<=", 1.05)
    return report


def _run(connection: Connection, step: Any) -> tuple[float, int]:
    """Seconds, and bytes that came from another node."""
    output = {"dataset": "out", "compressor": "none", "chunks": "whole"}
    spec = from_dict({"source": "in", "steps": [step], "output": output, "run": {"durability": "atomic"}})
    began = time.perf_counter()
    receipt = gpuflow.run(spec, connection=connection)
    seconds = time.perf_counter() - began
    remove_dataset(connection, "out")
    return seconds, receipt.outcome.tally.shipped


def _border_nbytes(size: int) -> int:
    """What all chunks need beside themselves; there is nothing beyond the edges of the array."""
    edges = np.arange(0, size, CHUNK)
    lengths = np.minimum(edges + CHUNK + HALO, size) - np.maximum(edges - HALO, 0)
    return int((np.multiply.outer(lengths, lengths).sum() - size**2) * 4)
