"""`gpuflow snapshot`, `diff`, `rollback`, `remove` and in-place runs between them, on a cluster of three nodes and without it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from gpuflow.cluster.connection import Connection, connect
from gpuflow.cluster.launch import existing_roots
from gpuflow.datasets.catalog import NodesOnDisk, chunk_table, find
from gpuflow.errors import NameTaken
from gpuflow.execution.run import run_pipeline
from gpuflow.objectstore.ingest import ingest_source
from gpuflow.objectstore.sources import open_source
from gpuflow.pipelines.load import from_dict
from tests.cli.commands import command
from tests.helpers import read_embedded

CHUNKS = 96
_SMALL_GROUPS = "import gpuflow.storage.snapshots as s; s._GROUP_CHUNKS = 2; from gpuflow.cli import main; main()"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Connection, Path]]:
    root = tmp_path_factory.mktemp("three")
    with connect(nodes=3, workers=1, root=root) as connection:
        yield connection, root


def new_dataset(connection: Connection, folder: Path, name: str) -> np.ndarray:
    """(samples, pixels) float32 in CHUNKS chunks, on all three nodes."""
    values = np.random.default_rng(3).normal(5, 2, (CHUNKS * 2, 8)).astype("float32")
    np.save(folder / "source.npy", values)
    receipt = ingest_source(connection, open_source(folder / "source.npy", chunk_samples=2), name)
    assert receipt.status == "done"
    return values


def in_place(connection: Connection, name: str, expression: str) -> dict[str, Any]:
    spec = from_dict({"source": name, "steps": [{"map": expression}], "output": {"in_place": True}})
    receipt = run_pipeline(connection, spec).to_dict()
    assert receipt["status"] == "done", receipt["failures"]
    return receipt["chunks"]


def generations(root: Path, name: str) -> set[int]:
    return set(chunk_table(NodesOnDisk(tuple(existing_roots(root))), name, "data", CHUNKS).rows["generation"].tolist())


def test_snapshot_run_diff_rollback_run(cluster: tuple[Connection, Path], tmp_path: Path) -> None:
    connection, root = cluster
    address = {"GPUFLOW_SCHEDULER": connection.client.scheduler.address}
    values = new_dataset(connection, tmp_path, "field")
    taken = json.loads(command("snapshot", "field", "before", "--json", root=root, **address))[0]
    assert (taken["tag"], taken["chunks"], taken["in_place"], set(taken["nodes"].values())) == (
        "before",
        CHUNKS,
        0,
        {CHUNKS // 3},
    )
    assert "are the same" in command("diff", "field", "before", root=root)
    assert in_place(connection, "field", "x * 3")["done"] == CHUNKS
    with pytest.raises(NameTaken, match="--stack"):
        in_place(connection, "field", "x + 1")
    details = json.loads(command("diff", "field", "before", "--json", root=root))
    assert len(details["arrays"]["data"]["differing"]) == CHUNKS
    command("snapshot", "field", "tripled", root=root)
    shown = command("rollback", "field", "before", root=root, **address)
    assert f"field is as in snapshot before: {CHUNKS} chunks" in shown
    assert "1 in-place pipelines undone" in shown
    np.testing.assert_array_equal(read_embedded(root, "field", "data"), values)
    assert generations(root, "field") == {3}
    assert in_place(connection, "field", "x + 1")["done"] == CHUNKS  # anew, not on top
    np.testing.assert_allclose(read_embedded(root, "field", "data"), values + 1, rtol=1e-6)
    command("rollback", "field", "tripled", root=root)
    np.testing.assert_allclose(read_embedded(root, "field", "data"), values * 3, rtol=1e-6)
    assert in_place(connection, "field", "x * 3") == {"total": CHUNKS, "done": 0, "skipped": CHUNKS, "failed": 0}
    listed = command("snapshot", "field", "--list", root=root)
    assert "before" in listed
    assert "tripled" in listed
    assert "before" not in command("snapshot", "field", "--delete", "before", root=root)
    assert not [path for node in existing_roots(root) for path in (node / "snapshots").glob("*/before")]


def test_errors_as_a_user_meets_them(cluster: tuple[Connection, Path], tmp_path: Path) -> None:
    connection, root = cluster
    new_dataset(connection, tmp_path, "wrong")
    assert "no snapshot 'a'; dataset 'wrong' has none" in command("rollback", "wrong", "a", root=root, status=1)
    assert "wrong has no snapshots" in command("snapshot", "wrong", root=root)
    command("snapshot", "wrong", "a", root=root)
    assert "has a snapshot 'a' of 20" in command("snapshot", "wrong", "a", root=root, status=1)
    assert "no snapshot 'b'; there is: a" in command("diff", "wrong", "a", "b", root=root, status=1)
    assert "cannot be the tag of a snapshot" in command("snapshot", "wrong", "../b", root=root, status=2)
    assert "give one of them" in command("snapshot", "wrong", "b", "--list", root=root, status=2)
    away = command("rollback", "wrong", "a", "--nodes", 2, root=root, status=1)
    assert f"{CHUNKS // 3} chunks of snapshot 'a' of 'wrong' are on node2-" in away
    assert "no live replica of chunk wrong/data/c." in command("snapshot", "wrong", "b", "--nodes", 2, root=root, status=1)
    address = {"GPUFLOW_SCHEDULER": connection.client.scheduler.address}
    kept = command("remove", "wrong", "--yes", root=root, status=1, **address)
    assert "dataset 'wrong' has snapshots: a; remove it with --with-snapshots, or delete them first" in kept
    command("remove", "wrong", "--yes", "--with-snapshots", root=root, **address)
    assert not [path for node in existing_roots(root) for path in node.glob("*/wrong")]


def test_a_rollback_that_is_killed_is_finished_by_the_next(cluster: tuple[Connection, Path], tmp_path: Path) -> None:
    connection, root = cluster
    values = new_dataset(connection, tmp_path, "killed")
    command("snapshot", "killed", "before", root=root)
    in_place(connection, "killed", "x * 3")
    arguments = [sys.executable, "-c", _SMALL_GROUPS, "rollback", "killed", "before"]
    process = subprocess.Popen(arguments, env={**os.environ, "GPUFLOW_ROOT": str(root)})
    while 3 not in generations(root, "killed"):
        assert process.poll() is None
        time.sleep(0.002)
    process.kill()
    process.wait()
    assert generations(root, "killed") == {2, 3}, "the rollback ended before it was killed"
    assert find(NodesOnDisk(tuple(existing_roots(root))), "killed").state == "rolling back"
    pipeline = tmp_path / "p.yaml"
    pipeline.write_text("source: killed\nsteps: [{map: x * 3}]\noutput: {in_place: true}\n")
    address = connection.client.scheduler.address
    assert "by run rollback to before; wait" in command("run", pipeline, "--scheduler", address, root=root, status=1)
    unfinished = command("plan", pipeline, root=root, status=2)
    assert "'killed' is not complete; finish it first: run `gpuflow rollback killed TAG`" in unfinished
    assert "is in the middle of a rollback" in command("snapshot", "killed", "other", root=root, status=1)
    command("rollback", "killed", "before", root=root)
    np.testing.assert_array_equal(read_embedded(root, "killed", "data"), values)
    assert generations(root, "killed") == {3}
    assert in_place(connection, "killed", "x * 3")["done"] == CHUNKS
    np.testing.assert_allclose(read_embedded(root, "killed", "data"), values * 3, rtol=1e-6)
    tree = zarr.open_array(root / "snapshots" / "killed" / "before" / "data", mode="r")
    mine = read_here(root, "killed")
    np.testing.assert_array_equal(tree[...].reshape(CHUNKS, 2, 8)[mine], values.reshape(CHUNKS, 2, 8)[mine])


def read_here(root: Path, name: str) -> list[int]:
    """The chunks that the first node holds."""
    return chunk_table(NodesOnDisk((root,)), name, "data", CHUNKS).present.nonzero()[0].tolist()


def test_a_run_takes_a_snapshot_first(cluster: tuple[Connection, Path], tmp_path: Path) -> None:
    connection, root = cluster
    values = new_dataset(connection, tmp_path, "yaml")
    pipeline = tmp_path / "p.yaml"
    address = ("--scheduler", connection.client.scheduler.address)

    def run(expression: str, tag: str, *options: str, status: int = 0) -> str:
        pipeline.write_text(f"source: yaml\nsteps: [{{map: {expression}}}]\noutput: {{in_place: true, snapshot: {tag}}}\n")
        return command("run", pipeline, *address, *options, root=root, status=status)

    run("x * 3", "before")
    taken = command("snapshot", "yaml", "--json", root=root)
    assert [row["tag"] for row in json.loads(taken)] == ["before"]
    run("x * 3", "before")
    assert command("snapshot", "yaml", "--json", root=root) == taken
    refused = run("x + 1", "before", "--stack", status=1)
    assert "dataset 'yaml' has a snapshot 'before' of another state of it; choose another tag" in refused
    run("x + 1", "tripled", "--stack")
    command("rollback", "yaml", "before", root=root)
    np.testing.assert_array_equal(read_embedded(root, "yaml", "data"), values)
    run("x - 1", "before")  # the tag is there, of this very state
    np.testing.assert_allclose(read_embedded(root, "yaml", "data"), values - 1, rtol=1e-6)
    command("rollback", "yaml", "tripled", root=root)
    np.testing.assert_allclose(read_embedded(root, "yaml", "data"), values * 3, rtol=1e-6)


def test_log_of_a_dataset_an_array_and_a_chunk(cluster: tuple[Connection, Path], tmp_path: Path) -> None:
    connection, root = cluster
    new_dataset(connection, tmp_path, "logged")
    history = json.loads(command("log", "logged", "--json", root=root))
    assert (history["transforms"], history["arrays"]["data"]["stages"]) == ([], {"as made": CHUNKS})
    command("snapshot", "logged", "before", root=root)
    in_place(connection, "logged", "x * 3")
    history = json.loads(command("log", "logged", "--json", root=root))
    assert history["arrays"]["data"]["stages"] == {"in-place pipeline 1": CHUNKS}
    assert history["arrays"]["data"]["generations"] == {"2": CHUNKS}
    assert history["transforms"][0]["steps"] == {"data": [{"map": {"expression": "x * 3"}}]}
    assert history["snapshots"][0]["tag"] == "before"
    assert history["created"] <= history["transforms"][0]["begun"]
    shown = command("log", "logged", root=root)
    assert shown.index("made from") < shown.index("snapshot before") < shown.index("in-place pipeline 1: map on data")
    assert f"{CHUNKS} in-place pipeline 1" in command("log", "logged/data", root=root)
    chunk = json.loads(command("log", "logged/data/c.7.0", "--json", root=root))
    assert chunk == json.loads(command("log", "logged/data/7", "--json", root=root))
    assert (chunk["chunk"], chunk["generation"], chunk["stage"]) == ("logged/data/c.7.0", 2, "in-place pipeline 1")
    assert chunk["inputs"] == chunk["snapshots"]["before"]["digest"] != chunk["digest"]
    assert len(chunk["holders"]) == 1
    assert "snapshot before" in command("log", "logged/data/7", root=root)
    assert "no dataset 'logs'; there is: " in command("log", "logs", root=root, status=1)
    assert "no array 'logged/x'; there is: data" in command("log", "logged/x", root=root, status=1)
