"""Steps: eight elementwise steps against one: a chunk's way through a worker, by compressor, without the disk.

Decoded, computed and encoded, 16 MiB of float32. Beside it the steps alone, on a block that is in memory, fused and by NumPy one by one."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from ci.benchmarks.report import Report, interleave
from gpuflow.steps.base import ArraySpec, Step
from gpuflow.steps.cast import Cast
from gpuflow.steps.clip import Clip
from gpuflow.steps.fill_nan import FillNan
from gpuflow.steps.fuse import Kernel, compile_steps
from gpuflow.steps.map import Map
from gpuflow.steps.standardize import Standardize
from gpuflow.steps.unpack import Unpack
from gpuflow.steps.where import Mask, Where
from gpuflow.storage.buffers import Slot
from gpuflow.storage.codecs import ArrayCodec
from gpuflow.storage.metadata import ArrayMetadata

SHAPE = (4, 1024, 1024)
_LEAST_SECONDS = 0.05
ONE: tuple[Step, ...] = (Map(expression="x * 2 + 1"),)
EIGHT: tuple[Step, ...] = (
    Unpack(scale_factor=0.01, add_offset=273.15, missing=-9999),
    Mask(condition="x < 180"),
    Where(condition="x < 400"),
    FillNan(value=280),
    Standardize(mean=280, std=12),
    Clip(min=-3, max=3),
    Map(expression="x * 0.5 + 0.5"),
    Cast(dtype="float32"),
)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=9)


def measure(arguments: argparse.Namespace) -> Report:
    report = Report("GB/s of one thread")
    block = np.random.default_rng(1).normal(280, 12, SHAPE).astype("float32")
    block[0, ::7] = np.nan
    spec, region = ArraySpec(SHAPE, block.dtype, (None,) * 3), tuple(slice(0, size) for size in SHAPE)
    out, slot = np.empty(SHAPE, "float32"), Slot()
    kernels = {"one step": compile_steps(ONE, spec), "eight steps": compile_steps(EIGHT, spec)}
    for name, kernel in kernels.items():
        report.notes.append(f"{name}: {kernel.describe()}")
    for compressor in ("zstd", "none"):
        metadata = ArrayMetadata.create(SHAPE, SHAPE, block.dtype, compressor=compressor, inner_chunks=(1, 256, 1024))
        codec = ArrayCodec(metadata)
        data = bytes(codec.encode(block, slot))
        sides = {name: _timed(partial(_way, codec, data, slot, kernel, region), block.nbytes) for name, kernel in kernels.items()}
        interleave(report, f"a chunk, {compressor}", sides, arguments.rounds)
    alone = {name: _timed(partial(kernel, block, region, out), block.nbytes) for name, kernel in kernels.items()}
    alone["eight, one by one"] = _timed(lambda: _one_by_one(EIGHT, block, spec, region), block.nbytes)
    interleave(report, "steps alone", alone, arguments.rounds)
    for job in ("a chunk, zstd", "a chunk, none"):
        report.check(f"{job}: time of eight steps, times that of one", report.ratio(job, "one step", "eight steps"), "<=", 1.25)
    report.ratio("steps alone", "one step", "eight steps")
    fused = report.ratio("steps alone", "eight steps", "eight, one by one")
    report.check("eight steps in one pass, times as fast as one by one", fused, ">=", 4)
    for job, ratio in list(report.ratios.items()):
        report.notes.append(f"{job}: {ratio:.2f}")
    return report


def _way(codec: ArrayCodec, data: bytes, slot: Slot, kernel: Kernel, region: Any) -> None:
    """As `execution.jobs.MapJob` does it."""
    block = codec.decode(data, slot)
    codec.encode(kernel(block, region, codec.place(SHAPE, slot)), slot)


def _timed(call: Callable[[], Any], nbytes: int) -> Callable[[], float]:
    def rate() -> float:
        count, began = 0, time.thread_time()
        while (spent := time.thread_time() - began) < _LEAST_SECONDS:
            call()
            count += 1
        return count * nbytes / 1e9 / spent

    return rate


def _one_by_one(steps: tuple[Step, ...], block: Any, spec: ArraySpec, region: Any) -> Any:
    for step in steps:
        block, spec = step.compute(np, block, spec, region), step.check(spec)
    return block
