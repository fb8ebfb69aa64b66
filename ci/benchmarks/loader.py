"""The training loader against what people have: the same samples, batches and cores, all data in the page cache.

Sides: gpuflow over what its ingest stores (zstd) and over what a pipeline with `compressor: none` stores; torch DataLoader over
zarr-python with 0 and 2 workers and xbatcher, over the same zstd; and MosaicML Streaming, LitData, WebDataset and HF datasets over raw data
in their own formats (benchmarks/loader_peers.py says how each is set up). All are shuffled. `first` is an epoch of a loader that was just
made (worker processes are started in it), `next` those after it, where gpuflow has what fits into its cache (1 GiB) in memory.

Shapes: ERA5-like slices of 20 x 640 x 1280 float32; images of 224 x 224 x 3 bytes; and the samples of MLPerf Storage, unet3d and cosmoflow
with a 16th and a 4th of their bytes, resnet50 whole, with the benchmark's seconds of an H100 a batch slept away: how much of the time the
accelerator would have been busy. In these nothing is cached."""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import psutil

import gpuflow
from ci.benchmarks.loader_peers import PEERS, Epoch, xbatcher_loader, zarr_loader
from ci.benchmarks.report import Report
from ci.benchmarks.scratch import folder
from gpuflow.cluster.connection import Connection
from gpuflow.training.access import Access

NAIVE = "zarr, 0 workers"
OURS = ("gpuflow", "gpuflow raw")


