"""Copies on several nodes: made, kept up, and used to repair."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpuflow.cluster.connection import Connection
from gpuflow.datasets import catalog
from gpuflow.datasets.leases import leased
from gpuflow.errors import ClusterError, NameTaken, NotFound
from gpuflow.execution import copies
from gpuflow.execution.copies import drain, replicate
from gpuflow.execution.dropping import Room
from gpuflow.execution.run import run_pipeline
from gpuflow.objectstore.ingest import ingest_source
from gpuflow.objectstore.repair import scrub_dataset
from gpuflow.objectstore.sources import open_source
from gpuflow.pipelines.load import from_dict
from gpuflow.storage.node import NodeStore
from tests.helpers import read_back


def roots_of(connection: Connection) -> dict[str, Path]:
    return {worker["node"]: Path(worker["root"]) for worker in connection.info()["workers"].values()}


def ingested(connection: Connection, path: Path, name: str, **options: Any) -> None:
    assert ingest_source(connection, open_source(path), name, **options).status == "done"


def holders(connection: Connection, name: str) -> list[frozenset[str]]:
    """Of each chunk of t2m at its newest generation."""
    return catalog.chunk_table(connection, name, "t2m", 20).holder_sets


def files(connection: Connection, chunk: str) -> list[Path]:
    found = (root / "datasets" / chunk for root in roots_of(connection).values())
    return [path for path in found if path.exists()]


def test_replicate_and_again(three_nodes: Connection, field_zarr: Path) -> None:
    ingested(three_nodes, field_zarr, "copied")
    receipt = replicate(three_nodes, "copied", 2).to_dict()
    assert receipt["chunks"] == {"total": 24, "done": 24, "skipped": 0, "failed": 0}
    assert receipt["bytes"]["shipped"] == receipt["bytes"]["written"] == receipt["bytes"]["sent"] > 0
    assert {len(nodes) for nodes in holders(three_nodes, "copied")} == {2}
    assert len({path.read_bytes() for path in files(three_nodes, "copied/t2m/c/0/0/0")}) == 1
    assert replicate(three_nodes, "copied", 2).to_dict()["chunks"]["total"] == 0
    assert replicate(three_nodes, "copied", 3).to_dict()["chunks"]["done"] == 24
    with pytest.raises(ClusterError, match="4 copies need as many nodes, the cluster has 3"):
        replicate(three_nodes, "copied", 4)
    assert dict(catalog.find(three_nodes, "copied").replicas) == {"min": 3, "max": 3}
    assert replicate(three_nodes, "copied", 1).to_dict()["dropped"] == 2 * 24
    assert dict(catalog.find(three_nodes, "copied").replicas) == {"min": 1, "max": 1}
    assert {len(nodes) for nodes in holders(three_nodes, "copied")} == {1}
    known = three_nodes.ask("gf_holders", dataset="copied", array="t2m", count=20)
    assert list(map(set, known)) == list(map(set, holders(three_nodes, "copied")))
    assert len(files(three_nodes, "copied/t2m/c/0/0/0")) == 1
    assert scrub_dataset(three_nodes, "copied").findings == ()


def test_no_copy_is_dropped_before_the_one_that_stays_was_found_whole(three_nodes: Connection, field_zarr: Path) -> None:
    ingested(three_nodes, field_zarr, "copied-doubt", replicas={"min": 3, "max": 3})
    for path in files(three_nodes, "copied-doubt/t2m/c/0/0/0")[:2]:
        path.write_bytes(b"other bytes")
    receipt = replicate(three_nodes, "copied-doubt", 2).to_dict()
    assert [failure["chunk"] for failure in receipt["failures"]].count("copied-doubt/t2m/c/0/0/0") >= 1
    assert receipt["dropped"] == 23
    assert len(files(three_nodes, "copied-doubt/t2m/c/0/0/0")) == 3
    assert scrub_dataset(three_nodes, "copied-doubt").sound
    assert replicate(three_nodes, "copied-doubt", 2).to_dict()["dropped"] == 1


def test_none_is_dropped_while_a_run_changes_the_dataset(three_nodes: Connection, field_zarr: Path) -> None:
    ingested(three_nodes, field_zarr, "copied-busy", replicas={"min": 2, "max": 2})
    with (
        leased(three_nodes, "copied-busy", "a pipeline", "a-run"),
        pytest.raises(NameTaken, match="changed in place by run a-run"),
    ):
        replicate(three_nodes, "copied-busy", 1)
    assert {len(nodes) for nodes in holders(three_nodes, "copied-busy")} == {2}


def test_what_is_of_older_generations_goes(three_nodes: Connection, field_zarr: Path) -> None:
    ingested(three_nodes, field_zarr, "copied-stale", replicas={"min": 2, "max": 2})
    record = catalog.find(three_nodes, "copied-stale")
    assert catalog.publish(three_nodes, record.next(replicas={"min": 1, "max": 1}))
    spec = from_dict({"source": "copied-stale", "steps": [{"map": "x * 2"}], "output": {"in_place": True}})
    assert run_pipeline(three_nodes, spec).status == "done"
    assert len(files(three_nodes, "copied-stale/t2m/c/0/0/0")) == 2
    whole = read_back(roots_of(three_nodes).values(), "copied-stale", "t2m")
    assert replicate(three_nodes, "copied-stale", 1).to_dict()["dropped"] == 24
    assert len(files(three_nodes, "copied-stale/t2m/c/0/0/0")) == 1
    np.testing.assert_array_equal(read_back(roots_of(three_nodes).values(), "copied-stale", "t2m"), whole)


def test_a_run_in_place_ends_with_new_copies(three_nodes: Connection, field_zarr: Path) -> None:
    ingested(three_nodes, field_zarr, "copied-place", replicas={"min": 2, "max": 2})
    before = read_back(roots_of(three_nodes).values(), "copied-place", "t2m")
    spec = from_dict({"source": "copied-place", "steps": [{"map": "x * 2"}], "output": {"in_place": True}})
    assert run_pipeline(three_nodes, spec).status == "done"
    assert all(len(nodes) >= 2 for nodes in holders(three_nodes, "copied-place"))
    np.testing.assert_array_equal(read_back(roots_of(three_nodes).values(), "copied-place", "t2m"), before * 2)
    assert run_pipeline(three_nodes, spec).outcome.tally.done == 0


def test_an_output_with_copies(three_nodes: Connection, field_zarr: Path) -> None:
    ingested(three_nodes, field_zarr, "copied-in")
    output = {"dataset": "copied-out", "replicas": {"min": 2}}
    steps = {"source": {"dataset": "copied-in", "arrays": ["t2m"]}, "steps": [{"map": "x * 2"}]}
    receipt = run_pipeline(three_nodes, from_dict({**steps, "output": output})).to_dict()
    assert receipt["status"] == "done"
    assert receipt["bytes"]["shipped"] == receipt["bytes"]["sent"] > 0
    made = [
        catalog.chunk_table(three_nodes, "copied-out", path, count).rows["nbytes"].sum()
        for path, count in (("t2m", 20), ("time", 4))
    ]
    assert receipt["locality"]["shipped_bytes"]["copies"] == sum(made), "each committed byte once"
    assert receipt["locality"]["tiers"]["peer"]["chunks"] >= 24  # a loaded machine has some of the source's shipped, too
    assert receipt["locality"]["tiers"]["disk"]["bytes"] == receipt["bytes"]["read"] - receipt["bytes"]["shipped"] > 0
    assert {len(nodes) for nodes in holders(three_nodes, "copied-out")} == {2}
    assert catalog.find(three_nodes, "copied-out").state == "ready"
    with pytest.raises(ClusterError, match="is to have 9 copies of each chunk, for which 3 nodes are left"):
        run_pipeline(three_nodes, from_dict({**steps, "output": {"dataset": "never", "replicas": {"min": 9}}}))
    assert "never" not in catalog.records(three_nodes)


def test_damaged_copies_are_made_again_from_sound_ones(three_nodes: Connection, field_zarr: Path) -> None:
    ingested(three_nodes, field_zarr, "copied-damaged", replicas={"min": 2, "max": 2})
    spec = from_dict({"source": "copied-damaged", "steps": [{"map": "x * 2"}], "output": {"in_place": True}})
    assert run_pipeline(three_nodes, spec).status == "done"  # so that there is no other way
    whole = read_back(roots_of(three_nodes).values(), "copied-damaged", "t2m")
    newest = holders(three_nodes, "copied-damaged")
    one, other = (roots_of(three_nodes)[min(newest[chunk])] / "datasets/copied-damaged/t2m/c" for chunk in (0, 19))
    (one / "0/0/0").unlink()
    (other / "9/1/0").write_bytes(b"other bytes")
    report = scrub_dataset(three_nodes, "copied-damaged")
    assert report.sound, report.to_dict()
    assert sorted((each.chunk, each.repaired) for each in report.findings) == [
        ("copied-damaged/t2m/c/0/0/0", "copied"),
        ("copied-damaged/t2m/c/9/1/0", "copied"),
    ]
    assert scrub_dataset(three_nodes, "copied-damaged").findings == ()
    np.testing.assert_array_equal(read_back(roots_of(three_nodes).values(), "copied-damaged", "t2m"), whole)


def test_where_there_is_no_room_nothing_is_copied(
    three_nodes: Connection, field_zarr: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingested(three_nodes, field_zarr, "copied-large")
    monkeypatch.setattr(copies, "room_of", _full)
    node = max(set().union(*holders(three_nodes, "copied-large")))
    with pytest.raises(ClusterError, match=r"has 100 B free, and is to get copies of .*; free some space, or start another node"):
        drain(three_nodes, node)
    with pytest.raises(ClusterError, match="has 100 B free"):
        replicate(three_nodes, "copied-large", 2)
    assert {len(nodes) for nodes in holders(three_nodes, "copied-large")} == {1}
    assert catalog.find(three_nodes, "copied-large").replicas["min"] == 1


def _full(store: NodeStore) -> Room:
    return Room(100, 1000, "")


def test_drain(three_nodes: Connection, field_zarr: Path) -> None:
    ingested(three_nodes, field_zarr, "drained")
    ingested(three_nodes, field_zarr, "drained-once")
    node = min(roots_of(three_nodes))
    replicate(three_nodes, "drained", 3)
    with pytest.raises(ClusterError, match=r"'drained' is to have 3 copies .* 2 nodes are left; .*`gpuflow replicate drained 2`"):
        drain(three_nodes, node)
    replicate(three_nodes, "drained", 2)
    receipts = {receipt.target: receipt for receipt in drain(three_nodes, node)}
    for name, wanted in (("drained", 2), ("drained-once", 1)):
        assert receipts[name].status == "done"
        assert all(len(nodes - {node}) >= wanted for nodes in holders(three_nodes, name))
    with pytest.raises(NotFound, match="no node 'nowhere'"):
        drain(three_nodes, "nowhere")
