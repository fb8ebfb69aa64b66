"""A manifest made from files alone, and with what other nodes know."""

from __future__ import annotations

import shutil
import sqlite3
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gpuflow.datasets import catalog
from gpuflow.datasets.rebuild import rebuild_node
from gpuflow.datasets.snapshots import roll_back
from gpuflow.errors import StoreError
from gpuflow.storage.doctor import examine
from gpuflow.storage.manifest import REPLICA_DTYPE, UNKNOWN
from gpuflow.storage.node import NodeStore
from gpuflow.storage.rebuild import rebuild
from tests.datasets.two_nodes import Model, Stores
from tests.storage.stores import ARRAY, CHUNKS, content, killed_rebuild, new_record, new_store, stage


def nothing(dataset: str, array: str) -> np.ndarray:
    return np.empty(0, REPLICA_DTYPE)


def lose(root: Path) -> None:
    for path in root.glob("manifest.sqlite*"):
        path.unlink()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A closed store with chunks 0 to 2, chunk 1 at generation 3."""
    store = new_store(tmp_path / "root")
    for generation in (2, 3):
        store.commit([stage(store, 1, generation)])
    store.close()
    return tmp_path / "root"


@pytest.mark.parametrize("how", ["lost", "damaged", "started empty"])
def test_a_node_alone(root: Path, how: str) -> None:
    path, damaged = root / "manifest.sqlite", b"garbage" * 1000
    lose(root)
    if how == "damaged":
        path.write_bytes(damaged)
    if how == "started empty":
        shutil.move(root / "datasets", root / "aside")
        NodeStore(root).close()
        shutil.rmtree(root / "datasets")
        shutil.move(root / "aside", root / "datasets")
    began = int(time.time())
    (done,) = rebuild(root, {}, nothing)
    assert (done.dataset, done.array, done.alone, done.known, done.left_out, done.absent) == ("d", ARRAY, 3, 0, (), 3)
    assert examine(root, full=True) == []
    kept = [path for path in root.glob("manifest.sqlite.damaged-*") if not path.name.endswith(("-wal", "-shm"))]
    assert len(kept) == (how != "lost")
    if how == "damaged":
        assert kept[0].read_bytes() == damaged
    store = NodeStore(root)
    replica, data = store.read("d", ARRAY, 1)
    assert data == content(1, 3)
    assert (replica.recipe, replica.inputs) == (UNKNOWN, UNKNOWN)
    assert began <= replica.generation <= began + 5  # above all that this node ever told
    assert store.manifest.changes(began - 1)[0] > began
    record = store.record("d")
    assert (record.version, record.state, record.origin) == (0, "ready", {"kind": "rebuilt"})
    assert (record.arrays, record.groups) == (new_record().arrays, new_record().groups)
    following = replace(stage(store, 1, replica.generation + 1).replica, generation=replica.generation + 1)
    store.commit([store.stage(following, content(1, replica.generation + 1), replaces=replica.generation)])
    store.close()


def test_a_second_rebuild_is_above_the_first(root: Path) -> None:
    lose(root)
    rebuild(root, {}, nothing)
    store = NodeStore(root)
    first = store.read("d", ARRAY, 0)[0].generation
    store.close()
    time.sleep(1.01)
    lose(root)
    rebuild(root, {}, nothing)
    store = NodeStore(root)
    assert store.read("d", ARRAY, 0)[0].generation > first
    store.close()


def test_a_lost_manifest_is_not_begun_anew_in_silence(root: Path) -> None:
    lose(root)
    with pytest.raises(StoreError, match=r"its manifest.sqlite is lost; run `gpuflow doctor --rebuild`"):
        NodeStore(root)
    assert not (root / "manifest.sqlite").exists()


def test_a_whole_manifest_is_not_thrown_away(root: Path) -> None:
    with pytest.raises(
        StoreError, match="its manifest is whole; nothing has to be rebuilt; to have it made anew all the same, move"
    ):
        rebuild(root, {}, nothing)


def test_a_newer_manifest_is_not_thrown_away(root: Path) -> None:
    connection = sqlite3.connect(root / "manifest.sqlite")
    connection.execute("UPDATE meta SET value = 99 WHERE key = 'format'")
    connection.commit()
    connection.close()
    with pytest.raises(StoreError, match=r"has format 99, newer than this gpuflow \(3\); update gpuflow"):
        rebuild(root, {}, nothing)


def test_a_node_that_runs(root: Path) -> None:
    store = NodeStore(root)
    _ = store.writer
    lose(root)
    with pytest.raises(StoreError, match="is in use by 1 processes; stop the node first"):
        rebuild(root, {}, nothing)
    store.close()


def test_a_damaged_zarr_json(root: Path) -> None:
    lose(root)
    (root / "datasets/d/a/b/zarr.json").write_text("{")
    with pytest.raises(
        StoreError, match=r"d/a/b/zarr.json is damaged .*; copy it from another node, or move the dataset's folder"
    ):
        rebuild(root, {}, nothing)


def test_killed_at_any_step_it_begins_again(root: Path, tmp_path: Path) -> None:
    lose(root)
    (root / "manifest.sqlite").write_bytes(b"garbage" * 100)
    for call in range(1, 200):
        copied = Path(shutil.copytree(root, tmp_path / "copied"))
        killed = killed_rebuild(copied, call)
        if killed and any("manifest" in item.problem for item in examine(copied)):
            rebuild(copied, {}, nothing)
        assert [item for item in examine(copied, full=True) if item.serious] == []
        store = NodeStore(copied)
        assert store.read("d", ARRAY, 1)[1] == content(1, 3)
        store.close()
        shutil.rmtree(copied)
        if not killed:
            break
    assert call > 10, "the kills struck nothing"


# -- with other nodes ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path: Path) -> Model:
    """Two nodes; chunk 0 on both, chunk 2 on both but older on the first, a pipeline applied, snapshot `s`."""
    model = Model.begun(Stores(tmp_path / "0", tmp_path / "1"))
    one, other = model.nodes.stores
    other.commit([other.stage(*one.read("d", ARRAY, 0))])
    model.write(2, 1, 6)
    model.apply_pipeline()
    model.take("s")
    return model


def rebuilt(model: Model, tmp_path: Path) -> Model:
    """The same when the first node's manifest has been lost and made anew."""
    model.nodes.close()
    lose(tmp_path / "0")
    other = Stores(tmp_path / "1")
    (done,) = rebuild_node(tmp_path / "0", other)
    other.close()
    assert (done.alone, done.known, done.left_out) == (1, 1, ("d/a/b/c/2",))
    return Model(Stores(tmp_path / "0", tmp_path / "1"), model.now, model.snapshots)


