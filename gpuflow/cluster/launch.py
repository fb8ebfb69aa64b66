"""Scheduler and worker processes: started the way a user would start them, and kept up.

One launch path for the embedded cluster and for `gpuflow node`: `dask worker ... --preload gpuflow.cluster` under a supervisor that
starts it again when it dies, because a worker does not come back by itself after a crash or a restart of its scheduler."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from distributed.deploy.utils import nprocesses_nthreads

from gpuflow.backends.devices import VARIABLE, CudaDevice, cuda_devices
from gpuflow.backends.select import find_device, select_device
from gpuflow.errors import ClusterError, StoreError
from gpuflow.storage.node import NodeStore
from gpuflow.storage.roots import existing_roots as existing_roots
from gpuflow.storage.roots import node_roots as node_roots

logger = logging.getLogger(__name__)

_START_SECONDS = 60.0  # imports on a loaded two-core machine have taken ten
_CLOSE_SECONDS = 5.0
_GIVE_UP_AFTER, _WITHIN_SECONDS = 5, 20.0  # five deaths in twenty seconds are not bad luck

_QUIET = {
    "DASK_DISTRIBUTED__ADMIN__TICK__INTERVAL": "1s",
    "DASK_DISTRIBUTED__ADMIN__SYSTEM_MONITOR__INTERVAL": "2s",
    "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False",
    "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "10s",
}
"""For an embedded cluster, which has no dashboard to show them: what Dask measures of processes that do nothing. With the defaults an idle
worker takes 2.5% of a core, so that 20 of them take a quarter of two; with these 0.5%. A worker of this machine that died is not waited
for 30 s."""


def scheduler_command(*options: str) -> list[str]:
    """`dask scheduler` with gpuflow in it."""
    return [sys.executable, "-m", "distributed.cli.dask_scheduler", "--preload", "gpuflow.cluster", *options]


def worker_command(
    scheduler: str,
    root: Path,
    *options: str,
    node_name: str | None = None,
    may: Sequence[str] = (),
    device: str = "auto",
    share_device: bool = False,
) -> list[str]:
    """`dask worker` as a worker of the node whose store is at `root`. A nanny takes the preload for its lifeline. may: what is
    allowed there, of exec and shell. device, share_device: see `take_device`."""
    command = [sys.executable, "-m", "distributed.cli.dask_worker", scheduler, *options]
    command += ["--preload-nanny", "gpuflow.cluster", "--preload", "gpuflow.cluster"]
    command += ["--root", str(root), *(["--node-name", node_name] if node_name else [])]
    command += [] if device == "auto" else ["--device", device]
    command += ["--share-device"] if share_device else []
    return [*command, *(f"--allow-{what}" for what in may)]


class Supervised:
    """A process that is started again when it ends, until `close`. `log` takes its output. See `start_process` for device."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        log: Path | None,
        lifeline: bool,
        on_give_up: Callable[[str], None],
        device: CudaDevice | None = None,
    ) -> None:
        self._command, self._log, self._lifeline, self._on_give_up = list(command), log, lifeline, on_give_up
        self._device = device
        self._closing = threading.Event()
        self.process = self._start()
        self._thread = threading.Thread(target=self._watch, name="gpuflow-supervisor", daemon=True)
        self._thread.start()

    def _start(self) -> subprocess.Popen[bytes]:
        return start_process(self._command, log=self._log, lifeline=self._lifeline, device=self._device)

    def _watch(self) -> None:
        deaths: deque[float] = deque(maxlen=_GIVE_UP_AFTER)
        while True:
            status = self.process.wait()
            if self._closing.is_set():
                return
            _close_lifeline(self.process)
            deaths.append(time.monotonic())
            if len(deaths) == _GIVE_UP_AFTER and deaths[-1] - deaths[0] < _WITHIN_SECONDS:
                self._on_give_up(f"ended {_GIVE_UP_AFTER} times, last with status {status}{tail(self._log)}")
                return
            logger.warning("worker process %d ended with status %d: starting it again", self.process.pid, status)
            if self._closing.wait(0.1 * len(deaths)):
                return
            try:
                self.process = self._start()
            except OSError as error:  # no memory, no file descriptors, the log's disk is full
                self._on_give_up(f"ended with status {status} and could not be started again: {error}")
                return

    def close(self) -> None:
        """End the process and stop watching."""
        self._closing.set()
        end_process(self.process)
        self._thread.join()
        end_process(self.process)  # one that was being started meanwhile


