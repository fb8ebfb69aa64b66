"""The loader over a real cluster: what lies on this machine is read there, the rest comes from peers."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr

import gpuflow
from gpuflow.cluster.connection import Connection
from gpuflow.cluster.locating import ClientLocator
from gpuflow.cluster.peers import Peers
from gpuflow.datasets.here import NodesHere
from gpuflow.errors import ClusterError, ConfigError, NotFound
from gpuflow.training import access
from tests.execution.test_run import ingest


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory, three_nodes: Connection) -> np.ndarray:
    """Dataset `loader-field` on three nodes."""
    path = tmp_path_factory.mktemp("source") / "field.zarr"
    group = zarr.create_group(path)
    found = np.random.default_rng(7).normal(280.0, 12.0, (37, 24, 18)).astype("float32")
    array = group.create_array("t2m", shape=found.shape, chunks=(4, 24, 18), dtype="float32", dimension_names=["time", "y", "x"])
    array[...] = found
    ingest(three_nodes, path, "loader-field")
    pipeline = gpuflow.Pipeline("loader-field").map("x - 273").to("loader-sharded", chunks=[1, 24, 18])
    gpuflow.run(pipeline, connection=three_nodes)
    return found


@pytest.mark.parametrize("dataset", ["loader-field", "loader-sharded"])
def test_from_peers_and_from_here(three_nodes: Connection, values: np.ndarray, dataset: str) -> None:
    expected = values if dataset == "loader-field" else values - 273
    states = []
    for node in (None, sorted(three_nodes.nodes())[0]):
        with gpuflow.loader(dataset, 8, connection=three_nodes, node=node, number_as="n", cache=0) as loader:
            seen = []
            for batch in loader:
                np.testing.assert_allclose(batch["t2m"].numpy(), expected[batch["n"].numpy()], rtol=1e-6)
                seen.append(batch["n"].tolist())
            assert (loader.reads["elsewhere"] > 0) == (node is not None)
            assert loader.reads["here"] > 0
            states.append((seen, loader.state_dict()))
    assert states[0] == states[1]


def test_in_a_process_of_its_own(three_nodes: Connection, values: np.ndarray) -> None:
    """A loader that was pickled connects by itself."""
    made = gpuflow.loader("loader-sharded", 8, connection=three_nodes, number_as="n")
    with made as loader, pickle.loads(pickle.dumps(made)) as other:
        assert [batch["n"].tolist() for batch in other] == [batch["n"].tolist() for batch in loader]


def test_bad_places(three_nodes: Connection, values: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="a connection and a root"):
        gpuflow.loader("loader-field", 8, connection=three_nodes, root=tmp_path)
    with pytest.raises(NotFound, match="no node 'n9'"):
        gpuflow.loader("loader-field", 8, connection=three_nodes, node="n9")
    monkeypatch.setenv("GPUFLOW_SCHEDULER", "tcp://127.0.0.1:1")
    with pytest.raises(ClusterError, match="no scheduler answers"):
        gpuflow.loader("loader-field", 8)


def test_in_parts_from_peers(three_nodes: Connection, values: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """A permutation of more than is held: indexes and inner chunks travel, until a peer does not send them; then whole objects do."""
    monkeypatch.setattr(access, "_WHOLE_NBYTES", 0)
    monkeypatch.setattr(access, "_HELD_NBYTES", 1)
    received = []
    for fails in (False, True):
        with monkeypatch.context() as patch:
            if fails:
                patch.setattr(Peers, "ranges", lambda *_: (_ for _ in ()).throw(OSError("it stalls")))
            node = sorted(three_nodes.nodes())[0]
            with gpuflow.loader("loader-sharded", 2, connection=three_nodes, node=node, number_as="n", cache=0) as loader:
                for batch in loader:
                    np.testing.assert_allclose(batch["t2m"].numpy(), values[batch["n"].numpy()] - 273, rtol=1e-6)
                received.append(loader.received_nbytes)
    in_parts, whole = received
    assert 0 < in_parts < 0.7 * whole


def test_a_worker_gives_only_what_is_asked_for(three_nodes: Connection, values: np.ndarray) -> None:
    """Another generation, or a range that the object does not have: an error of the asked one's, and no bytes."""
    here = NodesHere(*(Path(root) for root in sorted({w["root"] for w in three_nodes.info()["workers"].values()})))
    locator = ClientLocator(three_nodes)
    store, replica = next(found for chunk in range(10) if (found := here.local("loader-sharded", "t2m", chunk)))
    parts = locator.parts(replica)
    assert parts is not None
    whole = store.read(replica.dataset, replica.array, replica.chunk)[1]
    assert parts.read([(0, 16), (100, 200)]).tobytes() == whole[:16] + whole[100:200]
    with pytest.raises(OSError, match="does not send it"):
        parts.read([(0, replica.nbytes + 1)])
    other = locator.parts(replace(replica, digest=b"x" * 16))
    assert other is not None
    with pytest.raises(OSError, match="does not send it"):
        other.read([(0, 16)])
    assert locator.parts(replica, frozenset(three_nodes.nodes())) is None
    locator.close()
    here.close()
