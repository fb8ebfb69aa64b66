"""A file is written over only when it is nobody else's: not a reader's, not an adopted source's."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from gpuflow.storage.node import NodeStore
from gpuflow.storage.spares import Spares, write_over
from tests.storage.stores import ARRAY, content, new_store, stage


@pytest.fixture
def store(tmp_path: Path) -> NodeStore:
    return new_store(tmp_path / "root")


def _inode(store: NodeStore, chunk: int) -> int:
    return store.path("d", ARRAY, chunk).stat().st_ino


def test_a_replaced_file_serves_the_next_commit(store: NodeStore) -> None:
    first = _inode(store, 0)
    store.commit([stage(store, 0, 2)])
    store.commit([stage(store, 1, 2)])
    assert _inode(store, 1) == first
    assert store.read("d", ARRAY, 1)[1] == content(1, 2)
    assert store.read("d", ARRAY, 0)[1] == content(0, 2)


@pytest.mark.parametrize("size", [3, 16, 40])
def test_what_is_written_over_has_its_new_length(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(16))
    assert write_over(str(path), bytes(range(size)), soon=True)
    assert path.read_bytes() == bytes(range(size))


def test_a_reader_keeps_what_it_opened(store: NodeStore) -> None:
    with store.path("d", ARRAY, 0).open("rb") as reader:
        store.commit([stage(store, 0, 2)])
        store.commit([stage(store, 1, 2), stage(store, 2, 2)])
        assert reader.read() == content(0, 1)


def test_a_file_with_another_name_stays_as_it_is(store: NodeStore, tmp_path: Path) -> None:
    os.link(store.path("d", ARRAY, 0), tmp_path / "snapshot")
    for generation in (2, 3, 4):
        store.commit([stage(store, chunk, generation) for chunk in (0, 1)])
    assert (tmp_path / "snapshot").read_bytes() == content(0, 1)


def test_spares_make_room_on_a_full_disk(store: NodeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.commit([stage(store, 0, 2), stage(store, 1, 2)])
    write = os.write

    def until_there_is_room(descriptor: int, data: memoryview) -> int:
        if len(list(store.writer.folder.iterdir())) > 2:  # the lock, and what is written now
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", until_there_is_room)
    item = stage(store, 2, 2)
    monkeypatch.undo()
    store.commit([item])
    assert store.read("d", ARRAY, 2)[1] == content(2, 2)
    assert store.spares.take() == item.temporary


def test_spares_go_with_their_writer(store: NodeStore) -> None:
    store.commit([stage(store, 0, 2)])
    store.close()
    assert list((store.root / "staging").iterdir()) == []


def test_there_is_room_for_some() -> None:
    spares = Spares()
    assert spares.take() is None
    assert spares.give("large", 200 * 2**20)
    assert not spares.give("too much", 100 * 2**20)
    assert spares.give("small", 1)
    assert [spares.take(), spares.take(), spares.take()] == ["small", "large", None]
    assert spares.give("after", 100 * 2**20)
