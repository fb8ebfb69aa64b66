"""A node's store: commits, reads, damage, links, records, and roots that cannot be used."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import zarr

from gpuflow.errors import ChunkCorrupt, ChunkLost, ConfigError, NotFound, StaleChunk, StoreError
from gpuflow.storage import node as node_module
from gpuflow.storage.manifest import UNKNOWN
from gpuflow.storage.node import NodeStore
from tests.storage.faults import Faults, patched
from tests.storage.stores import (
    ARRAY,
    content,
    new_record,
    new_replica,
    new_store,
    open_fresh,
    race_for_chunk,
    read_until,
    stage,
)


@pytest.fixture
def store(tmp_path: Path) -> NodeStore:
    return new_store(tmp_path / "root")


def _file(store: NodeStore, chunk: int) -> Path:
    return store.path("d", ARRAY, chunk)


def _temporaries(store: NodeStore) -> list[Path]:
    spares = set(iter(store.spares.take, None))
    return [path for path in store.writer.folder.iterdir() if path.name != "lock" and str(path) not in spares]


# -- reading and committing -------------------------------------------------------------------------------------------------------


def test_the_tree_is_plain_zarr(store: NodeStore) -> None:
    store.commit([stage(store, 1, 2), stage(store, 5, 1), stage(store, 2, 2, b"")])
    group = zarr.open_group(store.root / "datasets" / "d", mode="r")
    wanted = np.repeat([1, 102, 0, 0, 0, 501], 4)
    assert dict(group.attrs) == {"title": "d"}
    np.testing.assert_array_equal(group["a/b"][...], wanted)
    assert sorted(path.name for path in (store.root / "datasets" / "d").rglob("*") if path.is_file()) == [
        *("0", "1", "5"),
        *["zarr.json"] * 3,
    ]


def test_a_chunk_reads_as_it_was_committed(store: NodeStore) -> None:
    assert store.read("d", ARRAY, 0) == (new_replica(0, 1), content(0, 1))
    store.commit([stage(store, 0, 2)], durable=False)
    assert store.read("d", ARRAY, 0) == (new_replica(0, 2), content(0, 2))
    store.commit([stage(store, 0, 3, b"")])
    assert store.read("d", ARRAY, 0) == (new_replica(0, 3, b""), b"")
    assert not _file(store, 0).exists(), "plain zarr must see fill value too"
    store.commit([])
    assert _temporaries(store) == []


def test_what_is_not_there_is_said(store: NodeStore) -> None:
    with pytest.raises(ChunkLost, match=r"d/a/b/c/4 \(searched: n-"):
        store.read("d", ARRAY, 4)
    with pytest.raises(NotFound, match=r"no dataset 'x'; there is: d"):
        store.read("x", ARRAY, 0)
    with pytest.raises(NotFound, match=r"no array 'd/x'; there is: a/b"):
        store.read("d", "x", 0)
    with pytest.raises(IndexError):
        store.read("d", ARRAY, 6)


@pytest.mark.parametrize(("chunk", "generation"), [(0, 1), (0, 3), (3, 2)])
def test_a_stale_chunk_holds_up_its_group(store: NodeStore, chunk: int, generation: int) -> None:
    found = 1 if chunk == 0 else 0
    with pytest.raises(StaleChunk) as raised:
        store.commit([stage(store, 1, 2), stage(store, chunk, generation)])
    assert (raised.value.chunk, raised.value.expected, raised.value.found) == (f"d/a/b/c/{chunk}", generation - 1, found)
    assert store.read("d", ARRAY, 1) == (new_replica(1, 1), content(1, 1))
    assert store.manifest.intents() == []
    assert _temporaries(store) == []


def test_a_chunk_outside_the_array_leaves_nothing(store: NodeStore) -> None:
    staged = [stage(store, 1, 2), store.stage(new_replica(6, 1), b"x")]
    with pytest.raises(IndexError):
        store.commit(staged)
    with pytest.raises(NotFound):
        store.commit([stage(store, 0, 1, name="x")])
    assert store.manifest.intents() == []
    assert _temporaries(store) == []


def test_a_second_process_waits_for_a_commit_that_is_under_way(store: NodeStore) -> None:
    other = NodeStore(store.root)
    slow = stage(store, 0, 2)
    store.manifest.announce([(slow.replica, 1)], store.writer.name)
    failure: list[Exception] = []

    def commit() -> None:
        try:
            other.commit([stage(other, 0, 2)])
        except StaleChunk as error:
            failure.append(error)

    thread = threading.Thread(target=commit)
    thread.start()
    time.sleep(0.05)
    assert thread.is_alive()
    assert slow.temporary is not None
    os.rename(slow.temporary, _file(store, 0))
    store.manifest.finish([slow.replica])
    thread.join(10)
    assert [str(error) for error in failure] == [str(StaleChunk("d/a/b/c/0", 1, 2))]
    other.close()


def test_two_processes_commit_the_same_chunk(tmp_path: Path, processes: ProcessPoolExecutor) -> None:
    last = 60
    store = new_store(tmp_path / "root", ())
    store.commit([stage(store, 0, 1, bytes(4) + (1).to_bytes(4, "little") + bytes(8))])
    futures = [processes.submit(race_for_chunk, store.root, last, mark) for mark in (1, 2)]
    results = [future.result() for future in futures]
    assert sum(won for won, _ in results) == last - 1
    assert store.read("d", ARRAY, 0)[0].generation == last
    assert store.manifest.intents() == []


def test_readers_see_one_generation(tmp_path: Path, processes: ProcessPoolExecutor) -> None:
    last = 80
    store = new_store(tmp_path / "root")
    futures = [processes.submit(read_until, store.root, last)]
    results: list[tuple[int, int]] = []
    thread = threading.Thread(target=lambda: results.append(_read_here(store, last)))
    thread.start()
    for generation in range(2, last + 1):
        store.commit([stage(store, chunk, generation) for chunk in (0, 1)], durable=generation % 4 == 0)
    results += [future.result() for future in futures]
    thread.join()
    assert [wrong for _, wrong in results] == [0, 0]
    assert len(store.manifest.replicas("d", ARRAY)) == 3


def _read_here(store: NodeStore, last: int) -> tuple[int, int]:
    """As `read_until`, through the store that commits."""
    reads = wrong = generation = 0
    while generation < last:
        replica, data = store.read("d", ARRAY, 0)
        wrong += data != content(0, replica.generation) or replica.generation < generation
        generation, reads = replica.generation, reads + 1
    return reads, wrong


# -- damage -----------------------------------------------------------------------------------------------------------------------


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[5] ^= 1
    path.write_bytes(data)


def _swap(path: Path) -> None:
    other = path.with_name("1")
    here, there = path.read_bytes(), other.read_bytes()
    path.write_bytes(there)
    other.write_bytes(here)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "flipped": _flip,
    "truncated": lambda path: os.truncate(path, 7),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "emptied": lambda path: os.truncate(path, 0),
    "deleted": Path.unlink,
    "swapped": _swap,
    "a folder": _folder,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_damaged_bytes_are_never_returned(store: NodeStore, damage: Callable[[Path], object]) -> None:
    damage(_file(store, 0))
    with pytest.raises(ChunkCorrupt) as raised:
        store.read("d", ARRAY, 0)
    assert (raised.value.chunk, raised.value.node) == ("d/a/b/c/0", store.node_id)
    marked = store.manifest.replica("d", ARRAY, 0)
    assert marked is not None
    assert marked.recipe == UNKNOWN
    with pytest.raises(ChunkCorrupt):
        store.read("d", ARRAY, 0)
    if damage is not _folder:
        store.commit([stage(store, 0, 2)])
        assert store.read("d", ARRAY, 0) == (new_replica(0, 2), content(0, 2))


def test_a_passing_fault_does_not_forget_what_was_applied(store: NodeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place, a chunk without its recipe would be processed a second time."""
    with monkeypatch.context() as patch:
        patch.setattr(node_module, "read_file", lambda path: bytes(16))
        with pytest.raises(ChunkCorrupt):
            store.read("d", ARRAY, 0)
    assert store.read("d", ARRAY, 0) == (new_replica(0, 1), content(0, 1))
    assert store.manifest.replica("d", ARRAY, 0) == new_replica(0, 1)


