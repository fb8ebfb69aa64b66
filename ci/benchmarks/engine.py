"""The chunk engine against dask.array and against a loop written by hand: normalise, mean and std, small chunks.

Sides: gpuflow (embedded cluster, one node, its defaults; its output is sharded, as always), `by hand` (benchmarks/ceiling.py: the ceiling),
dask.array on threads and on distributed with the settings that were fastest here (one block a stored chunk; two processes of one thread),
and a loop over zarr-python. The others do not fsync, so gpuflow runs with `durability: atomic`; `durable` is compared with the loop with
the same fsyncs. Everything is read from the page cache, and what the side before wrote is on the disk before the next begins. Where a side
writes, it is the second of two runs in a row that counts."""

from __future__ import annotations

import argparse
import os
import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numcodecs import LZ4, Blosc, Zstd

import gpuflow
from ci.benchmarks import ceiling
from ci.benchmarks.report import Report, interleave
from ci.benchmarks.scratch import folder
from gpuflow.cluster.connection import Connection
from gpuflow.objectstore.ingest import remove_dataset
from gpuflow.pipelines.load import from_dict

SHAPE = (2, 1024, 1024)  # of a chunk: 8 MiB of float32
NBYTES = 4 * 2 * 1024 * 1024
CODECS: dict[str, Any] = {"raw": None, "zstd": Zstd(level=1), "lz4": LZ4(), "blosc": Blosc("lz4", 5, Blosc.NOSHUFFLE, typesize=1)}
STEPS = [{"standardize": {"mean": 280.0, "std": 12.0}}, {"clip": [-3, 3]}]


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--chunks", type=int, default=64, help="number of chunks of 8 MiB (default 64: 512 MiB)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--codecs", nargs="+", choices=list(CODECS), default=list(CODECS))
    parser.add_argument("--folder", type=Path, default=None, help="where the data is made (default: a temporary folder)")


def zarr_codecs(name: str) -> Any:
    """The array-to-bytes chain's compressors for zarr-python."""
    import numcodecs.zarr3
    from zarr.codecs import BloscCodec, ZstdCodec

    blosc = BloscCodec(cname="lz4", clevel=5, shuffle="noshuffle", typesize=1)
    return {"raw": None, "zstd": ZstdCodec(level=1), "lz4": numcodecs.zarr3.LZ4(), "blosc": blosc}[name]


def make_source(base: Path, codec: str, chunks: int) -> Path:
    """A field in kelvin with one decimal, as measurements have: zstd makes it about 3 times smaller."""
    path = base / f"{codec}.zarr"
    shape = (SHAPE[0] * chunks, *SHAPE[1:])
    array = zarr.create_array(path, shape=shape, chunks=SHAPE, dtype="float32", compressors=zarr_codecs(codec))
    field = np.round(np.random.default_rng(0).normal(280.0, 12.0, SHAPE), 1).astype(np.float32)
    for number in range(chunks):
        array[number * SHAPE[0] : (number + 1) * SHAPE[0]] = np.roll(field, number * 1013)
    return path


