"""Normalise raw float32 over a network: namespaces as hosts, links shaped in the kernel, bytes from the kernel's counters.

Three nodes and an object store, each in a network namespace on a bridge, with `tc tbf` at both ends of its link. Sides: gpuflow, gpuflow
with tasks placed by Dask (locality off), and dask.array reading and writing Zarr in an S3 server (moto's, which keeps it in memory), on the
very same workers. Needs root, iproute2, obstore and `moto[server]`; it says what it lacks."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import zarr

import gpuflow
from ci.benchmarks.report import Report, interleave
from ci.benchmarks.routing import Unrouted, lay
from ci.benchmarks.scratch import folder
from gpuflow.cluster.connection import Connection
from gpuflow.cluster.launch import end_process, scheduler_command, start_process, worker_command
from gpuflow.execution import passes
from gpuflow.objectstore.ingest import remove_dataset
from gpuflow.pipelines.load import from_dict

NODES, CHUNKS, NBYTES = 3, 96, 8 * 2**20
GIGABITS = (1, 10, None)
"""Of each link; None: as fast as the kernel is."""
STEPS = [{"standardize": {"mean": 280.0, "std": 12.0}}, {"clip": [-3, 3]}]
_NETWORK = "10.213.7"
_START_SECONDS = 60.0


@dataclass(frozen=True)
class Host:
    """A namespace. link: our end of its cable."""

    name: str
    address: str
    link: str

    def command(self, *arguments: str) -> list[str]:
        """A command that runs there."""
        return ["ip", "netns", "exec", self.name, *arguments]

    @property
    def wire_bytes(self) -> int:
        """What went through its cable so far, both ways, as the kernel counted."""
        counters = Path("/sys/class/net", self.link, "statistics")
        return sum(int((counters / name).read_text()) for name in ("rx_bytes", "tx_bytes"))


def missing() -> str:
    """What this machine lacks for all of it; empty when nothing."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if not (shutil.which("ip") and shutil.which("tc")):
        return "network namespaces need iproute2 (ip and tc)"
    probe = f"gpuflow{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True)
    if made.returncode:
        return f"network namespaces cannot be made here ({made.stderr.strip()})"
    _run("ip", "netns", "delete", probe)
    return ""


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


@contextmanager
def hosts(count: int) -> Iterator[list[Host]]:
    """Namespaces on a bridge on which we have the address `_NETWORK`.1."""
    label = f"gf{os.getpid() % 100000}"
    made = [Host(f"{label}n{i}", f"{_NETWORK}.{10 + i}", f"{label}v{i}") for i in range(count)]
    try:
        _run("ip", "link", "add", label, "type", "bridge")
        _run("ip", "address", "add", f"{_NETWORK}.1/24", "dev", label)
        _run("ip", "link", "set", label, "up")
        for host in made:
            _run("ip", "netns", "add", host.name)
            _run("ip", "link", "add", host.link, "type", "veth", "peer", "name", "eth0", "netns", host.name)
            _run("ip", "link", "set", host.link, "master", label, "up")
            _run(*host.command("ip", "address", "add", f"{host.address}/24", "dev", "eth0"))
            for device in ("eth0", "lo"):
                _run(*host.command("ip", "link", "set", device, "up"))
        yield made
    finally:
        for host in made:
            subprocess.run(["ip", "netns", "delete", host.name], capture_output=True)
            subprocess.run(["ip", "link", "delete", host.link], capture_output=True)
        subprocess.run(["ip", "link", "delete", label], capture_output=True)


def shape(some: Sequence[Host], gigabits: int | None) -> None:
    """Limit both ends of every link."""
    for host in some:
        for device, prefix in ((host.link, []), ("eth0", host.command())):
            if gigabits is None:
                subprocess.run([*prefix, "tc", "qdisc", "delete", "dev", device, "root"], capture_output=True)
            else:
                limit = ["rate", f"{gigabits}gbit", "burst", f"{max(gigabits, 2) * 256}kb", "latency", "50ms"]
                _run(*prefix, "tc", "qdisc", "replace", "dev", device, "root", "tbf", *limit)


@contextmanager
def process(command: Sequence[str], log: Path) -> Iterator[None]:
    started = start_process(command, log=log, lifeline=False)
    try:
        yield
    finally:
        end_process(started)


