"""A cluster of real processes that can be killed and started again in a fraction of a second.

A scheduler on a fixed port, one worker on each node, and a client: forks of one process that has imported everything, so that a kill costs
no imports. They end when the process that started them does, however that ends."""

from __future__ import annotations

import ctypes
import faulthandler
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import dask

from gpuflow.cluster.launch import scheduler_command, worker_command
from gpuflow.storage import leases
from gpuflow.storage.node import NodeStore

_LEASE_SECONDS = 2.0  # in the place of 30: the lease of a killed client is waited for
_CONNECT_SECONDS = "2s"  # in the place of 30, for which Dask knocks at a worker that died while it was asked something
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_MODULES = ["ci.proofs.cluster", "distributed.cli.dask_scheduler", "distributed.cli.dask_worker", "gpuflow.cluster.preload"]
_MODULES += ["gpuflow.facade", "gpuflow.execution.run", "gpuflow.backends.kernel_cache", "numba"]

SCHEDULER, CLIENT = "scheduler", "client"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Processes:
    """The processes by name: "scheduler", "worker0" and on, and the clients."""

    def __init__(self, folder: Path, nodes: int, clients: Mapping[str, tuple[Any, ...]]) -> None:
        """clients: what is called with the scheduler's address, then with the rest of the tuple."""
        self.roots = [folder / f"node{number}" for number in range(nodes)]  # each could be taken away
        for number, root in enumerate(self.roots):
            NodeStore(root, name=f"node{number}").close()
        self._folder, self._context = folder, multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(_MODULES)
        port = free_port()
        self.address = f"tcp://127.0.0.1:{port}"
        options = ["--host", "127.0.0.1", "--no-dashboard"]
        self._starts: dict[str, tuple[Callable[..., None], tuple[Any, ...]]] = {
            SCHEDULER: (_serve, (scheduler_command(*options, "--no-show", "--port", str(port)),)),
        } | {name: (client, (self.address, *arguments)) for name, (client, *arguments) in clients.items()}
        for number, root in enumerate(self.roots):
            own = [*options, "--no-nanny", "--nthreads", "1", "--name", f"worker{number}", "--local-directory", str(folder)]
            self._starts[f"worker{number}"] = (_serve, (worker_command(self.address, root, *own),))
        self._alive: dict[str, ForkServerProcess] = {}

    @property
    def names(self) -> list[str]:
        return list(self._starts)

    def keep_up(self, but: str = "") -> None:
        """Start what is not alive, `but` one of them."""
        for name, (target, arguments) in self._starts.items():
            if name != but and (name not in self._alive or not self._alive[name].is_alive()):
                log = self._folder / f"{name}.log"
                self._alive[name] = process = self._context.Process(target=_child, args=(log, target, *arguments))
                process.start()

    def kill(self, names: list[str]) -> None:
        """kill -9, and wait until they are gone."""
        processes = [self._alive.pop(name) for name in names if name in self._alive]
        for process in processes:
            process.kill()
        for process in processes:
            process.join()

    def signal(self, number: signal.Signals) -> None:
        """To all that are alive."""
        for process in self._alive.values():
            if process.pid is not None and process.is_alive():
                os.kill(process.pid, number)

    def logs(self) -> list[Path]:
        return sorted(self._folder.glob("*.log"))


def _child(log: Path, target: Callable[..., None], *arguments: Any) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    faulthandler.register(signal.SIGUSR1)  # writes the stacks of all threads
    dask.config.set({"distributed.comm.timeouts.connect": _CONNECT_SECONDS})
    leases.LEASE_SECONDS = _LEASE_SECONDS
    print(f"-- {target.__name__} {os.getpid()} at {time.strftime('%X')}", flush=True)
    target(*arguments)


def _serve(command: list[str]) -> None:
    """A `python -m MODULE ...` command, in this process."""
    module = __import__(command[2], fromlist=["main"])
    sys.argv = ["dask", *command[3:]]
    module.main()
