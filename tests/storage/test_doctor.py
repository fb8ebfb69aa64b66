"""Every kind of harm is found and named with its remedy; a sound root has no findings, also while it is written to."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sqlite3
import subprocess
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from gpuflow.storage import machine, snapshots, spares
from gpuflow.storage.doctor import examine
from gpuflow.storage.manifest import Manifest
from gpuflow.storage.node import NodeStore
from gpuflow.storage.seals import add_functions
from tests.storage.stores import ARRAY, content, new_record, new_replica, new_store, stage


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A closed store: chunks 0 to 2 with files, chunk 3 of fill value, snapshot `s`."""
    store = new_store(tmp_path / "root")
    store.commit([stage(store, 3, 1, b"")])
    named = new_record(version=3)
    snapshots.take(store, new_record(version=2), "s", "id")
    store.put_record(type(named)(**{**vars_of(named), "snapshots": {"s": {"id": "id"}}}))
    store.close()
    return tmp_path / "root"


def vars_of(record: object) -> dict[str, object]:
    return {name: value for name, value in vars(record).items() if name != "metadata"}


def problems(root: Path, *, full: bool = False) -> dict[str, tuple[str, ...]]:
    """Serious findings; each has a remedy."""
    found = examine(root, full=full)
    assert all(item.remedy for item in found)
    return {item.problem: item.items for item in found if item.serious}


def test_a_sound_root(root: Path) -> None:
    before = sorted(path for path in root.rglob("*") if "sqlite-" not in path.name)
    assert examine(root, full=True) == []
    assert sorted(path for path in root.rglob("*") if "sqlite-" not in path.name) == before


def chunk(root: Path, number: int) -> Path:
    return root / "datasets" / "d" / ARRAY / "c" / str(number)


def _flip(root: Path) -> None:
    chunk(root, 1).write_bytes(content(1, 1)[::-1])


def _execute(root: Path, statement: str) -> None:
    connection = sqlite3.connect(root / "manifest.sqlite")
    add_functions(connection)
    connection.execute(statement)
    connection.commit()
    connection.close()


def _intent(root: Path) -> None:
    manifest = Manifest(root / "manifest.sqlite")
    manifest.announce([(new_replica(0, 2), 1)], "dead")
    manifest.close()


