"""On one CUDA device: its ceilings, the kernels and the decoder against them, and the lane against the CPU and zarr-python.

Ceilings first: a copy within the device, pinned memory to it and back, and reads from the page cache. Then, interleaved: the fused kernel
and the moments, as a share of the copy's traffic; zstd frames of 64 KiB in one batch against numcodecs on all cores; shards to the device
against zarr-python's `enable_gpu()` and against the CPU's decoder and a copy; pipelines on a cluster of one node, on the device and on
all cores; the second pass over what lies in the device's memory; and its memory before and after many chunks."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import zarr
from distributed import Worker

import gpuflow
from ci.benchmarks.report import Report, interleave
from ci.benchmarks.scratch import folder
from gpuflow.backends.devices import cuda_devices, installed, machine, why_no_cuda
from gpuflow.cluster.connection import Connection
from gpuflow.objectstore.ingest import remove_dataset
from gpuflow.pipelines.load import from_dict
from gpuflow.steps.base import ArraySpec
from gpuflow.steps.fuse import compile_steps
from gpuflow.storage.buffers import Slot
from gpuflow.storage.codecs import ArrayCodec
from gpuflow.storage.disk import write_file
from gpuflow.storage.frames import batching
from gpuflow.storage.framing import framing
from gpuflow.storage.metadata import ArrayMetadata

SHARD, INNER = (16, 512, 512), (1, 128, 128)  # 16 MiB of float32, in frames of 64 KiB
STEPS = [{"standardize": {"mean": 280.0, "std": 12.0}}, {"clip": [-3, 3]}, {"cast": "float16"}]
LEAK_NBYTES = 2**20


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shards", type=int, default=16, help="of 16 MiB each (default 16: 256 MiB)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--chunks", type=int, default=1000, help="chunks that pass the lane to see whether memory stays (default 1000)"
    )
    parser.add_argument("--folder", type=Path, default=None, help="where the data is made (default: a temporary folder)")


def measure(arguments: argparse.Namespace) -> Report:
    if reason := why_no_cuda("cupy"):
        raise SystemExit(f"there is no device to measure: {reason}")
    report = Report("GB/s of decoded bytes, but for the ceilings")
    report.notes.append(_where())
    with folder(arguments.folder) as base:
        path = _make(base, arguments.shards)
        _ceilings(report, path, arguments.rounds)
        _kernels(report, arguments.rounds)
        _decoding(report, path, arguments.rounds)
        _encoding(report, path, arguments.rounds)
        _to_device(report, path, arguments.rounds)
        _pipelines(report, base, path, arguments)
    return report


def _where() -> str:
    (device, *_), known = cuda_devices(), machine()
    versions = [f"{name} {'' if major is None else f'(CUDA {major})'}" for name, major in installed("cupy").items()]
    cuda = f"driver {known.driver}, CUDA {known.cuda[0]}.{known.cuda[1]}"
    return f"{time.strftime('%Y-%m-%d')}: {device.name}, {cuda}, {', '.join(versions)}, {len(os.sched_getaffinity(0))} cores"


def _make(base: Path, shards: int) -> Path:
    """A field in kelvin with one decimal, in shards as gpuflow writes them: frames begin at multiples of 16 bytes."""
    metadata = ArrayMetadata.create((SHARD[0] * shards, *SHARD[1:]), SHARD, np.dtype("f4"), compressor="zstd", inner_chunks=INNER)
    path, codec, random = base / "source.zarr", ArrayCodec(metadata), np.random.default_rng(0)
    path.mkdir()
    (path / "zarr.json").write_text(json.dumps(metadata.document))
    for number in range(shards):
        block = np.round(random.normal(280.0, 12.0, SHARD), 1).astype(np.float32)
        file = path / metadata.key(number)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(codec.encode(block))
    return path


def _rate(queue: Any, nbytes: int, work: Callable[[], Any], seconds: float = 0.2) -> float:
    """GB/s of a call that only puts into `queue`, repeated."""
    work()
    queue.wait()
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        for _ in range(8):
            work()
        queue.wait()
        count += 8
    return count * nbytes / 1e9 / (time.perf_counter() - began)


def _ceilings(report: Report, path: Path, rounds: int) -> None:
    from gpuflow.backends.cuda import Cuda, Queue, cupy

    queue, nbytes = Queue(), 2**28
    files = _files(path)
    with queue():
        one, other = cupy.zeros(2**30, np.uint8), cupy.zeros(2**30, np.uint8)
        host, there = Cuda().pinned(nbytes), cupy.zeros(nbytes, np.uint8)
        sides = {
            "copy, read and written": lambda: _rate(queue, 2 * one.nbytes, lambda: cupy.copyto(other, one)),
            "pinned to device": lambda: _rate(queue, nbytes, lambda: there.set(host, stream=queue.stream)),
            "device to pinned": lambda: _rate(queue, nbytes, lambda: there.get(stream=queue.stream, out=host, blocking=False)),
            "page cache": lambda: _read(files),
        }
        for job, ceiling in sides.items():
            interleave(report, job, {"ceiling": ceiling}, rounds)

        def upload() -> float:
            return _rate(queue, nbytes, lambda: queue.upload(host))

        interleave(report, "upload of a slot", {"gpuflow": upload, "ceiling": sides["pinned to device"]}, rounds)
    report.check("upload / pinned to device", report.ratio("upload of a slot", "gpuflow", "ceiling"), ">=", 0.9)


def _read(files: list[Path]) -> float:
    began = time.perf_counter()
    nbytes = sum(len(file.read_bytes()) for file in files)
    return nbytes / 1e9 / (time.perf_counter() - began)


def _kernels(report: Report, rounds: int) -> None:
    from gpuflow.backends.cuda import Queue, cupy
    from gpuflow.backends.cuda_moments import moments

    queue, shape = Queue(), (256, 1024, 1024)
    steps = from_dict({"source": "a", "steps": STEPS, "output": "b"}).steps
    kernel = compile_steps(steps, ArraySpec(shape, np.dtype("f4"), (None, None, None)), "numba", "cuda")
    region = tuple(slice(0, size) for size in shape)
    with queue():
        block = cupy.random.default_rng(0).standard_normal(shape, np.float32)
        other = cupy.empty_like(block)
        works = {
            "normalise to float16, traffic": lambda: _rate(queue, block.nbytes * 3 // 2, lambda: kernel(block, region)),
            "mean and std, traffic": lambda: _rate(queue, block.nbytes, lambda: moments(block, ())),
        }
        for job, work in works.items():
            copy = partial(_rate, queue, 2 * block.nbytes, lambda: cupy.copyto(other, block))
            interleave(report, job, {"gpuflow": work, "ceiling": copy}, rounds)
            report.check(f"{job} / copy", report.ratio(job, "gpuflow", "ceiling"), ">=", 0.85)


def _decoding(report: Report, path: Path, rounds: int) -> None:
    from gpuflow.backends.cuda import Queue

    codec = ArrayCodec(ArrayMetadata(json.loads((path / "zarr.json").read_text())))
    make, queue, stored = batching(codec), Queue(), _stored(path)
    assert make is not None
    frames = [make(data) for data in stored]
    nbytes = sum(one.count * one.nbytes for one in frames if one is not None)
    with queue():
        there = [
            (one, queue.upload(data), queue.upload(np.empty(one.count * one.nbytes, np.uint8)))
            for one, data in _both(frames, stored)
        ]

        def on_device() -> float:
            began = time.perf_counter()
            for one, data, out in there:
                queue._decode_batch(one, data, out)
            return nbytes / 1e9 / (time.perf_counter() - began)

        cores = len(os.sched_getaffinity(0))
        with ThreadPoolExecutor(cores) as pool:
            on_cpu = partial(_decoded_rate, pool, codec, stored, nbytes)
            on_device()
            interleave(report, "zstd frames of 64 KiB", {"gpuflow": on_device, "all cores": on_cpu}, rounds)
    report.check("batched zstd / numcodecs on all cores", report.ratio("zstd frames of 64 KiB", "gpuflow", "all cores"), ">=", 10)


def _encoding(report: Report, path: Path, rounds: int) -> None:
    """Blocks that lie on the device, encoded and copied back, against all cores; what came back is what it was."""
    from gpuflow.backends.cuda import Cuda

    codec, accelerator = ArrayCodec(ArrayMetadata(json.loads((path / "zarr.json").read_text()))), Cuda()
    make, queue, slot = framing(codec), accelerator.queue(), Slot(accelerator.pinned)
    assert make is not None
    batch, blocks = make(SHARD), [codec.decode(data) for data in _stored(path)[:4]]
    nbytes, cores = sum(block.nbytes for block in blocks), len(os.sched_getaffinity(0))

    def encoded(there: Any) -> Any:
        frames, sizes = queue.encode(batch, there)
        queue.download(frames, batch.place(sizes, slot.encoded))
        return batch.finish(sizes, slot.encoded)

    with queue(), ThreadPoolExecutor(cores) as pool:
        on_device = [queue.upload(block) for block in blocks]
        for block, there in zip(blocks, on_device, strict=True):
            np.testing.assert_array_equal(codec.decode(encoded(there)), block)

        def timed(work: Callable[[], Any]) -> float:
            began = time.perf_counter()
            work()
            return nbytes / 1e9 / (time.perf_counter() - began)

        times = -(-cores // len(blocks))  # so that every core has a block
        sides = {
            "gpuflow": lambda: timed(lambda: [encoded(there) for there in on_device]),
            "all cores": lambda: times * timed(lambda: list(pool.map(codec.encode, blocks * times))),
        }
        interleave(report, "encode to zstd frames of 64 KiB", sides, rounds)
    report.ratio("encode to zstd frames of 64 KiB", "gpuflow", "all cores")


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file() and file.name != "zarr.json")


def _stored(path: Path) -> list[Any]:
    return [np.fromfile(file, np.uint8) for file in _files(path)]


def _both(frames: list[Any], stored: list[Any]) -> list[tuple[Any, Any]]:
    return [(one, data) for one, data in zip(frames, stored, strict=True) if one is not None]


def _decoded_rate(pool: ThreadPoolExecutor, codec: ArrayCodec, stored: list[Any], nbytes: int) -> float:
    began = time.perf_counter()
    list(pool.map(codec.decode, stored))
    return nbytes / 1e9 / (time.perf_counter() - began)


def _to_device(report: Report, path: Path, rounds: int) -> None:
    """Whole shards from files in the page cache to arrays on the device."""
    from gpuflow.backends.cuda import Cuda, Queue, cupy
    from gpuflow.storage.buffers import Slots

    codec = ArrayCodec(ArrayMetadata(json.loads((path / "zarr.json").read_text())))
    files = _files(path)
    make, slots, nbytes = batching(codec), Slots(Cuda().pinned), len(files) * int(np.prod(SHARD)) * 4
    assert make is not None

    def load(file: Path, *, batched: bool) -> None:
        with slots.take() as slot:
            slot.queue = slot.queue or Queue()
            with slot.queue(), file.open("rb") as opened:
                data = slot.stored.bytes(file.stat().st_size)
                opened.readinto(data)
                frames = make(data) if batched else None
                array = slot.queue.decode(frames, data) if frames else slot.queue.upload(codec.decode(data, slot))
                slot.queue.wait()
                del array

    def timed(work: Callable[[], Any]) -> float:
        began = time.perf_counter()
        work()
        return nbytes / 1e9 / (time.perf_counter() - began)

    def by_zarr() -> None:
        with zarr.config.enable_gpu():
            array = zarr.open_array(path, mode="r")
            for number in range(array.shape[0] // SHARD[0]):
                array[number * SHARD[0] : (number + 1) * SHARD[0]]
            cupy.cuda.Device().synchronize()

    with ThreadPoolExecutor(4) as few, ThreadPoolExecutor(len(os.sched_getaffinity(0))) as all_cores:
        sides = {
            "gpuflow": lambda: timed(lambda: list(few.map(partial(load, batched=True), files))),
            "all cores": lambda: timed(lambda: list(all_cores.map(partial(load, batched=False), files))),
            "zarr": lambda: timed(by_zarr),
        }
        for side in sides.values():
            side()
        interleave(report, "zstd shards to the device", sides, rounds)
    for side, bound in (("zarr", 5), ("all cores", 2)):
        report.check(
            f"zstd shards to the device, times {side}", report.ratio("zstd shards to the device", "gpuflow", side), ">=", bound
        )


def _pipelines(report: Report, base: Path, path: Path, arguments: argparse.Namespace) -> None:
    """The same pipelines on the device, and on all cores; then what the device kept."""
    gigabytes = arguments.shards * int(np.prod(SHARD)) * 4 / 1e9
    places = {"gpuflow": ("cuda", base / "device"), "all cores": ("cpu", base / "cpu")}
    sides = {}
    for side, (device, root) in places.items():
        connection = gpuflow.connect(nodes=1, root=root, device=device)
        gpuflow.ingest(path, "in", connection=connection, link=True)
        sides[side] = connection
    try:
        rates = {side: partial(_normalise, connection, gigabytes) for side, connection in sides.items()}
        for rate in rates.values():
            rate()
        interleave(report, "normalise to a new dataset", rates, arguments.rounds)
        report.ratio("normalise to a new dataset", "gpuflow", "all cores")
        _share_of_the_slowest_stage(report, base, path, arguments.rounds)
        connection = sides["gpuflow"]
        _passes(report, connection, gigabytes, arguments.rounds)
        before = connection.client.run(_used)
        for _ in range(-(-arguments.chunks // arguments.shards)):
            _normalise(connection, gigabytes)
        after = connection.client.run(_used)
    finally:
        for connection in sides.values():
            connection.close()
    grown = max(after[worker] - before[worker] for worker in before)
    report.check(f"device and pinned memory after {arguments.chunks} chunks, MiB more", grown / 2**20, "<=", LEAK_NBYTES / 2**20)


def _share_of_the_slowest_stage(report: Report, base: Path, path: Path, rounds: int) -> None:
    """Of normalising; every stage by itself, in GB/s of decoded input: what it would take if the others took nothing."""
    files, half = _files(path), np.zeros(int(np.prod(SHARD)) * 2, np.uint8)
    nbytes, stored = len(files) * int(np.prod(SHARD)) * 4, sum(file.stat().st_size for file in files)

    def written() -> float:
        places = [base / f"written-{number}" for number in range(len(files))]
        began = time.perf_counter()
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            list(pool.map(lambda place: write_file(place, half.data, durable=False), places))
        rate = nbytes / 1e9 / (time.perf_counter() - began)
        for place in places:
            place.unlink()
        return rate

    for _ in range(rounds):
        report.add("writing the output", "ceiling", written())
    stages = {
        "read": report.median("page cache", "ceiling") * nbytes / stored,
        "copy there": report.median("pinned to device", "ceiling") * nbytes / stored,
        "decode": report.median("zstd frames of 64 KiB", "gpuflow"),
        "steps": report.median("normalise to float16, traffic", "gpuflow") / 1.5,
        "copy back": report.median("device to pinned", "ceiling") * 2,
        "write": report.median("writing the output", "ceiling"),
    }
    slowest = min(stages, key=lambda stage: stages[stage])
    share = report.median("normalise to a new dataset", "gpuflow") / stages[slowest]
    report.check(f"normalise to a new dataset / its slowest stage ({slowest})", share, ">=", 0.85)


def _normalise(connection: Connection, gigabytes: float) -> float:
    output = {"dataset": "out", "compressor": "none"}
    spec = from_dict({"source": "in", "steps": STEPS, "output": output, "run": {"durability": "atomic", "cache": "off"}})
    began = time.perf_counter()
    gpuflow.run(spec, connection=connection)
    rate = gigabytes / (time.perf_counter() - began)
    remove_dataset(connection, "out")
    return rate


def _passes(report: Report, connection: Connection, gigabytes: float, rounds: int) -> None:
    """Of chunks through the lane on one worker: read and decoded, or in the device's memory already."""
    for _ in range(rounds):
        first, second = max(connection.client.run(_two_passes, gigabytes).values())
        report.add("first pass", "gpuflow", first)
        report.add("second pass, from VRAM", "gpuflow", second)
    passes = [report.samples[job]["gpuflow"] for job in ("second pass, from VRAM", "first pass")]
    ratio = median(kept / read for kept, read in zip(*passes, strict=True))
    report.check("second pass from VRAM / first", ratio, ">=", 50)


