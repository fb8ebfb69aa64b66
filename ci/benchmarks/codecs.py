"""Codecs: whole stored objects of 8 MiB float32 and 4 MiB float16, decoded and encoded here and by zarr-python.

Shards and plain chunks, bytes in memory. Figures are decoded GB per second of CPU time, of all threads: zarr-python spreads the inner
chunks of one shard over threads, gpuflow the shards of a run. zarr-python is used as its users do: an array over a dict, `array[...]`."""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from ci.benchmarks.report import Report, interleave
from gpuflow.storage.buffers import Slot
from gpuflow.storage.codecs import ArrayCodec, Block
from gpuflow.storage.inner_chunks import inner_chunks
from gpuflow.storage.metadata import ArrayMetadata

SHAPE = (2, 1024, 1024)
COMPRESSORS = ("none", "zstd", "lz4", "blosc")
BOUNDS = {"none": 2.0, "zstd": 1.2, "lz4": 1.5, "blosc": 1.5}
"""Times zarr-python that decoding and encoding a float32 shard have to be. The compressor itself is the same library on both sides."""
_LEAST_SECONDS = 0.02


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=5)


def measure(arguments: argparse.Namespace) -> Report:
    warnings.filterwarnings("ignore", message="Numcodecs codecs are not in", category=UserWarning)
    report = Report("GB/s of CPU time")
    for dtype in ("float32", "float16"):
        for compressor in COMPRESSORS:
            for form in ("shard", "chunk"):
                _compare(report, np.dtype(dtype), compressor, form, arguments.rounds)
    for compressor, bound in BOUNDS.items():
        for what in ("decode", "encode"):
            ratio = report.ratio(f"float32 {compressor} shard {what}", "gpuflow", "zarr-python")
            report.check(f"{what} a {compressor} shard, times zarr-python", ratio, ">=", bound)
    return report


def _compare(report: Report, dtype: np.dtype[Any], compressor: str, form: str, rounds: int) -> None:
    block, slot = field(dtype), Slot()
    inner = inner_chunks(SHAPE, dtype.itemsize) if form == "shard" else None
    metadata = ArrayMetadata.create(SHAPE, SHAPE, dtype, compressor=compressor, inner_chunks=inner)
    codec, array = ArrayCodec(metadata), _zarr_array(metadata)
    encoded = bytes(codec.encode(block, slot))
    array[...] = block
    name = f"{dtype} {compressor} {form}"
    report.notes.append(f"{name}: {block.nbytes / len(encoded):.2f} times smaller")
    decode = {"gpuflow": lambda: codec.decode(encoded, slot), "zarr-python": lambda: array[...]}
    encode = {"gpuflow": lambda: codec.encode(block, slot), "zarr-python": lambda: array.__setitem__(..., block)}
    for what, sides in (("decode", decode), ("encode", encode)):
        timed = {side: partial(_gb_per_cpu_second, call, block.nbytes) for side, call in sides.items()}
        interleave(report, f"{name} {what}", timed, rounds)


def _gb_per_cpu_second(call: Callable[[], Any], nbytes: int) -> float:
    count, began = 0, time.process_time()
    while (spent := time.process_time() - began) < _LEAST_SECONDS:
        call()
        count += 1
    return count * nbytes / 1e9 / spent


def _zarr_array(metadata: ArrayMetadata) -> zarr.Array[Any]:
    document = default_buffer_prototype().buffer.from_bytes(metadata.to_json())
    return zarr.open_array(MemoryStore({"zarr.json": document}), mode="r+")


def field(dtype: np.dtype[Any]) -> Block:
    """What measurements look like: a smooth field with noise, given to one decimal."""
    z, y, x = (np.linspace(0, 6, size) for size in SHAPE)
    smooth = 280 + 12 * np.sin(z)[:, None, None] * np.cos(y)[:, None] + 8 * np.sin(x)
    return np.round(smooth + np.random.default_rng(1).normal(0, 0.3, SHAPE), 1).astype(dtype)