def test_a_commit_that_does_not_end_is_no_damage(store: NodeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_module, "_COMMIT_PATIENCE_SECONDS", 0.05)
    item = stage(store, 0, 2)
    store.manifest.announce([(item.replica, 1)], store.writer.name)
    assert item.temporary is not None
    os.rename(item.temporary, _file(store, 0))
    with pytest.raises(ChunkCorrupt):
        store.read("d", ARRAY, 0)
    assert store.manifest.replica("d", ARRAY, 0) == new_replica(0, 1)
    with pytest.raises(StaleChunk):
        store.commit([stage(store, 0, 2)])
    store.manifest.finish([item.replica])
    assert store.read("d", ARRAY, 0)[1] == content(0, 2)


# -- links ------------------------------------------------------------------------------------------------------------------------


def test_a_linked_source_is_never_altered(store: NodeStore, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(content(0, 2))
    inode = source.stat().st_ino
    store.commit([store.stage_link(new_replica(0, 2), source, replaces=1)])
    assert _file(store, 0).stat().st_ino == inode
    for generation, data in ((3, content(0, 3)), (4, b""), (5, content(0, 5))):
        store.commit([stage(store, 0, generation, data)])
    store.put_record(new_record(version=2, state="removed"))
    assert (source.stat().st_ino, source.read_bytes(), source.stat().st_nlink) == (inode, content(0, 2), 1)


def test_the_same_source_linked_again_leaves_no_temporary(store: NodeStore, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(content(9, 9))
    for generation in (2, 3):
        store.commit([store.stage_link(new_replica(0, generation, content(9, 9)), source, replaces=generation - 1)])
    assert store.read("d", ARRAY, 0)[0].generation == 3
    assert _temporaries(store) == []
    assert source.stat().st_nlink == 2


def test_a_source_that_cannot_be_linked_is_a_store_error(store: NodeStore, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="No such file"):
        store.stage_link(new_replica(3, 1), tmp_path / "none")


def test_a_source_on_another_disk_is_a_store_error(store: NodeStore, small_disk: Path) -> None:
    (small_disk / "x").write_bytes(b"x")
    with pytest.raises(StoreError, match="on another file system; put the store on the same one"):
        store.stage_link(new_replica(3, 1), small_disk / "x")
    assert _temporaries(store) == []


# -- records ----------------------------------------------------------------------------------------------------------------------


def test_a_record_that_another_process_put_is_seen(store: NodeStore) -> None:
    other = NodeStore(store.root)
    assert store.record("d").version == 1
    codec = store.codec("d", ARRAY)
    assert store.codec("d", ARRAY) is codec
    other.put_record(new_record(version=2, state="writing"))
    assert store.record("d").state == "writing"
    store.put_record(new_record(version=2, state="ready"))
    assert store.record("d").state == "writing"
    assert store.codec("d", ARRAY) is not codec
    other.close()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../d"])
def test_a_name_that_leads_out_of_the_root_is_refused(store: NodeStore, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot name a dataset"):
        store.put_record(new_record(name, state="removed"))


def test_a_removed_dataset_is_gone_and_stays_so(store: NodeStore) -> None:
    store.put_record(new_record("e"))
    store.put_record(new_record(version=2, state="removed"))
    assert [path.name for path in (store.root / "datasets").iterdir()] == ["e"]
    assert _temporaries(store) == []
    for act in (lambda: store.read("d", ARRAY, 0), lambda: store.record("d"), lambda: store.commit([stage(store, 0, 1)])):
        with pytest.raises(NotFound, match="no dataset 'd'; there is: e"):
            act()
    assert _temporaries(store) == []
    store.put_record(new_record(version=1))  # from a node that was away
    assert not (store.root / "datasets" / "d").exists()
    assert store.manifest.version("d") == (2, "removed")
    store.put_record(new_record(version=2, state="removed"))
    store.put_record(new_record("never heard of", 4, "removed"))


def test_a_name_lives_again_without_stale_rows(store: NodeStore) -> None:
    other = NodeStore(store.root)
    assert other.read("d", ARRAY, 0)[0].generation == 1
    store.commit([stage(store, 0, 2)])
    store.put_record(new_record(version=2, state="removed"))
    store.put_record(new_record(version=3))
    for each in (store, other):
        with pytest.raises(ChunkLost):
            each.read("d", ARRAY, 0)
    assert len(store.manifest.replicas("d", ARRAY)) == 0
    before, _ = store.manifest.changes(0)
    other.commit([stage(other, 0, 1)])
    assert store.read("d", ARRAY, 0)[0].generation == other.read("d", ARRAY, 0)[0].generation == 1
    assert store.manifest.changes(before)[0] == before + 1
    np.testing.assert_array_equal(zarr.open_array(store.root / "datasets/d/a/b", mode="r")[:8], np.repeat([1, 0], 4))
    other.close()


@pytest.mark.parametrize("durable", [True, False])
def test_a_commit_that_a_removal_overtakes_leaves_nothing(
    store: NodeStore, monkeypatch: pytest.MonkeyPatch, durable: bool
) -> None:
    other, rename = NodeStore(store.root), os.rename
    staged = [stage(store, 0, 2), stage(store, 3, 1)]

    def removing(source: Path, target: Path) -> None:
        monkeypatch.setattr(os, "rename", rename)
        other.put_record(new_record(version=2, state="removed"))
        assert _file_at(store).parent.exists(), "the commit that is under way still needs it"
        rename(source, target)

    monkeypatch.setattr(os, "rename", removing)
    with pytest.raises(NotFound, match="no dataset 'd'; it was removed meanwhile"):
        store.commit(staged, durable=durable)
    assert not (store.root / "datasets" / "d").exists()
    assert store.manifest.intents() == []
    assert _temporaries(store) == []
    other.close()


def _file_at(store: NodeStore) -> Path:
    return store.root / "datasets" / "d" / ARRAY / "c" / "0"


def test_a_new_dataset_of_the_name_waits_for_commits_into_the_former(store: NodeStore) -> None:
    other = NodeStore(store.root)
    item = stage(store, 0, 2)
    store.manifest.announce([(item.replica, 1)], store.writer.name)
    other.put_record(new_record(version=2, state="removed"))
    thread = threading.Thread(target=other.put_record, args=(new_record(version=3),))
    thread.start()
    time.sleep(0.05)
    assert thread.is_alive()
    assert item.temporary is not None
    os.rename(item.temporary, _file_at(store))
    assert store.manifest.finish([item.replica]) == [item.replica]
    thread.join(10)
    assert store.record("d").version == 3
    assert not _file_at(store).exists()
    other.close()


def test_a_removal_that_a_crash_cut_short_is_ended(store: NodeStore) -> None:
    item = stage(store, 0, 2)
    store.manifest.announce([(item.replica, 1)], "a writer that is no more")
    store.manifest.put_record(new_record(version=2, state="removed"))
    assert store.recover() == 1
    assert not (store.root / "datasets" / "d").exists()
    assert store.manifest.intents() == []


# -- roots ------------------------------------------------------------------------------------------------------------------------


def test_no_store_is_made_where_none_should_be(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "none"):
        with pytest.raises(StoreError, match="holds no gpuflow store; ingest something first"):
            NodeStore(root, create=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("below", [".", "deep/er"])
def test_a_root_that_is_a_file_is_refused(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(StoreError, match="a file is where a folder should be"):
        NodeStore(tmp_path / "file" / below)
    with pytest.raises(StoreError, match="holds no gpuflow store"):
        NodeStore(tmp_path / "file" / below, create=False)


def test_a_root_that_cannot_be_written_is_refused(small_disk: Path) -> None:
    new_store(small_disk / "root").close()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    for root in (small_disk / "root", small_disk / "other"):
        with pytest.raises(StoreError, match="choose another root or mend its permissions"):
            NodeStore(root)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"node_id": null}', '{"node_id": ""}', "\x00\x01"])
def test_a_damaged_node_json_is_refused(store: NodeStore, text: str) -> None:
    store.close()
    (store.root / "node.json").write_text(text)
    with pytest.raises(StoreError, match=r"node\.json is damaged .*; restore it or choose another root"):
        NodeStore(store.root)


def test_a_node_keeps_its_id(store: NodeStore) -> None:
    store.close()
    store.close()
    again = NodeStore(store.root, name="other")
    assert again.node_id == store.node_id
    assert again.node_id.startswith("n-")
    assert json.loads((store.root / "node.json").read_text()) == {"format": 1, "node_id": again.node_id}
    odd = NodeStore(store.root.parent / "odd", name="a b/ü")
    assert odd.node_id.startswith("a-b---")
    again.close()
    odd.close()


def test_processes_that_open_a_fresh_root_agree(tmp_path: Path, processes: ProcessPoolExecutor) -> None:
    for turn in range(5):
        root, start = tmp_path / str(turn), time.time() + 0.05
        futures = [processes.submit(open_fresh, root, start) for _ in range(2)]
        assert len({future.result() for future in futures}) == 1
        assert list((root / "staging").iterdir()) == []
        assert not list(root.glob(".node.json*"))


def test_a_full_disk_keeps_what_is_committed(small_disk: Path) -> None:
    (small_disk / "ballast").write_bytes(bytes(2**18))
    store = new_store(small_disk / "root")
    generation = {0: 1, 1: 1, 2: 1}

    def fill() -> None:
        while True:
            for chunk in generation:
                following = generation[chunk] + 1
                data = content(chunk, following) + bytes(60_000 + 1000 * following)
                store.commit([stage(store, chunk, following, data)])
                generation[chunk] = following

    with pytest.raises(StoreError, match=r"full.*free some space and run again"):
        fill()
    for chunk in generation:
        replica, data = store.read("d", ARRAY, chunk)
        assert replica.generation in (generation[chunk], generation[chunk] + 1)
        assert data[:16] == content(chunk, replica.generation)
    (small_disk / "ballast").unlink()
    store.recover()
    assert store.manifest.intents() == []
    here = store.read("d", ARRAY, 0)[0].generation
    store.commit([stage(store, 0, here + 1)])
    assert store.read("d", ARRAY, 0)[1] == content(0, here + 1)
    store.close()


def test_a_store_that_cannot_settle_does_so_later(store: NodeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk fails in the middle of a commit, and goes on failing; the process lives."""
    root = store.root
    store.close()
    with patched(Faults()) as faults:
        store = NodeStore(root)
        staged = [stage(store, 0, 2), stage(store, 3, 1)]
        faults.call, faults.stays = 2, True

        def first_fault(source: Path, target: Path) -> None:
            faults.armed = True
            rename(source, target)
            faults.strike(OSError(errno.EIO, os.strerror(errno.EIO)))

        rename = os.rename
        monkeypatch.setattr(os, "rename", first_fault)
        with pytest.raises(StoreError):
            store.commit(staged)
        monkeypatch.setattr(os, "rename", rename)
        assert len(store.manifest.intents()) == 2
        with pytest.raises(StoreError):
            store.recover()
        faults.armed = False
        assert store.recover() == 2
        assert store.manifest.intents() == []
        for chunk in (0, 3):
            replica = store.manifest.replica("d", ARRAY, chunk)
            generation = replica.generation if replica else 0
            store.commit([stage(store, chunk, generation + 1)])
            assert store.read("d", ARRAY, chunk)[1] == content(chunk, generation + 1)
        store.close()