HARM: dict[str, tuple[Callable[[Path], object], dict[str, tuple[str, ...]]]] = {
    "missing file": (lambda root: chunk(root, 1).unlink(), {"chunks whose file is missing": ("d/a/b/c/1",)}),
    "wrong size": (
        lambda root: os.truncate(chunk(root, 1), 7),
        {
            "chunks whose file has another size than was committed": ("d/a/b/c/1",),
            "missing or damaged in a snapshot": ("snapshots/d/s/a/b/c/1",),
        },
    ),
    "other bytes": (
        _flip,
        {
            "chunks whose file has other bytes than were committed": ("d/a/b/c/1",),
            "missing or damaged in a snapshot": ("snapshots/d/s/a/b/c/1",),
        },
    ),
    "file without row": (
        lambda root: chunk(root, 5).write_bytes(b"x"),
        {"files that belong to no chunk of this node": ("datasets/d/a/b/c/5",)},
    ),
    "file of a fill value": (
        lambda root: chunk(root, 3).write_bytes(b"x"),
        {"files that belong to no chunk of this node": ("datasets/d/a/b/c/3",)},
    ),
    "folder of no dataset": (
        lambda root: (root / "datasets" / "e").mkdir(),
        {"no dataset of the manifest": ("datasets/e",)},
    ),
    "zarr.json missing": (
        lambda root: (root / "datasets/d/a/zarr.json").unlink(),
        {"missing, or not what the record says": ("datasets/d/a/zarr.json",)},
    ),
    "zarr.json changed": (
        lambda root: (root / "datasets/d/a/b/zarr.json").write_text("{}"),
        {"missing, or not what the record says": ("datasets/d/a/b/zarr.json",)},
    ),
    "file in staging": (
        lambda root: (root / "staging" / "file").write_bytes(b""),
        {"files in staging/ that no process made": ("file",)},
    ),
    "dead commit": (_intent, {"commits that were begun by processes that died": ("d: 1 chunks",)}),
    "snapshot spoiled": (
        lambda root: (root / "snapshots/d/s/a/b/c/0").unlink(),
        {"missing or damaged in a snapshot": ("snapshots/d/s/a/b/c/0",)},
    ),
    "snapshot without rows": (
        lambda root: (root / "snapshots/d/t").mkdir(),
        {"what is left of snapshots that were deleted or not finished": ("snapshots/d/t",)},
    ),
    "snapshot that no record names": (
        lambda root: _execute(root, "UPDATE snapshot SET id = 'other', seal = seal_of_names('other', dataset, tag, version)"),
        {"what is left of snapshots that were deleted or not finished": ("d, snapshot s",)},
    ),
    "row of a chunk": (
        lambda root: _execute(root, "UPDATE replica SET recipe = zeroblob(16) WHERE chunk = 1"),
        {"chunks whose row in the manifest is damaged": ("d/a/b, chunk 1",)},
    ),
    "row of a commit": (
        lambda root: (_intent(root), _execute(root, "UPDATE intent SET generation = 9"))[0],
        {
            "commits under way whose row in the manifest is damaged": ("d/a/b, chunk 0",),
            "commits that were begun by processes that died": ("d: 1 chunks",),
        },
    ),
    "row of a snapshot's chunk": (
        lambda root: _execute(root, "UPDATE kept SET generation = 9 WHERE chunk = 2"),
        {"chunks of snapshots whose row in the manifest is damaged": ("a/b, chunk 2",)},
    ),
    "row of a snapshot": (
        lambda root: _execute(root, "UPDATE snapshot SET version = 0"),
        {"snapshots whose row in the manifest is damaged": ("d, snapshot s",)},
    ),
    "name of a snapshot": (
        lambda root: _execute(root, "UPDATE snapshot SET tag = CAST(x'ff' AS TEXT)"),
        {"manifest.sqlite is damaged (user-defined function raised exception)": ()},
    ),
    "number of commits": (
        lambda root: _execute(root, "UPDATE meta SET value = 0 WHERE key = 'seq'"),
        {"manifest.sqlite is damaged (the number of its commits is not as it was sealed)": ()},
    ),
    "no node.json": (lambda root: (root / "node.json").unlink(), {"node.json is missing": ()}),
    "node.json damaged": (
        lambda root: (root / "node.json").write_text('{"node_id": 7}'),
        {"node.json is damaged (node_id is 7)": ()},
    ),
    "no manifest": (lambda root: (root / "manifest.sqlite").unlink(), {"manifest.sqlite is missing": ()}),
    "newer manifest": (
        lambda root: _execute(root, "UPDATE meta SET value = 99 WHERE key = 'format'"),
        {"manifest.sqlite has format 99, newer than this gpuflow (3)": ()},
    ),
    "no format": (
        lambda root: _execute(root, "DELETE FROM meta WHERE key = 'format'"),
        {"manifest.sqlite is damaged (its format is not stated)": ()},
    ),
    "no database": (
        lambda root: (root / "manifest.sqlite").write_bytes(b"no database" * 999),
        {"manifest.sqlite is damaged (file is not a database)": ()},
    ),
}


@pytest.mark.parametrize("name", HARM)
def test_harm_is_named(root: Path, name: str) -> None:
    harm, expected = HARM[name]
    harm(root)
    assert problems(root, full=True) == expected


def test_what_a_process_left(root: Path) -> None:
    (root / "staging" / "gone").mkdir()
    (root / "staging" / "gone" / "0").write_bytes(bytes(2048))
    (note,) = examine(root)
    assert (note.problem, note.items) == ("temporary files of processes that ended", ("staging/gone: 2.0 KiB",))
    assert not note.serious


def test_bytes_are_compared_only_in_full(root: Path) -> None:
    _flip(root)
    assert problems(root) == {}


