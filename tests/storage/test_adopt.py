"""Copies of another node's replicas: the same generation, digest and recipe, and never over what is newer here."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from gpuflow.errors import ChunkCorrupt, NotFound, StoreError
from gpuflow.storage.node import NodeStore
from tests.storage.faults import Faults, patched
from tests.storage.scenarios import seen
from tests.storage.stores import ARRAY, content, new_record, new_replica, new_store, stage


@pytest.fixture
def store(tmp_path: Path) -> NodeStore:
    """Chunks 0 to 2 at generation 1."""
    return new_store(tmp_path / "root")


@pytest.mark.parametrize("chunk", [0, 3], ids=["older here", "not here"])
@pytest.mark.parametrize("durable", [True, False])
def test_a_copy_is_the_replica_of_the_other_node(store: NodeStore, chunk: int, durable: bool) -> None:
    replica = new_replica(chunk, 5)
    assert store.adopt(replica, content(chunk, 5), durable=durable)
    assert store.read("d", ARRAY, chunk) == (replica, content(chunk, 5))
    assert store.manifest.intents() == []
    newest, changes = store.manifest.changes(4)  # an inventory learns of it as of any other
    assert newest == 5
    assert [column.tolist() for column in changes["d", ARRAY]] == [[chunk], [5]]


def test_a_chunk_without_a_file(store: NodeStore) -> None:
    assert store.adopt(new_replica(0, 2, b""), b"")
    assert seen(store, 0) == (2, None)
    assert not store.path("d", ARRAY, 0).exists()


@pytest.mark.parametrize("generation", [1, 2])
def test_the_same_generation_or_a_newer_one_stays(store: NodeStore, generation: int) -> None:
    store.commit([stage(store, 0, 2)])
    store.commit([stage(store, 0, 3)])
    for older in (generation, 3):
        assert not store.adopt(new_replica(0, older, b"other"), b"other")
    assert seen(store, 0) == (3, content(0, 3))


def test_of_several_those_are_adopted_that_are_newer(store: NodeStore) -> None:
    copies = [(new_replica(chunk, 1), content(chunk, 1)) for chunk in (1, 3, 4)]
    assert [replica.chunk for replica in store.adopt_all(copies)] == [3, 4]
    assert store.adopt_all(copies) == store.adopt_all([]) == []


def test_wrong_bytes_are_refused_and_nothing_is_left(store: NodeStore) -> None:
    copies = [(new_replica(3, 1), content(3, 1)), (new_replica(4, 1), content(4, 2))]
    with pytest.raises(ChunkCorrupt, match="d/a/b/c/4"):
        store.adopt_all(copies)
    with pytest.raises(ChunkCorrupt):
        store.adopt(new_replica(4, 1), content(4, 1)[:-1])
    assert [seen(store, chunk) for chunk in (3, 4)] == [(0, None)] * 2
    assert [path for path in (store.root / "staging").rglob("*") if path.is_file() and path.stat().st_size] == []


def test_a_removed_dataset_takes_no_copies(store: NodeStore) -> None:
    store.put_record(new_record(version=2, state="removed"))
    with pytest.raises(NotFound):
        store.adopt(new_replica(3, 1), content(3, 1))


def test_a_commit_that_is_faster_wins(store: NodeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    before = store._announce

    def overtaken(staged: object, durable: bool) -> list[str]:
        monkeypatch.setattr(store, "_announce", before)
        thread = threading.Thread(target=lambda: store.commit([stage(store, 0, 2)]))
        thread.start()
        thread.join()
        return before(staged, durable)  # type: ignore[arg-type]

    monkeypatch.setattr(store, "_announce", overtaken)
    assert not store.adopt(new_replica(0, 2, b"from afar"), b"from afar")
    assert seen(store, 0) == (2, content(0, 2))


def test_a_copy_that_fails_at_any_step_is_there_or_not(tmp_path: Path) -> None:
    call, outcomes = 1, set()
    while True:
        store = new_store(tmp_path / str(call))
        with patched(Faults(call)) as faults:
            faults.armed = True
            try:
                done = store.adopt_all([(new_replica(0, 2), content(0, 2)), (new_replica(3, 2), content(3, 2))])
            except StoreError:
                done = []
            finally:
                faults.armed = False
        store.close()
        store = NodeStore(tmp_path / str(call))
        store.recover()
        assert store.manifest.intents() == []
        found = seen(store, 0), seen(store, 3)
        assert found[0] in ((1, content(0, 1)), (2, content(0, 2)))
        assert found[1] in ((0, None), (2, content(3, 2)))
        outcomes.add(found)
        store.close()
        if done:
            break
        call += 1
        assert call < 200
    assert call > 5
    assert {((1, content(0, 1)), (0, None)), ((2, content(0, 2)), (2, content(3, 2)))} <= outcomes
