"""A replica that is given up is gone as a whole; one that has become another meanwhile stays. Crashes in between: test_crash_states."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from gpuflow.errors import ChunkLost
from gpuflow.storage.doctor import examine
from gpuflow.storage.dropping import drop
from gpuflow.storage.node import NodeStore
from tests.storage.scenarios import seen
from tests.storage.stores import ARRAY, content, new_replica, new_store, stage


@pytest.fixture
def store(tmp_path: Path) -> Iterator[NodeStore]:
    with closing(new_store(tmp_path / "root")) as store:
        yield store


def test_row_and_file_are_gone(store: NodeStore) -> None:
    path = store.path("d", ARRAY, 1)
    assert drop(store, "d", ARRAY, {1: 1, 2: 1, 5: 1}) == [1, 2]
    assert not path.exists()
    with pytest.raises(ChunkLost):
        store.read("d", ARRAY, 1)
    assert seen(store, 0) == (1, content(0, 1))
    assert drop(store, "d", ARRAY, {1: 1}) == []
    assert not any(finding.serious for finding in examine(store.root, full=True))
    store.commit([stage(store, 1, 1)])
    assert seen(store, 1) == (1, content(1, 1))


def test_what_was_committed_meanwhile_stays(store: NodeStore) -> None:
    store.commit([stage(store, 1, 2)])
    assert drop(store, "d", ARRAY, {1: 1}) == []
    assert seen(store, 1) == (2, content(1, 2))


def test_what_is_being_committed_stays(store: NodeStore) -> None:
    assert store.manifest.announce([(new_replica(1, 2), 1)], store.writer.name) == []
    assert drop(store, "d", ARRAY, {0: 1, 1: 1}) == [0]
    assert store.path("d", ARRAY, 1).exists()


def test_one_without_a_file(store: NodeStore) -> None:
    store.commit([stage(store, 3, 1, b"")])
    assert drop(store, "d", ARRAY, {3: 1}) == [3]
    assert seen(store, 3) == (0, None)


def test_thousands(store: NodeStore) -> None:
    assert drop(store, "nothing", "x", dict.fromkeys(range(1000), 1)) == []
