"""What a store does where a row of its manifest is not as it was sealed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gpuflow.errors import ChunkCorrupt, NameTaken, StoreError
from gpuflow.storage import snapshots
from gpuflow.storage.doctor import REBUILD, examine
from gpuflow.storage.manifest import REPLICA_DTYPE
from gpuflow.storage.node import NodeStore
from gpuflow.storage.rebuild import rebuild
from tests.storage.stores import ARRAY, content, new_record, new_replica, new_store, stage


@pytest.fixture
def store(tmp_path: Path) -> NodeStore:
    """Chunks 0 to 2 at generation 1; the row of chunk 1 tells of another recipe."""
    store = new_store(tmp_path)
    _change(store, "replica", "recipe = zeroblob(16)")
    return store


def _change(store: NodeStore, table: str, change: str) -> None:
    store.manifest.query(f"UPDATE {table} SET {change} WHERE chunk = 1")


def test_reading_it_names_chunk_and_node(store: NodeStore) -> None:
    with pytest.raises(ChunkCorrupt, match=f"d/{ARRAY}/c/1.*its row in the manifest is not as it was sealed") as raised:
        store.read("d", ARRAY, 1)
    assert store.node_id in str(raised.value)
    assert store.read("d", ARRAY, 0)[1] == content(0, 1)


def test_a_commit_over_it_makes_it_whole(store: NodeStore) -> None:
    store.commit([stage(store, 1, 1)])
    assert store.read("d", ARRAY, 1)[1] == content(1, 1)


def test_a_copy_from_another_node_makes_it_whole(store: NodeStore) -> None:
    assert store.adopt(new_replica(1, 3), content(1, 3))
    replica, data = store.read("d", ARRAY, 1)
    assert (replica.generation, data) == (3, content(1, 3))


def test_a_commit_whose_intent_is_broken_never_happened(store: NodeStore) -> None:
    store.manifest.announce([(new_replica(1, 1), 0), (new_replica(3, 1, b""), 0)], "dead")
    _change(store, "intent", "recipe = zeroblob(16)")
    assert store.recover() == 2
    assert store.manifest.intents() == []
    assert store.manifest.replica("d", ARRAY, 1) is None
    assert store.manifest.replica("d", ARRAY, 3) == new_replica(3, 1, b"")


def test_no_snapshot_is_taken_of_it(store: NodeStore) -> None:
    with pytest.raises(ChunkCorrupt, match=f"d/{ARRAY}/c/1"):
        snapshots.take(store, store.record("d"), "s", "id")
    assert store.manifest.query("SELECT * FROM snapshot") == store.manifest.query("SELECT * FROM kept") == []


def test_a_snapshot_with_a_broken_row_is_not_gone_back_to(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    snapshots.take(store, store.record("d"), "s", "id")
    assert np.array_equal(snapshots.kept(store, "id", ARRAY), store.manifest.replicas("d", ARRAY))
    _change(store, "kept", "generation = 2")
    with pytest.raises(ChunkCorrupt, match="not as it was sealed; take a new snapshot and delete this one"):
        snapshots.kept(store, "id", ARRAY)


@pytest.mark.parametrize("change", ["id = 'other'", "dataset = 'e'", "tag = 't'", "version = 0"])
def test_nothing_is_swept_by_a_broken_row_of_a_snapshot(tmp_path: Path, change: str) -> None:
    store = new_store(tmp_path)
    snapshots.take(store, store.record("d"), "s", "id")
    store.manifest.query(f"UPDATE snapshot SET {change}")
    with pytest.raises(StoreError, match=r"snapshot '.' of '.' is not as it was sealed.*doctor --rebuild"):
        snapshots.sweep(store, new_record(version=5))
    assert (snapshots.folder_of(store, "d", "s") / ARRAY / "c" / "1").read_bytes() == content(1, 1)


def test_a_damaged_replica_is_kept_as_damaged(tmp_path: Path) -> None:
    """Its seal is made of what is kept."""
    store = new_store(tmp_path)
    store.manifest.mark_damaged(new_replica(1, 1))
    rows = {ARRAY: store.manifest.replicas("d", ARRAY)}
    with store.manifest.transaction():
        snapshots._enter(store, store.record("d"), "s", "id")
    assert np.array_equal(snapshots.kept(store, "id", ARRAY), rows[ARRAY])
    with pytest.raises(NameTaken):
        snapshots._enter(store, store.record("d"), "s", "id2")


@pytest.mark.parametrize(
    "change",
    ["snapshot SET version = 9", "meta SET value = 9 WHERE key = 'seq'", "dataset SET version = 9"],
    ids=["snapshot", "seq", "dataset"],
)
def test_what_the_remedy_promises(tmp_path: Path, change: str) -> None:
    store = new_store(tmp_path)
    snapshots.take(store, store.record("d"), "s", "id")
    store.manifest.query(f"UPDATE {change}")
    store.close()
    assert [finding.remedy for finding in examine(tmp_path)].count(REBUILD) == 1
    rebuild(tmp_path, {"d": new_record(version=2)}, lambda dataset, array: np.empty(0, REPLICA_DTYPE))
    assert REBUILD not in [finding.remedy for finding in examine(tmp_path)]
    assert NodeStore(tmp_path).read("d", ARRAY, 1)[1] == content(1, 1)