class Sides:
    """One codec's sides; each returns GB/s of decoded input."""

    def __init__(self, connection: Connection, client: Any, base: Path, codec: str, chunks: int) -> None:
        self.connection, self.client, self.base, self.codec, self.chunks = connection, client, base, codec, chunks
        self.source = make_source(base, codec, chunks)
        self.threads = len(os.sched_getaffinity(0))
        self.gigabytes = chunks * NBYTES / 1e9
        gpuflow.ingest(self.source, f"in-{codec}", connection=connection, link=True)

    def timed(self, work: Callable[[], Any]) -> float:
        os.sync()  # what the side before wrote is not to be written back meanwhile
        began = time.perf_counter()
        work()
        return self.gigabytes / (time.perf_counter() - began)

    def gpuflow(self, durability: str) -> Callable[[], float]:
        compressor = {"raw": "none"}.get(self.codec, self.codec)
        output = {"dataset": "out", "compressor": compressor}
        steps = [*STEPS, {"cast": "float16"}]
        spec = from_dict({"source": f"in-{self.codec}", "steps": steps, "output": output, "run": {"durability": durability}})

        def run() -> float:
            rate = self.timed(lambda: gpuflow.run(spec, connection=self.connection))
            remove_dataset(self.connection, "out")
            return rate

        return run

    def gpuflow_in_place(self) -> float:
        """Of a copy that was made for it: what has been normalised once compresses better."""
        name = f"place-{self.codec}"
        gpuflow.ingest(self.source, name, connection=self.connection)
        spec = from_dict({"source": name, "steps": STEPS, "output": {"in_place": True}, "run": {"durability": "atomic"}})
        rate = self.timed(lambda: gpuflow.run(spec, connection=self.connection))
        remove_dataset(self.connection, name)
        return rate

    def gpuflow_statistics(self) -> float:
        """Mean and std over everything, as a pipeline that standardizes asks for them; the map itself is not timed."""
        from gpuflow.execution.statistics import compute_moments

        return self.timed(lambda: compute_moments(self.connection, f"in-{self.codec}", "data"))

    def by_hand(self, durable: bool = False, half: bool = True) -> Callable[[], float]:
        def run() -> float:
            target = self.base / "by-hand"
            work = {"half": half, "threads": self.threads, "durable": durable}
            rate = self.timed(
                lambda: ceiling.normalise(self.source / "c", target, self.chunks, NBYTES, CODECS[self.codec], **work)
            )
            shutil.rmtree(target)
            return rate

        return run

    def by_hand_statistics(self) -> float:
        return self.timed(
            lambda: ceiling.mean_and_std(self.source / "c", self.chunks, NBYTES, CODECS[self.codec], threads=self.threads)
        )

    def dask(self, distributed: bool) -> Callable[[], float]:
        def run() -> float:
            target = self.base / "dask.zarr"
            rate = self.timed(lambda: self._dask_normalise(target, distributed))
            shutil.rmtree(target)
            return rate

        return run

    def _scheduler(self, distributed: bool) -> dict[str, Any]:
        return {"scheduler": self.client} if distributed else {"scheduler": "threads", "num_workers": self.threads}

    def _dask_normalise(self, target: Path, distributed: bool) -> None:
        import dask.array

        x = dask.array.from_zarr(zarr.open_array(self.source, mode="r"), chunks=SHAPE)
        y = dask.array.clip((x - np.float32(280.0)) / np.float32(12.0), -3, 3).astype(np.float16)
        out = zarr.create_array(target, shape=x.shape, chunks=SHAPE, dtype="float16", compressors=zarr_codecs(self.codec))
        dask.array.store(y, out, lock=False, **self._scheduler(distributed))

    def dask_statistics(self, distributed: bool) -> Callable[[], float]:
        import dask
        import dask.array

        def work() -> None:
            x = dask.array.from_zarr(zarr.open_array(self.source, mode="r"), chunks=SHAPE)
            dask.compute(x.mean(dtype="float64"), x.std(dtype="float64"), **self._scheduler(distributed))

        return lambda: self.timed(work)

    def zarr_loop(self) -> float:
        target = self.base / "loop.zarr"

        def work() -> None:
            source = zarr.open_array(self.source, mode="r")
            out = zarr.create_array(
                target, shape=source.shape, chunks=SHAPE, dtype="float16", compressors=zarr_codecs(self.codec)
            )
            for start in range(0, source.shape[0], SHAPE[0]):
                part = slice(start, start + SHAPE[0])
                out[part] = np.clip((source[part] - np.float32(280.0)) / np.float32(12.0), -3, 3).astype(np.float16)

        rate = self.timed(work)
        shutil.rmtree(target)
        return rate