def test_garbage_in_the_middle_of_the_manifest(root: Path) -> None:
    data = (root / "manifest.sqlite").read_bytes()
    (root / "manifest.sqlite").write_bytes(data[:4096] + b"\xa5" * (len(data) - 4096))
    (problem,) = problems(root)
    assert problem.startswith("manifest.sqlite is damaged (")


def test_a_record_that_cannot_be_read(root: Path) -> None:
    _execute(root, "UPDATE dataset SET record = '{'")
    (problem,) = problems(root)
    assert problem.startswith("manifest.sqlite is damaged (a record cannot be read: ")


def test_a_removed_dataset_that_is_still_there(root: Path) -> None:
    manifest = Manifest(root / "manifest.sqlite")
    manifest.put_record(new_record(version=9, state="removed"))
    manifest.close()
    assert problems(root) == {
        "what is left of datasets that were removed": ("d",),
        "what is left of snapshots that were deleted or not finished": ("d, snapshot s",),
    }


def test_what_is_settled_by_a_start_is_settled(root: Path) -> None:
    for name in ("dead commit", "snapshot without rows", "snapshot that no record names"):
        HARM[name][0](root)
    store = NodeStore(root)
    store.recover()
    snapshots.sweep_all(store)
    store.close()
    assert problems(root) == {}


def test_a_live_node_has_no_findings(root: Path) -> None:
    store, ended = NodeStore(root), threading.Event()

    def write() -> None:
        generation = 1
        while not ended.is_set():
            generation += 1
            store.commit([stage(store, 0, generation, content(0, generation) * (generation % 3 + 1))], durable=False)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(5):
            assert problems(root, full=True) == {}
    finally:
        ended.set()
        thread.join()
        store.close()


# -- the disk -----------------------------------------------------------------------------------------------------------------------


def test_little_room(small_disk: Path) -> None:
    new_store(small_disk / "root").close()
    (problem,) = problems(small_disk / "root")
    assert problem.endswith("iB are free")


def test_nothing_can_be_written(small_disk: Path) -> None:
    new_store(small_disk / "root").close()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    assert "nothing can be written (Read-only file system)" in problems(small_disk / "root", full=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="taking another user's part needs root")
def test_permissions(root: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        copied = Path(shutil.copytree(root, Path(folder) / "root"))
        for path in (Path(folder), copied, copied / "staging", *copied.glob("manifest.sqlite*")):
            shutil.chown(path, user=65534)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.setuid(65534)
            os.write(writing, repr([item.items for item in machine.check_permissions(copied)]).encode())
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert os.read(reading, 1000) == b"[('datasets', 'snapshots')]"
        os.close(reading)
        os.close(writing)


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Have one feature of the file system fail."""

    def fail(name: str) -> None:
        def refuse(*args: object, **kwargs: object) -> None:
            raise OSError(95, "Operation not supported")

        if name == "lock":
            take = fcntl.flock
            calls = iter(range(9))
            monkeypatch.setattr(fcntl, "flock", lambda *args: take(*args) if next(calls) < 3 else None)
        if name in ("link", "fsync"):
            monkeypatch.setattr(os, name, refuse)
        if name == "exchange":
            monkeypatch.setattr(machine, "exchange", lambda one, other: False)
        if name == "lease":
            monkeypatch.setattr(spares, "_is_alone", lambda descriptor: False)

    return fail


@pytest.mark.parametrize(
    ("feature", "problem", "serious"),
    [
        ("link", "no hard links: no snapshots, no `ingest --link`", True),
        ("fsync", "files cannot be written durably (fsync)", True),
        ("lock", "no file locks (flock): processes cannot tell who lives", True),
        ("exchange", "files cannot be exchanged: commits are slower", False),
        ("lease", "no write leases: commits write new files, which is slower", False),
    ],
)
def test_features(root: Path, failing: Callable[[str], None], feature: str, problem: str, serious: bool) -> None:
    failing(feature)
    found = {item.problem.split(" ([")[0]: item.serious for item in machine.check_features(root)}
    assert found[problem] == serious
    assert json.loads((root / "node.json").read_text())
    assert list((root / "staging").iterdir()) == []
