"""Nodes come and go while a run goes on, one of them with a clock that is an hour ahead: what is there is used, what is gone not missed."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from distributed import Status, Worker

from ci.benchmarks.routing import ARRAY, Nap, Singles, lay
from gpuflow.cluster.connection import Connection, connect
from gpuflow.datasets import catalog
from gpuflow.execution.lane import Lane
from gpuflow.execution.passes import Run
from gpuflow.execution.submit import Outcome, Silent
from tests.cluster.processes import GPUFLOW, LOCAL, WORKER, running, scheduler, until

CHUNKS, SECONDS = 200, 0.1
AHEAD = "import time\n_now = time.time\ntime.time = lambda: _now() + 3600\n"


@dataclass(frozen=True)
class NapWhile(Nap):
    """No more naps once `flag` is gone: a run lasts as long as it is looked at."""

    flag: str = ""

    def process(self, lane: Lane, chunk: int) -> None:
        Nap.process(self if Path(self.flag).exists() else replace(self, seconds=0.0), lane, chunk)


class Nodes:
    """A scheduler, and a worker process for each node that is started."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self._stack = folder, stack
        self.address, _ = stack.enter_context(scheduler(folder, *GPUFLOW))
        self.pids: dict[str, int] = {}

    def start(self, name: str, **environment: str) -> None:
        options = ["--no-nanny", "--memory-limit", "0", "--name", name]  # without a limit nobody ends a pause but we
        command = [*WORKER, self.address, *LOCAL, *options, *GPUFLOW, "--root", str(self.folder / name)]
        process = self._stack.enter_context(running(command, self.folder / f"{name}.log", **environment))
        self.pids[name] = process.pid


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """Two nodes that both hold every chunk of the dataset `d`."""
    folder = tmp_path_factory.mktemp("churn")
    lay([folder / "n0", folder / "n1"], "d", CHUNKS, 256, lambda chunk: [0, 1])
    with ExitStack() as stack:
        found = Nodes(folder, stack)
        found.start("n0")
        found.start("n1")
        yield found


@pytest.fixture(scope="module")
def connection(nodes: Nodes) -> Iterator[Connection]:
    with connect(nodes.address) as connection:
        wait_for(connection, 2)
        yield connection


def wait_for(connection: Connection, count: int) -> None:
    until(lambda: len(connection.info()["workers"]) == count, f"{count} nodes")


@contextmanager
def napping(connection: Connection, flag: Path, movable: bool = True) -> Iterator[list[Outcome]]:
    """A run of naps, one for each chunk, until the block has ended; then its outcome."""
    outcomes: list[Outcome] = []
    flag.touch()

    def work() -> None:
        record = catalog.find(connection, "d")
        run, job = Run(connection, record), NapWhile((record,), SECONDS, flag=str(flag))
        table = catalog.chunk_table(connection, "d", ARRAY, CHUNKS)
        batches = run.batches(job, ARRAY, range(CHUNKS), table, movable=movable)
        outcomes.append(Singles(connection, "nap", run.run_id, Silent()).execute(batches))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield outcomes
    finally:
        flag.unlink()
        thread.join(30)
    assert outcomes, "the run did not end"


def working(connection: Connection) -> set[str]:
    """Names of the workers that have tasks."""
    workers = connection.client.scheduler_info(n_workers=-1)["workers"]
    return {workers[address]["name"] for address, keys in connection.client.processing().items() if keys and address in workers}


def set_status(status: str, dask_worker: Worker) -> None:
    dask_worker.status = Status[status]


def test_a_worker_that_pauses_does_not_hold_up_the_run(nodes: Nodes, connection: Connection, tmp_path: Path) -> None:
    (second,) = (address for address, info in connection.info()["workers"].items() if info["root"].endswith("n1"))
    with napping(connection, tmp_path / "flag") as outcomes:
        until(lambda: working(connection) == {"n0", "n1"}, "both at work")
        connection.client.run(set_status, "paused", workers=[second])
        until(lambda: working(connection) == {"n0"}, "what the paused one had not begun to go to the other")
    (outcome,) = outcomes
    assert (outcome.tally.failures, outcome.tally.done) == ([], CHUNKS)
    by_node = {node.split("-")[0]: chunks for node, chunks in outcome.tally.by_node.items()}
    assert by_node["node0"] > 0.9 * CHUNKS
    assert connection.client.scheduler_info(n_workers=-1)["workers"][second]["status"] == "paused"
    connection.client.run(set_status, "running", workers=[second])


def test_who_waits_for_paused_workers_is_told(
    nodes: Nodes, connection: Connection, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with napping(connection, tmp_path / "flag", movable=False) as outcomes:
        until(lambda: working(connection) == {"n0", "n1"}, "both at work")
        connection.client.run(set_status, "paused")
        until(lambda: bool(caplog.messages), "a word about it")
        connection.client.run(set_status, "running")
    (outcome,) = outcomes
    assert (outcome.tally.failures, outcome.tally.done) == ([], CHUNKS)
    (message,) = caplog.messages
    assert re.match(r"\d+ tasks wait for node0-\w+ or node1-\w+, whose workers are paused", message)


def test_a_node_that_joins_is_given_work_and_one_that_is_lost_is_done_without(
    nodes: Nodes, connection: Connection, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(AHEAD)
    nodes.start("late", PYTHONPATH=str(tmp_path))
    with napping(connection, tmp_path / "flag") as outcomes:
        wait_for(connection, 3)
        joined = time.monotonic()
        until(lambda: "late" in working(connection), "its first task")
        assert time.monotonic() - joined < 5
        os.kill(nodes.pids["n1"], signal.SIGKILL)
        wait_for(connection, 2)
        until(lambda: working(connection) == {"n0", "late"}, "the others to go on")
    (outcome,) = outcomes
    assert (outcome.tally.failures, outcome.tally.done) == ([], CHUNKS)
    (late,) = (info["node"] for info in connection.info()["workers"].values() if info["root"].endswith("late"))
    assert outcome.tally.by_node[late] > 0
    clocks = connection.client.run(time.time)
    assert max(clocks.values()) - min(clocks.values()) > 3500
