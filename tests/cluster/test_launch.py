"""What is started is kept up, ends with whoever started it, and leaves nothing open."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from gpuflow.cluster import launch
from gpuflow.cluster.connection import connect
from gpuflow.cluster.launch import (
    EmbeddedCluster,
    Supervised,
    end_process,
    existing_roots,
    node_roots,
    serve_node,
    start_process,
    tail,
)
from gpuflow.errors import ClusterError, StoreError
from gpuflow.storage.node import NodeStore

from .processes import GPUFLOW, LOCAL, WORKER, alive, children, running, until

SLEEP = (sys.executable, "-c", "import time; time.sleep(600)")


# -- roots -----------------------------------------------------------------------------------------------------------------------


def test_roots_of_an_embedded_cluster(tmp_path: Path) -> None:
    roots = node_roots(tmp_path, 12)
    assert roots[:3] == [tmp_path, tmp_path / "nodes" / "1", tmp_path / "nodes" / "2"]
    assert existing_roots(tmp_path) == []
    for root in reversed(roots):
        NodeStore(root).close()
    assert existing_roots(tmp_path) == roots, "10 comes after 9"


def test_two_roots_that_are_one_node_are_refused_by_name(tmp_path: Path) -> None:
    first, second = node_roots(tmp_path, 2)
    NodeStore(first).close()
    shutil.copytree(first, second)
    with pytest.raises(ClusterError, match=f"{first} and {second} both say that they are node .*delete its node.json"):
        EmbeddedCluster(tmp_path, nodes=2)
    (second / "node.json").unlink()
    with closing(NodeStore(first)) as one, closing(NodeStore(second)) as other:
        assert one.node_id != other.node_id


def test_only_what_holds_a_node_exists(tmp_path: Path) -> None:
    NodeStore(tmp_path / "nodes" / "2").close()
    (tmp_path / "nodes" / "1").mkdir()
    assert existing_roots(tmp_path) == [tmp_path / "nodes" / "2"]
    assert existing_roots(tmp_path / "nowhere") == []


# -- one process -----------------------------------------------------------------------------------------------------------------


def never(reason: str) -> None:
    raise AssertionError(reason)


def test_a_killed_process_is_started_again(tmp_path: Path) -> None:
    supervised = Supervised(SLEEP, log=tmp_path / "log", lifeline=True, on_give_up=never)
    try:
        first = supervised.process
        first.kill()
        until(lambda: supervised.process is not first, "the next process")
        assert supervised.process.poll() is None
        assert first.stdin is not None
        assert first.stdin.closed
    finally:
        supervised.close()
    assert not alive(supervised.process.pid)
    assert not supervised._thread.is_alive()


def test_one_that_dies_again_and_again_is_given_up(tmp_path: Path) -> None:
    reasons: list[str] = []
    command = [sys.executable, "-Sc", "print('first'); print('no such luck', flush=True); raise SystemExit(3)"]
    supervised = Supervised(command, log=tmp_path / "log", lifeline=False, on_give_up=reasons.append)
    until(lambda: reasons, "giving up")
    supervised.close()
    assert len(reasons) == 1
    assert reasons[0].startswith("ended 5 times, last with status 3: ")
    assert reasons[0].endswith("first | no such luck")


def test_one_that_cannot_be_started_again_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reasons: list[str] = []
    supervised = Supervised(SLEEP, log=None, lifeline=True, on_give_up=reasons.append)

    def refuse(*args: object, **options: object) -> None:
        raise OSError("no more processes")

    monkeypatch.setattr(launch, "start_process", refuse)
    supervised.process.kill()
    until(lambda: reasons, "giving up")
    supervised.close()
    assert reasons == ["ended with status -9 and could not be started again: no more processes"]


def test_closing_while_it_is_being_started_again(tmp_path: Path) -> None:
    for pause in (0.0, 0.05, 0.1, 0.15):
        supervised = Supervised(SLEEP, log=None, lifeline=True, on_give_up=never)
        supervised.process.kill()
        time.sleep(pause)
        supervised.close()
        assert not alive(supervised.process.pid)


def test_one_that_does_not_want_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_CLOSE_SECONDS", 0.2)
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(600)"
    process = start_process([sys.executable, "-c", code], log=tmp_path / "log", lifeline=True)
    until(lambda: tail(tmp_path / "log"), "its start")
    end_process(process)
    assert process.returncode == -signal.SIGKILL
    end_process(process)


def test_tail(tmp_path: Path) -> None:
    assert tail(None) == tail(tmp_path / "none") == ""
    (tmp_path / "log").write_bytes(b"")
    assert tail(tmp_path / "log") == ""
    (tmp_path / "log").write_bytes(b"a\n b\xff\nc\n")
    assert tail(tmp_path / "log", 2) == ": b\ufffd | c"


# -- a cluster -------------------------------------------------------------------------------------------------------------------


def test_an_embedded_cluster_mends_itself_and_leaves_nothing(tmp_path: Path) -> None:
    before = set(children(os.getpid()))
    with connect(nodes=2, root=tmp_path) as connection:
        assert connection.embedded is not None
        folder = Path(connection.embedded._folder.name)
        first = connection.nodes()
        assert [node.split("-")[0] for node in first] == ["node0", "node1"]
        os.kill(connection.embedded.worker_pids()[0], signal.SIGKILL)
        dead = next(iter(first.values()))[0]
        until(lambda: dead not in str(now := connection.nodes()) and list(now) == list(first), "the node's return")
        started = set(children(os.getpid())) - before
        assert len(started) == 3
    assert not any(map(alive, started))
    assert not folder.exists()


def test_a_root_that_cannot_be_used_is_the_callers_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    before = children(os.getpid())
    with pytest.raises(StoreError, match="file"):
        EmbeddedCluster(tmp_path / "file")
    assert children(os.getpid()) == before
    with pytest.raises(ClusterError, match="a cluster of 0 nodes"):
        EmbeddedCluster(tmp_path, 0)
    with pytest.raises(ClusterError, match="with 0 workers each"):
        EmbeddedCluster(tmp_path, 1, 0)


def test_a_scheduler_that_does_not_start_is_told_with_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-Sc", "print('no scheduler today')"]
    monkeypatch.setattr(launch, "scheduler_command", lambda *options: command)
    with pytest.raises(ClusterError, match="the embedded scheduler did not start: no scheduler today"):
        EmbeddedCluster(tmp_path)


def test_a_killed_client_takes_its_cluster_along(tmp_path: Path) -> None:
    code = "import sys, time; from gpuflow.cluster.connection import connect; c = connect(nodes=2, root=sys.argv[1]); "
    code += "print('up', flush=True); time.sleep(600)"
    with running([sys.executable, "-c", code, str(tmp_path / "root")], tmp_path / "log") as process:
        until(lambda: "up" in (tmp_path / "log").read_text(), "the cluster")
        started = children(process.pid)
        assert len(started) == 3
        process.kill()
        process.wait(10)
        until(lambda: not any(map(alive, started)), "the end of scheduler and workers", 10)


def test_a_worker_with_an_unusable_root_ends_and_says_why(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    command = [*WORKER, "tcp://127.0.0.1:1", *LOCAL, "--no-nanny", *GPUFLOW, "--root", str(tmp_path / "file")]
    with running(command, tmp_path / "log") as process:
        assert process.wait(30) == 1
    last = (tmp_path / "log").read_text().strip().splitlines()[-1]
    assert last.startswith(f"error: store root {tmp_path / 'file'}: ")


def test_serve_node_refuses_an_unusable_root(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ClusterError, match="this node cannot start: store root"):
        serve_node("tcp://127.0.0.1:1", tmp_path / "file", [], None)


def test_serve_node_gives_up_on_workers_that_do_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "worker_command", lambda *args, **options: [sys.executable, "-Sc", "raise SystemExit(7)"])
    before = threading.active_count()
    with pytest.raises(ClusterError, match="worker ended 5 times, last with status 7; see its output above"):
        serve_node("tcp://127.0.0.1:1", tmp_path, [], None)
    assert threading.active_count() == before


def test_commands_are_those_of_dask() -> None:
    """Options go before the preload: what follows it is the preload's own."""
    command = launch.worker_command("tcp://h:1", Path("/r"), "--nthreads", "2", node_name="n")
    assert command[1:4] == ["-m", "distributed.cli.dask_worker", "tcp://h:1"]
    assert command[4:6] == ["--nthreads", "2"]
    assert command[-6:] == ["--preload", "gpuflow.cluster", "--root", "/r", "--node-name", "n"]
    subprocess.run([*launch.scheduler_command("--version")], check=True, capture_output=True)