def test_what_others_know_is_known_again(model: Model, tmp_path: Path) -> None:
    replica = model.nodes.stores[0].manifest.replica("d", ARRAY, 0)
    after = rebuilt(model, tmp_path)
    one = after.nodes.stores[0]
    assert one.manifest.replica("d", ARRAY, 0) == replica
    assert one.manifest.replica("d", ARRAY, 2) is None  # the other node's is newer, and stays the newest
    alone = one.manifest.replica("d", ARRAY, 4)
    assert alone is not None
    assert alone.recipe == UNKNOWN
    assert one.record("d").to_json() == after.nodes.stores[1].record("d").to_json()
    table = catalog.chunk_table(after.nodes, "d", ARRAY, CHUNKS)
    for number in range(CHUNKS):
        assert after.read(table.holder_sets[number], number) == after.now[0][number]
    after.nodes.close()


def test_its_part_of_a_snapshot_is_there_again(model: Model, tmp_path: Path) -> None:
    after = rebuilt(model, tmp_path)
    for number in (0, 3, 4):
        after.write(number, number % 2, 9)
    after.back("s")
    after.check()
    after.nodes.close()


def test_snapshots_of_a_node_alone(tmp_path: Path) -> None:
    model = Model.begun(Stores(tmp_path / "0"))
    model.write(5, 0, 2)
    model.take("s")
    model.write(1, 0, 7)
    model.nodes.close()
    lose(tmp_path / "0")
    rebuild(tmp_path / "0", {}, nothing)
    nodes = Stores(tmp_path / "0")
    assert roll_back(nodes, "d", "s").chunks == 1
    assert nodes.stores[0].read("d", ARRAY, 1)[1] == model.snapshots["s"][0][1]
    nodes.close()


def test_a_dataset_that_was_removed_meanwhile(model: Model, tmp_path: Path) -> None:
    other = Stores(tmp_path / "1")
    catalog.publish(other, new_record(version=99, state="removed"))
    other.close()
    model.nodes.close()
    lose(tmp_path / "0")
    other = Stores(tmp_path / "1")
    assert rebuild_node(tmp_path / "0", other) == []
    other.close()
    store = NodeStore(tmp_path / "0")
    store.recover()
    assert not (tmp_path / "0" / "datasets" / "d").exists()
    store.close()