def measure(arguments: argparse.Namespace) -> Report:
    from distributed import Client, LocalCluster

    warnings.filterwarnings("ignore", message=".*Zarr.*specification.*")
    report = Report("GB/s of decoded input")
    with (
        folder(arguments.folder) as base,
        gpuflow.connect(nodes=1, root=base / "root") as connection,
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        for codec in arguments.codecs:
            sides = Sides(connection, client, base, codec, arguments.chunks)
            _jobs(report, sides, codec, arguments.rounds)
            remove_dataset(connection, f"in-{codec}")
            shutil.rmtree(sides.source)
        _small_chunks(report, connection, base, arguments.rounds)
    return report


def _small_chunks(report: Report, connection: Connection, base: Path, rounds: int) -> None:
    """Microseconds a chunk of 64 KiB, from read to commit: the run's wall time over its chunks.

    Each round writes a dataset of its own and none goes before the last: a file system that has just deleted thousands of files is slow
    to make others."""
    count, nbytes = 4096, 64 * 1024
    path = base / "small.zarr"
    array = zarr.create_array(path, shape=(count * nbytes // 4,), chunks=(nbytes // 4,), dtype="float32", compressors=None)
    array[...] = np.random.default_rng(0).normal(280.0, 12.0, array.shape).astype(np.float32)
    gpuflow.ingest(path, "small", connection=connection)
    made: list[str] = []

    def microseconds(durability: str, in_place: bool = False) -> Callable[[], float]:
        def run() -> float:
            if not in_place:
                made.append(f"small-{len(made)}")
            output = {"in_place": True} if in_place else {"dataset": made[-1], "compressor": "none"}
            spec = from_dict({"source": "small", "steps": STEPS, "output": output, "run": {"durability": durability}})
            os.sync()
            began = time.perf_counter()
            gpuflow.run(spec, connection=connection, stack=True)
            return (time.perf_counter() - began) / count * 1e6

        return run

    bounds = {"atomic": 60, "durable": 400}
    for job, in_place in (("64 KiB chunks, us each", False), ("64 KiB chunks in place, us each", True)):
        sides = {f"gpuflow {durability}": microseconds(durability, in_place) for durability in bounds}
        interleave(report, job, sides, rounds)
        for durability, bound in bounds.items():
            report.check(f"{job}, {durability}", report.median(job, f"gpuflow {durability}"), "<=", bound)
    for name in ("small", *made):
        remove_dataset(connection, name)


def _jobs(report: Report, sides: Sides, codec: str, rounds: int) -> None:
    job = f"normalise {codec}"
    interleave(
        report,
        job,
        {
            "gpuflow": sides.gpuflow("atomic"),
            "by hand": sides.by_hand(),
            "dask threads": sides.dask(False),
            "dask distributed": sides.dask(True),
            "zarr loop": lambda: sides.zarr_loop(),
        },
        rounds,
        again=True,
    )
    best = max(("dask threads", "dask distributed"), key=lambda side: report.median(job, side))
    report.check(f"{job}: gpuflow / {best}", report.ratio(job, "gpuflow", best), ">=", {"raw": 12, "zstd": 2.5}.get(codec, 4))
    report.check(f"{job}: gpuflow / by hand", report.ratio(job, "gpuflow", "by hand"), ">=", 0.9)
    durable = f"normalise {codec}, durable"
    interleave(report, durable, {"gpuflow": sides.gpuflow("durable"), "by hand": sides.by_hand(durable=True)}, rounds, again=True)
    report.check(f"{durable}: gpuflow / by hand", report.ratio(durable, "gpuflow", "by hand"), ">=", 0.9)
    if codec in ("raw", "zstd"):
        job = f"mean+std {codec}"
        statistics = {
            "gpuflow": sides.gpuflow_statistics,
            "by hand": sides.by_hand_statistics,
            "dask threads": sides.dask_statistics(False),
            "dask distributed": sides.dask_statistics(True),
        }
        interleave(report, job, statistics, rounds)
        best = max(("dask threads", "dask distributed"), key=lambda side: report.median(job, side))
        report.check(f"{job}: gpuflow / {best}", report.ratio(job, "gpuflow", best), ">=", {"raw": 8, "zstd": 2}[codec])
    in_place = {"gpuflow": sides.gpuflow_in_place, "by hand": sides.by_hand(half=False)}
    interleave(report, f"normalise {codec}, in place", in_place, rounds, again=True)
