"""Processes of a cluster, started as a user would, and surely ended."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import psutil

T = TypeVar("T")

SCHEDULER = (sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--no-dashboard", "--no-show")
WORKER = (sys.executable, "-m", "distributed.cli.dask_worker")
LOCAL = ("--host", "127.0.0.1", "--no-dashboard", "--nthreads", "1")
GPUFLOW = ("--preload", "gpuflow.cluster")


def until(condition: Callable[[], T], what: str, seconds: float = 30.0) -> T:
    """The first true value of `condition`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} did not come about in {seconds:.0f} s"
        time.sleep(0.02)
    return value


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def children(pid: int) -> list[int]:
    """Process ids of all descendants."""
    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


@contextmanager
def running(command: Sequence[str], log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """`command` in its own session, its output in `log`; killed at the end with all that it started."""
    with open(log, "ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,
        )
    try:
        yield process
    finally:
        started = children(process.pid) if process.poll() is None else []
        kill(process)
        for pid in started:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


def kill(process: subprocess.Popen[bytes]) -> None:
    """At once, and reaped."""
    process.kill()
    process.wait(10)


@contextmanager
def scheduler(folder: Path, *options: str, port: int | None = None) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A scheduler that answers: its address and process."""
    port = port or free_port()
    with running([*SCHEDULER, "--port", str(port), *options], folder / "scheduler.log") as process:
        wait_for_port(port, process, folder / "scheduler.log")
        yield f"tcp://127.0.0.1:{port}", process


def wait_for_port(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    def answers() -> bool:
        assert process.poll() is None, log.read_text()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    until(answers, "the scheduler")
