"""Workers that go away while they are asked something; a cluster of another version."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed.comm import CommClosedError

from gpuflow import __version__
from gpuflow.cluster.connection import Connection, connect
from gpuflow.errors import ClusterError, NotFound
from gpuflow.storage.node import NodeStore
from tests.cli.commands import command


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connection]:
    """Two nodes of two workers each."""
    with connect(nodes=2, workers=2, root=tmp_path_factory.mktemp("connection")) as connection:
        yield connection


@pytest.fixture
def gone(cluster: Connection, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Has some workers answer as those do that die meanwhile."""
    run = cluster.client.run

    def answer(*args: Any, workers: list[str], **kwargs: Any) -> dict[str, Any]:
        alive = [address for address in workers if address not in lost]
        found = run(*args, workers=alive, **kwargs) if alive else {}
        return found | {address: CommClosedError("it died") for address in workers if address in lost}

    lost: set[str] = set()
    monkeypatch.setattr(cluster.client, "run", answer)
    return lambda *addresses: lost.update(addresses)


def name_of(store: NodeStore) -> str:
    return store.node_id


def fail(store: NodeStore) -> None:
    raise NotFound("dataset", store.node_id)


def test_another_worker_of_the_node_is_asked(cluster: Connection, gone: Callable[..., None]) -> None:
    nodes = cluster.nodes()
    gone(*(addresses[0] for addresses in nodes.values()))
    assert cluster.each_node(name_of) == {node: node for node in nodes}


def test_a_node_without_any_is_named(cluster: Connection, gone: Callable[..., None]) -> None:
    node, addresses = next(iter(cluster.nodes().items()))
    gone(*addresses)
    with pytest.raises(ClusterError, match=f"node {node} does not answer .it died.*; run again when it is back"):
        cluster.each_node(name_of)


def test_errors_of_the_function_are_raised(cluster: Connection) -> None:
    with pytest.raises(NotFound, match="no dataset"):
        cluster.each_node(fail)


def _pretend(version: str, dask_scheduler: Any) -> None:
    from gpuflow.cluster import scheduler_plugin

    scheduler_plugin.__version__ = version  # type: ignore[attr-defined]


def test_a_scheduler_of_another_version_is_refused_in_words(cluster: Connection, tmp_path: Path) -> None:
    address = str(cluster.client.scheduler_info(n_workers=0)["address"])
    reason = f"this is gpuflow {__version__}, the cluster has {__version__}, 99.0; install one version"
    cluster.client.run_on_scheduler(_pretend, "99.0")
    try:
        with pytest.raises(ClusterError, match=re.escape(reason)):
            connect(address)
        assert command("shell", "--scheduler", address, "d/x/0", "-c", "x", root=tmp_path, status=1).strip() == f"error: {reason}"
    finally:
        cluster.client.run_on_scheduler(_pretend, __version__)
    connect(address).close()