def _two_passes(gigabytes: float, dask_worker: Worker) -> tuple[float, float]:
    """GB/s of two passes of moments over all chunks of the worker's node, the tier being empty before."""
    from gpuflow.cluster.messages import ChunkGroup
    from gpuflow.execution.jobs import StatisticsJob
    from gpuflow.execution.lane import Lane
    from gpuflow.reductions.requests import MomentsRequest

    runtime = dask_worker.gpuflow
    runtime.ram.forget("in")
    record = runtime.store.record("in")
    (name,) = record.arrays
    job, grid = StatisticsJob((record,), (), MomentsRequest(()), device="cuda"), record.array(name).grid
    replicas = runtime.store.manifest.replicas_of("in", name, range(grid.size))
    rates = []
    for _ in range(2):
        known = sorted(replicas)
        generations = tuple(replicas[chunk].generation for chunk in known)
        group = ChunkGroup("bench", "in", name, tuple(known), generations, generations, 0, 0, takes=True, fills=True)
        with runtime.slots.take() as slot:
            lane = Lane(runtime, group, slot)
            began = time.perf_counter()
            for chunk in known:
                job.process(lane, chunk)
            rates.append(gigabytes / (time.perf_counter() - began))
            if lane.warm_on_device is not None:
                lane.warm_on_device.let_go()
    return rates[0], rates[1]


def _used(dask_worker: Worker) -> int:
    """Bytes of the device, and of pinned memory, that are in use."""
    from gpuflow.backends.cuda import cupy

    free, whole = cupy.cuda.runtime.memGetInfo()
    return int(whole - free) + int(dask_worker.gpuflow.slots.nbytes)
