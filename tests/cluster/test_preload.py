"""gpuflow in an ordinary `dask scheduler` and `dask worker`, and what a user sees where it is missing."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from distributed import Client

from gpuflow.cluster import connection as connection_module
from gpuflow.cluster.connection import Connection, connect
from gpuflow.errors import ClusterError, ConfigError, DeviceUnavailable
from gpuflow.storage.disk import digest
from gpuflow.storage.manifest import Replica
from gpuflow.storage.metadata import ArrayMetadata
from gpuflow.storage.node import NodeStore
from gpuflow.storage.record import DatasetRecord

from .processes import GPUFLOW, LOCAL, WORKER, alive, children, free_port, kill, running, scheduler, until


@pytest.fixture(scope="module")
def gpuflow_scheduler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with scheduler(tmp_path_factory.mktemp("scheduler"), *GPUFLOW) as (address, _):
        yield address


def wait_for_workers(address: str, count: int) -> None:
    with Client(address, timeout=15) as client:
        until(lambda: len(client.scheduler_info(n_workers=-1)["workers"]) == count, f"{count} workers")


def store_path(store: NodeStore) -> str:
    return str(store.root)


def has_imported() -> bool:
    return {"numba", "gpuflow.execution.jobs"} <= set(sys.modules)


def test_no_node(gpuflow_scheduler: str) -> None:
    wait_for_workers(gpuflow_scheduler, 0)
    with (
        connect(gpuflow_scheduler) as connection,
        pytest.raises(ClusterError, match=r"no node has joined.*gpuflow node --scheduler"),
    ):
        connection.nodes()


@pytest.mark.parametrize(("nanny", "root_by"), [("--nanny", "option"), ("--no-nanny", "environment")])
def test_a_worker_with_the_preload_is_a_node(gpuflow_scheduler: str, tmp_path: Path, nanny: str, root_by: str) -> None:
    root = tmp_path / "root"
    command = [*WORKER, gpuflow_scheduler, *LOCAL, nanny, "--local-directory", str(tmp_path), *GPUFLOW]
    options = ["--root", str(root), "--node-name", "alpha"] if root_by == "option" else []
    with running([*command, *options], tmp_path / "log", **({} if options else {"GPUFLOW_ROOT": str(root)})):
        wait_for_workers(gpuflow_scheduler, 1)
        with connect(gpuflow_scheduler) as connection:
            ((node, addresses),) = connection.nodes().items()
            assert node.startswith("alpha-") == bool(options)
            assert len(addresses) == 1
            until(lambda: all(connection.client.run(has_imported).values()), "what the first task needs")
            assert connection.each_node(store_path) == {node: str(root)}
            assert (root / "node.json").exists()
    wait_for_workers(gpuflow_scheduler, 0)


def test_a_worker_without_the_plugin_is_named_and_gets_no_chunks(gpuflow_scheduler: str, tmp_path: Path) -> None:
    with running([*WORKER, gpuflow_scheduler, *LOCAL, "--no-nanny", "--local-directory", str(tmp_path)], tmp_path / "log"):
        wait_for_workers(gpuflow_scheduler, 1)
        with pytest.warns(UserWarning, match=r"1 workers have no gpuflow plugin and get no chunks \(tcp://.*gpuflow node"):
            connection = connect(gpuflow_scheduler)
        with connection:
            assert connection.info()["workers"] == {}
            with pytest.raises(ClusterError, match="no node has joined"):
                connection.nodes()
    wait_for_workers(gpuflow_scheduler, 0)


def test_a_scheduler_without_the_plugin(tmp_path: Path) -> None:
    with scheduler(tmp_path) as (address, _):
        began = time.monotonic()
        with pytest.raises(ClusterError, match="has no gpuflow plugin; start it with `gpuflow scheduler`") as caught:
            connect(address)
        assert address in str(caught.value)
        assert time.monotonic() - began < 10


def test_nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "_CONNECT_SECONDS", 1.0)
    began = time.monotonic()
    with pytest.raises(ClusterError, match=r"no scheduler answers at tcp://127.0.0.1:.*start `gpuflow scheduler`"):
        connect(f"tcp://127.0.0.1:{free_port()}")
    assert time.monotonic() - began < 5


def test_wrong_arguments(gpuflow_scheduler: str, tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="are for an embedded cluster"):
        connect(gpuflow_scheduler, root=tmp_path)
    with pytest.raises(ConfigError, match="device 'gpu' is unknown"):
        connect(gpuflow_scheduler, device="gpu")
    with pytest.raises(DeviceUnavailable, match="use device: auto or cpu"):
        connect(root=tmp_path / "none", device="cuda")
    assert not (tmp_path / "none").exists()


def test_a_scheduler_that_cannot_have_the_plugin_ends(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--port", "0", "--no-dashboard", *GPUFLOW]
    with running(command, tmp_path / "log", GPUFLOW_ROUTING="fast") as process:
        assert process.wait(30) == 1
    assert "GPUFLOW_ROUTING is 'fast'; use auto, late or strict" in (tmp_path / "log").read_text()


def commit_one(store: NodeStore) -> str:
    store.put_record(DatasetRecord("d", arrays={"x": ArrayMetadata.create((30,), (10,), np.dtype("u1")).document}))
    data = b"some bytes"
    store.commit([store.stage(Replica("d", "x", 1, 1, len(data), digest(data), bytes(16), bytes(16)), data)])
    return store.node_id


def holders(connection: Connection) -> list[list[str]]:
    return [list(nodes) for nodes in connection.ask("gf_holders", dataset="d", array="x", count=3)]


SERVE = (
    "import sys; from pathlib import Path; from gpuflow.cluster.launch import serve_node; serve_node(sys.argv[1], Path(sys.argv[2]), "
    "['--host', '127.0.0.1', '--no-dashboard', '--nthreads', '1', '--local-directory', sys.argv[2], sys.argv[3]], 'home')"
)


@pytest.mark.parametrize("nanny", ["--no-nanny", "--nanny"])
def test_a_served_node_comes_back_after_its_scheduler_and_goes_with_its_parent(tmp_path: Path, nanny: str) -> None:
    port = free_port()
    address, root = f"tcp://127.0.0.1:{port}", tmp_path / "root"
    with running([sys.executable, "-c", SERVE, address, str(root), nanny], tmp_path / "node.log") as node:
        with scheduler(tmp_path, *GPUFLOW, port=port) as (_, process):
            wait_for_workers(address, 1)
            with connect(address) as connection:
                (node_id,) = connection.each_node(commit_one).values()
                assert node_id.startswith("home-")
                connection.ask("gf_sync")
                assert holders(connection) == [[], [node_id], []]
            kill(process)
        with scheduler(tmp_path, *GPUFLOW, port=port) as (_, process):
            wait_for_workers(address, 1)
            with connect(address) as connection:
                until(lambda: holders(connection) == [[], [node_id], []], "the inventory")
            started = children(node.pid)
            assert started
            kill(node)
            until(lambda: not any(map(alive, started)), "the end of the node's processes", 10)