def start_process(
    command: Sequence[str], *, log: Path | None, lifeline: bool, device: CudaDevice | None = None
) -> subprocess.Popen[bytes]:
    """Start `command` in a process group of its own, so that a terminal's Ctrl-C reaches only us; with a lifeline it dies when we do.
    device: the only one that CUDA shows it; it runs on the CPUs near that."""
    output = open(log, "ab") if log else None  # noqa: SIM115 - handed to the child, closed below
    shown = {VARIABLE: device.uuid} if device else {}
    alive = {**_QUIET, **os.environ, "GPUFLOW_LIFELINE": "1"} if lifeline else os.environ
    try:
        with on_cpus(device.cpus if device else ()):
            return subprocess.Popen(
                command,
                stdin=subprocess.PIPE if lifeline else subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT if output else None,
                env={**alive, **shown},
                process_group=0,
            )
    finally:
        if output:
            output.close()


@contextmanager
def on_cpus(cpus: Sequence[int]) -> Iterator[None]:
    """This thread, and what it starts meanwhile with all its threads, on those of `cpus` that it may use; where it may use none, as before.

    A child is there from its first instruction, before a library has counted its CPUs."""
    before = os.sched_getaffinity(0)
    near = before & set(cpus)
    if cpus and not near:
        logger.warning("of the CPUs near its device (%s) none may be used here: it gets others", ", ".join(map(str, cpus)))
    os.sched_setaffinity(0, near or before)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def end_process(process: subprocess.Popen[bytes]) -> None:
    """Ask the process to end, then make it."""
    process.terminate()
    try:
        process.wait(_CLOSE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    _close_lifeline(process)


def _close_lifeline(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        process.stdin.close()


def tail(log: Path | None, lines: int = 4) -> str:
    """The last lines of a log, to end an error message with."""
    if log is None or not log.exists():
        return ""
    text = log.read_text(errors="replace").strip().splitlines()[-lines:]
    return ": " + " | ".join(line.strip() for line in text) if text else ""


def share_out(nodes: int = 1, workers: int | None = None) -> tuple[int, int]:
    """(worker processes, threads of each) on each of `nodes` nodes of this machine; workers: as many processes as that.

    As Dask shares out cores: a process a core on small machines, since threads of one process wait for each other's Python (two of them
    take twice as long over small chunks as two processes), and some threads in each on large ones."""
    return _shared(max(1, len(os.sched_getaffinity(0)) // nodes), workers)


def _shared(cores: int, workers: int | None) -> tuple[int, int]:
    workers = workers or nprocesses_nthreads(cores)[0]
    return workers, max(1, cores // workers)


@dataclass(frozen=True, slots=True)
class Start:
    """`count` worker processes of a node, with `threads` threads each. device: see `worker_command`; given: the one of their own."""

    count: int
    threads: int
    device: str = "auto"
    given: CudaDevice | None = None


def starts(cores: int, nodes: int, workers: int | None, devices: Sequence[CudaDevice], device: str = "auto") -> list[list[Start]]:
    """What to start on each of `nodes` nodes of a machine with so many cores: a worker for each of its devices, which are dealt out to the
    nodes; beside these `workers` for the CPU, where that is asked for. A node without a device has workers for the CPU.

    device: as it was asked for; with `auto` a worker whose device is another's when it starts is one for the CPU. Not by dask-cuda: what
    that gives beyond this is pools and spilling for device arrays that tasks hand to each other, and here they hand over none. Pure."""
    share = max(1, cores // nodes)
    found = []
    for number in range(nodes):
        mine = devices[number::nodes]
        if not mine:
            count, threads = _shared(share, workers)
            found.append([Start(count, threads, "cpu" if devices else device)])
            continue
        threads = max(1, share // (len(mine) + (workers or 0)))
        beside = [Start(workers, threads, "cpu")] if workers else []
        found.append([*(Start(1, threads, "auto" if device == "auto" else "cuda", one) for one in mine), *beside])
    return found


def devices_for(device: str) -> tuple[CudaDevice, ...]:
    """Those that workers started with `device` are to have, one each; none for the CPU, or where `auto` finds none.

    DeviceUnavailable when a named one is not there."""
    if select_device(device) == "cpu":
        return ()
    return (find_device(device),) if ":" in device else cuda_devices()


def _open_all(roots: Sequence[Path]) -> None:
    """Here first: an unusable root is an error of the caller's, not of a child process. ClusterError when two of them are one node."""
    known: dict[str, Path] = {}
    for number, root in enumerate(roots):
        with closing(NodeStore(root, name=f"node{number}")) as store:
            other = known.setdefault(store.node_id, root)
        if other != root:
            hint = f"if {root} is a copy, delete its node.json, and it becomes a node of its own"
            raise ClusterError(f"{other} and {root} both say that they are node {store.node_id}", hint)


class EmbeddedCluster:
    """A scheduler and worker processes on this machine, for as long as this object (or this process) lives."""

    def __init__(
        self, root: Path, nodes: int = 1, workers: int | None = None, *, may: Sequence[str] = (), device: str = "auto"
    ) -> None:
        """`nodes` store roots (see `node_roots`), each with `workers` processes (default: see `share_out`); on a machine with CUDA devices
        see `starts`. may: see `worker_command`. DeviceUnavailable when a device is named that is not there."""
        if nodes < 1 or (workers is not None and workers < 1):
            raise ClusterError(f"a cluster of {nodes} nodes with {workers} workers each cannot be", "use numbers from 1 up")
        self._roots = node_roots(root, nodes)
        self._starts = starts(len(os.sched_getaffinity(0)), nodes, workers, devices_for(device), device)
        self._may = may
        _open_all(self._roots)
        self._workers: list[Supervised] = []
        self.trouble = ""
        self._folder = tempfile.TemporaryDirectory(prefix="gpuflow-")
        self._scheduler = self._start_scheduler()
        try:
            self.address = self._wait_for_address()
            for number, node_root in enumerate(self._roots):
                each = [start for start in self._starts[number] for _ in range(start.count)]
                self._workers += [self._start_worker(number, node_root, index, start) for index, start in enumerate(each)]
        except BaseException:
            self.close()
            raise

    @property
    def worker_count(self) -> int:
        return sum(start.count for node in self._starts for start in node)

    def _path(self, name: str) -> Path:
        return Path(self._folder.name) / name

    def _start_scheduler(self) -> subprocess.Popen[bytes]:
        options = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--no-show"]
        command = scheduler_command(*options, "--scheduler-file", str(self._path("scheduler.json")))
        return start_process(command, log=self._path("scheduler.log"), lifeline=True)

    def _wait_for_address(self) -> str:
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and self._scheduler.poll() is None:
            try:
                return str(json.loads(self._path("scheduler.json").read_text())["address"])
            except (FileNotFoundError, ValueError):  # not there yet, or half written
                time.sleep(0.02)
        raise ClusterError(f"the embedded scheduler did not start{tail(self._path('scheduler.log'))}")

    def _start_worker(self, number: int, root: Path, index: int, start: Start) -> Supervised:
        name = f"node{number}-{index}"
        options = ["--host", "127.0.0.1", "--no-nanny", "--no-dashboard", "--nthreads", str(start.threads)]
        options += ["--name", name, "--local-directory", self._folder.name]
        command = worker_command(self.address, root, *options, may=self._may, device=start.device)

        def give_up(reason: str) -> None:
            self.trouble = f"worker {name} {reason}"
            logger.error(self.trouble)

        log = self._path(f"{name}.log")
        return Supervised(command, log=log, lifeline=True, on_give_up=give_up, device=start.given)

    def worker_pids(self) -> list[int]:
        """Process ids of the workers as they are now."""
        return [worker.process.pid for worker in self._workers]

    def close(self) -> None:
        """End all processes."""
        closing = [threading.Thread(target=worker.close) for worker in self._workers]
        for thread in closing:
            thread.start()
        for thread in closing:
            thread.join()
        end_process(self._scheduler)
        self._folder.cleanup()


def serve_node(
    scheduler: str,
    root: Path,
    options: Sequence[str],
    node_name: str | None,
    rack: str | None = None,
    *,
    may: Sequence[str] = (),
    workers: Sequence[Start] = (),
    share_device: bool = False,
) -> None:
    """Run a node's workers in the foreground, starting them again when they end, until interrupted. `gpuflow node`. workers: what to
    start (default: one process of Dask's own choice)."""
    try:
        NodeStore(root, name=node_name, rack=rack).close()
    except StoreError as error:
        raise ClusterError(f"this node cannot start: {error}") from error
    failed = threading.Event()
    reasons: list[str] = []

    def give_up(reason: str) -> None:
        reasons.append(reason)
        failed.set()

    supervised = list[Supervised]()
    try:
        for start in workers or [Start(1, 0)]:
            own = ["--nworkers", str(start.count), "--nthreads", str(start.threads)] if workers else []
            shared = share_device and start.given is not None
            own += options
            command = worker_command(
                scheduler, root, *own, node_name=node_name, may=may, device=start.device, share_device=shared
            )
            supervised.append(Supervised(command, log=None, lifeline=True, on_give_up=give_up, device=start.given))
        failed.wait()
        raise ClusterError(f"worker {reasons[0]}", "see its output above")
    finally:
        for one in supervised:
            one.close()