@dataclass(frozen=True)
class Shape:
    """samples: how many by default. seconds: of an H100 for a batch (MLPerf Storage 2.0), 0 where none is emulated. busy: the share of the
    time that it has to be busy."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    samples: int
    batch_size: int
    chunk_samples: int
    seconds: float = 0.0
    busy: float = 0.0


SHAPES = (
    Shape("era5", (20, 640, 1280), "float32", 12, 1, 1),
    Shape("images", (224, 224, 3), "uint8", 2048, 32, 64),
    Shape("unet3d / 16", (132, 132, 132), "float32", 42, 7, 1, 0.323, 0.90),
    Shape("resnet50", (114_660,), "uint8", 4000, 400, 64, 0.224, 0.90),
    Shape("cosmoflow / 4", (4, 56, 56, 56), "uint8", 1024, 1, 8, 0.0035, 0.70),
)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shapes", nargs="+", choices=[shape.name.split()[0] for shape in SHAPES], default=None)
    parser.add_argument(
        "--peers", type=Path, default=None, help="folder with the other loaders: pip install --target; see peers.txt"
    )
    parser.add_argument("--folder", type=Path, default=None, help="where the data is made (default: a temporary folder)")


def measure(arguments: argparse.Namespace) -> Report:
    warnings.filterwarnings("ignore")
    if arguments.peers is not None:
        sys.path.append(str(arguments.peers))
    report = Report("samples/s; of MLPerf's shapes, % of the time that an accelerator is busy")
    with folder(arguments.folder) as base:
        chosen = [shape for shape in SHAPES if arguments.shapes is None or shape.name.split()[0] in arguments.shapes]
        with gpuflow.connect(nodes=1, root=base / "store") as cluster:
            for shape in chosen:
                _make(cluster, base, shape)
        for shape in chosen:
            _compare(report, base, shape, arguments.rounds)
        _many_samples(report, base)
        _locality(report, base)
        _elsewhere(report, base, arguments.rounds)
    return report


def _values(shape: Shape) -> np.ndarray[Any, Any]:
    """Fields as smooth as weather, which zstd makes half as large; pictures with some noise; bytes that nothing makes smaller."""
    from scipy.ndimage import gaussian_filter

    random = np.random.default_rng(0)
    if shape.name == "era5":
        field = gaussian_filter(random.normal(size=shape.shape).astype("float32"), (0, 3, 3))
        return np.stack([np.round(np.roll(field, 7 * number, axis=2) + 0.01 * number, 3) for number in range(shape.samples)])
    if shape.name == "images":
        some = gaussian_filter(random.normal(128, 60, (64, *shape.shape)), (0, 2, 2, 0))
        some = np.clip(some + random.integers(0, 6, some.shape), 0, 255).astype("uint8")
        return np.concatenate([np.roll(some, 3 * number, axis=2) for number in range(shape.samples // 64)])
    nbytes = int(np.prod(shape.shape)) * np.dtype(shape.dtype).itemsize
    return np.frombuffer(random.bytes(shape.samples * nbytes), shape.dtype).reshape(shape.samples, *shape.shape)


def _make(cluster: Connection, base: Path, shape: Shape) -> None:
    """Datasets `x` (zstd) and `x-raw` of a shape."""
    name = shape.name.split()[0]
    np.save(base / f"{name}.npy", _values(shape))
    gpuflow.ingest(base / f"{name}.npy", name, connection=cluster, chunk_samples=shape.chunk_samples)
    raw = gpuflow.Pipeline(name).cast(shape.dtype).to(f"{name}-raw", compressor="none")
    gpuflow.run(raw, connection=cluster)


def _sides(base: Path, shape: Shape, values: np.ndarray[Any, Any], report: Report) -> dict[str, Callable[[], Epoch]]:
    name = shape.name.split()[0]
    stored = base / "store" / "datasets" / name / "data"
    cache = "0B" if shape.seconds else "1GiB"
    sides: dict[str, Callable[[], Epoch]] = {
        "gpuflow": partial(_own, base, name, shape.batch_size, cache),
        "gpuflow raw": partial(_own, base, f"{name}-raw", shape.batch_size, cache),
        NAIVE: partial(zarr_loader, stored, shape.batch_size, 0),
        "zarr, 2 workers": partial(zarr_loader, stored, shape.batch_size, 2),
    }
    if find_spec("xbatcher") is not None:
        sides["xbatcher"] = partial(xbatcher_loader, stored, shape.batch_size)
    for peer, (module, make) in PEERS.items():
        if find_spec(module) is not None:
            sides[peer] = partial(make, base / peer.replace(" ", "-") / name, values, shape.batch_size)
    missing = [
        peer for peer, module in (("xbatcher", "xbatcher"), *((p, m) for p, (m, _) in PEERS.items())) if not find_spec(module)
    ]
    note = f"not installed, and not compared: {', '.join(missing)} (see --peers)"
    if missing and note not in report.notes:
        report.notes.append(note)
    return sides


def _own(base: Path, dataset: str, batch_size: int, cache: str) -> Epoch:
    loader = gpuflow.loader(dataset, batch_size, root=base / "store", cache=cache)
    return lambda: loader


def _compare(report: Report, base: Path, shape: Shape, rounds: int) -> None:
    values = np.load(base / f"{shape.name.split()[0]}.npy", mmap_mode="r")
    jobs = [f"{shape.name}: {when}" for when in ("first", "next")]
    sides = _sides(base, shape, values, report)
    for side in list(sides):  # data is written, and what does not work here is left out and named
        try:
            _length(next(iter(sides[side]()())))
        except Exception as error:  # noqa: BLE001 - whatever a peer raises
            report.notes.append(f"{side} failed on {shape.name}: {type(error).__name__}: {str(error)[:200]}")
            del sides[side]
    for _ in range(rounds):
        for side, make in sides.items():
            with _peak_memory() as peak:
                epoch = make()
                figures = [_epoch(epoch(), shape) for _ in range(3)]
            for job, figure in zip(jobs, (figures[0], float(np.mean(figures[1:]))), strict=True):
                report.add(job, side, figure)
            if shape.name == "images":
                report.add("images: peak MiB above what was there", side, peak[0] / 2**20)
            del epoch
            gc.collect()
    _checks(report, shape, jobs, [side for side in sides if side not in OURS])


def _epoch(batches: Iterable[Any], shape: Shape) -> float:
    """Samples a second; where an accelerator is emulated, the share of the time that it is busy, in %."""
    began, count, steps = time.perf_counter(), 0, 0
    for batch in batches:
        count += _length(batch)
        steps += 1
        if shape.seconds:
            time.sleep(shape.seconds)
    seconds = time.perf_counter() - began
    assert count >= shape.samples * 0.95, count
    return 100 * steps * shape.seconds / seconds if shape.seconds else count / seconds


def _length(batch: Any) -> int:
    return len(next(iter(batch.values()))) if isinstance(batch, dict) else len(batch)


def _checks(report: Report, shape: Shape, jobs: list[str], peers: list[str]) -> None:
    first, following = jobs
    for job in jobs:
        mine = max(OURS, key=lambda side: report.median(job, side))
        if shape.seconds:
            report.check(f"{job}: % of the time busy", report.median(job, mine), ">=", 100 * shape.busy)
            continue
        best = max(peers, key=lambda side: report.median(job, side))
        report.check(f"{job}: {mine}, times the best of the others ({best})", report.ratio(job, mine, best), ">=", 1.5)
    if shape.name == "era5":
        for job in jobs:
            report.check(f"{job}: gpuflow, times the naive loader", report.ratio(job, "gpuflow", NAIVE), ">=", 17)
        once, raw = (report.ratio(first, side, NAIVE) for side in OURS)
        report.notes.append(
            f"{first}: gpuflow {once:.1f} times the naive loader, which decompresses the same bytes; raw {raw:.1f} times"
        )
    if not shape.seconds:
        pairs = zip(report.samples[following]["gpuflow"], report.samples[first]["gpuflow"], strict=True)
        report.check(f"{shape.name}: epochs from memory, times the first", float(np.median([b / a for b, a in pairs])), ">=", 5)


@contextmanager
def _peak_memory() -> Any:
    """Most memory of this process and its children (proportional set size) above what there was, in bytes, in a list."""
    import threading

    own, peak, done = psutil.Process(), [0], threading.Event()

    def used() -> int:
        total = 0
        for process in (own, *own.children(recursive=True)):
            try:
                total += process.memory_full_info().pss
            except psutil.Error:
                continue
        return total

    before = used()

    def watch() -> None:
        while not done.wait(0.25):
            peak[0] = max(peak[0], used() - before)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def _many_samples(report: Report, base: Path) -> None:
    """A million samples: the first batch, and going on in the middle."""
    count = 10**6
    np.save(base / "many.npy", np.arange(count * 32, dtype="float32").reshape(count, 32))
    with gpuflow.connect(nodes=1, root=base / "store") as cluster:
        gpuflow.ingest(base / "many.npy", "many", connection=cluster, chunk_samples=8192)
    for _ in range(3):
        began = time.perf_counter()
        with gpuflow.loader("many", 256, root=base / "store") as loader:
            made = time.perf_counter()
            next(iter(loader))
            report.add("10^6 samples: seconds", "made", made - began)
            report.add("10^6 samples: seconds", "first batch", time.perf_counter() - made)
            state = loader.state_dict()
        report.add("10^6 samples: seconds", "order of a batch", _seconds(lambda: loader.numbers(7, 1234)))
        began = time.perf_counter()
        with gpuflow.loader("many", 256, root=base / "store") as loader:
            loader.load_state_dict({**state, "epoch": 3, "batch": 2000})
            next(iter(loader))
            report.add("10^6 samples: seconds", "resumed, with a batch", time.perf_counter() - began)
    report.check("first batch of 10^6 samples, seconds", report.median("10^6 samples: seconds", "first batch"), "<=", 0.5)
    report.check("resumed, seconds", report.median("10^6 samples: seconds", "resumed, with a batch"), "<=", 1.0)
    report.check("state, bytes", len(json.dumps(state)), "<=", 1024)


def _seconds(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _locality(report: Report, base: Path) -> None:
    """Four nodes, eight ranks, an epoch of batches of 512: samples that a rank has on its own node. It reads all of them, from wherever."""
    from gpuflow.datasets.here import NodesHere
    from gpuflow.training.content import content, look
    from gpuflow.training.cut import cut
    from gpuflow.training.placement import place

    root, count = base / "four", 4096
    np.save(base / "spread.npy", np.random.default_rng(0).random((count, 4096), dtype="float32"))
    with gpuflow.connect(nodes=4, workers=1, root=root) as cluster:
        gpuflow.ingest(base / "spread.npy", "spread", connection=cluster, chunk_samples=16)
    nodes = NodesHere.below(root)
    record = look(nodes, "spread")
    names = sorted(nodes.stores)
    placement = place(content(nodes, record, ["data"]), cut(record, None, None), [name for name in names for _ in range(2)])
    nodes.close()
    here, seen = 0, []
    for rank in range(8):
        where = {"rank": rank, "world": 8, "placement": placement, "node": placement.ranks[rank]}
        with gpuflow.loader("spread", 512, root=root, cache=0, number_as="n", device="numpy", threads=1, **where) as loader:
            seen += [number for batch in loader for number in batch["n"].tolist()]
            samples = [loader.numbers(0, batch) for batch in range(len(loader))]
        homes = np.concatenate(samples) // 16
        here += sum(placement.ranks[rank] in placement.sets[placement.homes[block]] for block in homes.tolist())
    assert sorted(seen) == list(range(count)), "a sample was lost or seen twice"
    report.check("4 nodes, 8 ranks: % of samples read where they lie", 100 * here / count, ">=", 95)


def _elsewhere(report: Report, base: Path, rounds: int) -> None:
    """Two nodes, of which one is read directly and the other asked by its worker; nothing is cached, and the half of it that lies there is
    more than what is held of objects that were fetched whole. Always in parts, always whole, and as the loader decides."""
    root, count = base / "two", 8192
    some = np.random.default_rng(0).integers(0, 64, (64, 224, 224, 3), dtype="uint8")
    np.save(base / "half.npy", np.concatenate([np.roll(some, 3 * number, axis=2) for number in range(count // 64)]))
    sides = {"in parts": lambda *_: True, "whole": lambda *_: False, "gpuflow": Access._is_wanted_in_parts}
    with gpuflow.connect(nodes=2, workers=1, root=root) as cluster:
        gpuflow.ingest(base / "half.npy", "half", connection=cluster, chunk_samples=64)
        (base / "half.npy").unlink()
        node = sorted(cluster.nodes())[0]
        for order, _, side in product(("full", "none"), range(rounds), sides):
            with (
                patch.object(Access, "_is_wanted_in_parts", sides[side]),
                gpuflow.loader("half", 32, connection=cluster, node=node, cache=0, order=order, device="numpy") as loader,
            ):
                seconds = _seconds(partial(_drained, loader))
                report.add(f"half of it elsewhere, order {order}: samples/s", side, count / seconds)
                report.add(f"half of it elsewhere, order {order}: MB received", side, loader.received_nbytes / 1e6)
    best = max("in parts", "whole", key=lambda side: report.median("half of it elsewhere, order full: samples/s", side))
    ratio = report.ratio("half of it elsewhere, order full: samples/s", "gpuflow", best)
    report.check(f"half of it elsewhere, order full: gpuflow, times {best}", ratio, ">=", 0.8)


def _drained(loader: Iterable[Any]) -> None:
    for _ in loader:
        pass