def until(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + _START_SECONDS
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not start")
        time.sleep(0.05)
    return value


@contextmanager
def cluster(base: Path, nodes: Sequence[Host]) -> Iterator[Connection]:
    """The scheduler beside the bridge, a worker of one thread in each namespace."""
    found = base / "scheduler.json"
    options = ["--host", f"{_NETWORK}.1", "--port", "0", "--no-dashboard", "--no-show", "--scheduler-file", str(found)]
    with ExitStack() as stack:
        stack.enter_context(process(scheduler_command(*options), base / "scheduler.log"))
        address = until(lambda: found.exists() and json.loads(found.read_text())["address"], "the scheduler")
        for number, host in enumerate(nodes):
            options = ["--host", host.address, "--no-nanny", "--no-dashboard", "--nthreads", "1"]
            options += ["--local-directory", str(base / "scratch")]
            command = host.command(*worker_command(address, base / str(number), *options))
            stack.enter_context(process(command, base / f"worker{number}.log"))
        connection = stack.enter_context(gpuflow.connect(address))
        until(lambda: len(connection.info()["workers"]) == len(nodes), "the workers")
        yield connection


class ObjectStore:
    """An S3 server on a host, and Zarr arrays in it."""

    def __init__(self, host: Host) -> None:
        self.url = f"http://{host.address}:5000"

    @contextmanager
    def served(self, host: Host, log: Path) -> Iterator[None]:
        """While the block runs."""
        server = shutil.which("moto_server") or ""
        with process(host.command(server, "-H", "0.0.0.0", "-p", "5000"), log):
            until(self._make_bucket, "the S3 server")
            yield

    def _make_bucket(self) -> bool:
        try:
            urllib.request.urlopen(urllib.request.Request(f"{self.url}/data", method="PUT"), timeout=5).close()
        except OSError:
            return False
        return True

    def create(self, path: str) -> zarr.Array[Any]:
        """A raw float32 array of our chunks."""
        from obstore.store import S3Store
        from zarr.storage import ObjectStore as ZarrObjectStore

        bucket = S3Store(
            "data",
            prefix=path,
            endpoint=self.url,
            region="us-east-1",
            access_key_id="testing",
            secret_access_key="testing",
            virtual_hosted_style_request=False,
            client_options={"allow_http": True},
        )
        size = NBYTES // 4
        options: dict[str, Any] = {"dtype": "float32", "compressors": None, "overwrite": True}
        return zarr.create_array(ZarrObjectStore(bucket), shape=(CHUNKS * size,), chunks=(size,), **options)


class Sides:
    """Each returns wall seconds. bytes: through the nodes' cables, by side, a round each."""

    def __init__(self, connection: Connection, nodes: Sequence[Host]) -> None:
        self.connection, self.nodes = connection, nodes
        self.bytes: dict[str, list[int]] = {}

    def timed(self, side: str, work: Callable[[], Any]) -> float:
        os.sync()  # what the side before wrote is not to be written back meanwhile
        before = sum(host.wire_bytes for host in self.nodes)
        began = time.perf_counter()
        work()
        seconds = time.perf_counter() - began
        self.bytes.setdefault(side, []).append(sum(host.wire_bytes for host in self.nodes) - before)
        return seconds

    def gpuflow(self, side: str = "gpuflow") -> float:
        output, durability = (
            {"dataset": "out", "compressor": "none"},
            {"durability": "atomic"},
        )  # the S3 server keeps it in memory
        spec = from_dict({"source": "field", "steps": STEPS, "output": output, "run": durability})
        seconds = self.timed(side, lambda: gpuflow.run(spec, connection=self.connection))
        remove_dataset(self.connection, "out")
        return seconds

    def unrouted(self) -> float:
        with patch.object(passes, "Submission", Unrouted):
            return self.gpuflow("anywhere")

    def dask(self, source: zarr.Array[Any], target: zarr.Array[Any]) -> float:
        import dask.array
        import numpy as np

        def work() -> None:
            x = dask.array.from_zarr(source, chunks=source.chunks)
            y = dask.array.clip((x - np.float32(280.0)) / np.float32(12.0), np.float32(-3), np.float32(3))
            dask.array.store(y, target, lock=False, scheduler=self.connection.client)

        return self.timed("dask + S3", work)


def measure(report: Report, arguments: argparse.Namespace) -> None:
    """Rows of the report's table, checks, and notes on the bytes; one note when this machine cannot."""
    lack = missing()
    if lack:
        report.notes.append(f"--netns left out: {lack}")
        return
    s3 = bool(shutil.which("moto_server") and find_spec("obstore"))
    if not s3:
        report.notes.append("--netns without the object-store side: install obstore and moto[server]")
    with folder(arguments.folder) as base, hosts(NODES + 1) as (*nodes, store), ExitStack() as stack:
        lay([base / str(number) for number in range(NODES)], "field", CHUNKS, NBYTES, lambda chunk: [chunk % NODES])
        connection = stack.enter_context(cluster(base, nodes))
        sides = Sides(connection, nodes)
        runs: dict[str, Callable[[], float]] = {"gpuflow": sides.gpuflow, "anywhere": sides.unrouted}
        if s3:
            objects = ObjectStore(store)
            stack.enter_context(objects.served(store, base / "s3.log"))
            source, target = objects.create("field"), objects.create("out")
            for chunk in range(CHUNKS):
                source.blocks[chunk] = 280 + chunk % 7
            runs["dask + S3"] = lambda: sides.dask(source, target)
        for gigabits in GIGABITS:
            shape([*nodes, store], gigabits)
            sides.bytes.clear()
            job = f"normalise {CHUNKS * NBYTES / 2**20:.0f} MiB, {f'{gigabits} Gbit/s' if gigabits else 'unshaped'}"
            interleave(report, job, runs, arguments.rounds, again=True)
            _check(report, job, sides.bytes, gigabits)


def _check(report: Report, job: str, sent: dict[str, list[int]], gigabits: int | None) -> None:
    share = {side: median(values[1:]) / (CHUNKS * NBYTES) for side, values in sent.items()}
    report.notes.append(
        f"{job}: bytes on the nodes' links over the dataset's: {', '.join(f'{s} {v:.2%}' for s, v in share.items())}"
    )
    report.check(f"{job}: wire bytes / dataset", share["gpuflow"], "<=", 0.01)
    if "dask + S3" in share:
        ratio = report.ratio(job, "dask + S3", "gpuflow")
        report.notes.append(f"{job}: {ratio:.1f} times faster than dask.array over the object store")
        if gigabits == 1:
            report.check(f"{job}: dask + S3 / gpuflow", ratio, ">=", 10)
