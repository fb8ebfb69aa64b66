"""Rows, intents and records, with several processes at one file."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpuflow.errors import NotFound, StoreError
from gpuflow.storage.manifest import _SCHEMA, FORMAT, REPLICA_DTYPE, UNKNOWN, Manifest, Replica
from gpuflow.storage.record import DatasetRecord
from tests.storage.stores import ARRAY, commit_rows, new_record, new_replica


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return Manifest(tmp_path / "manifest.sqlite")


def _commit(manifest: Manifest, *replicas: Replica) -> None:
    assert manifest.announce([(replica, replica.generation - 1) for replica in replicas], "w") == []
    assert manifest.finish(replicas) == []


def _sequence(manifest: Manifest) -> list[int]:
    return [row[0] for row in manifest._rows("SELECT seq FROM replica ORDER BY seq")]


def test_a_commit_is_announced_and_finished(manifest: Manifest) -> None:
    replica = new_replica(3, 1)
    assert manifest.announce([(replica, 0)], "w") == []
    assert manifest.replica("d", ARRAY, 3) is None
    assert manifest.has_intent("d", ARRAY, 3)
    (intent,) = manifest.intents()
    assert (intent.replica, intent.before, intent.writer) == (replica, None, "w")
    assert manifest.intents("w") == [intent]
    assert manifest.intents("v") == []
    manifest.finish([replica])
    assert manifest.replica("d", ARRAY, 3) == replica
    assert not manifest.has_intent("d", ARRAY, 3)
    following = new_replica(3, 2)
    manifest.announce([(following, 1)], "w")
    assert manifest.intents()[0].before == replica.digest
    manifest.close()
    manifest.close()


def test_withdrawing_leaves_the_old_row(manifest: Manifest) -> None:
    _commit(manifest, new_replica(0, 1))
    manifest.announce([(new_replica(0, 2), 1), (new_replica(1, 1), 0)], "w")
    manifest.withdraw([new_replica(0, 2), new_replica(1, 1)])
    assert manifest.intents() == []
    assert manifest.replica("d", ARRAY, 0) == new_replica(0, 1)
    assert manifest.replica("d", ARRAY, 1) is None


@pytest.mark.parametrize(("replaces", "found"), [(0, 1), (2, 1)])
def test_another_generation_blocks_the_whole_group(manifest: Manifest, replaces: int, found: int) -> None:
    _commit(manifest, new_replica(0, 1))
    stale = new_replica(0, replaces + 1)
    assert manifest.announce([(new_replica(1, 1), 0), (stale, replaces)], "w") == [(stale, replaces, found)]
    assert manifest.intents() == []


def test_another_intent_blocks(manifest: Manifest) -> None:
    first, second = new_replica(0, 1), replace(new_replica(0, 1), recipe=b"r" * 16)
    manifest.announce([(first, 0)], "w")
    assert manifest.announce([(second, 0)], "v") == [(second, 0, 0)]
    assert [intent.writer for intent in manifest.intents()] == ["w"]


def test_a_chunk_twice_in_a_group_is_refused_whole(manifest: Manifest) -> None:
    with pytest.raises(StoreError, match="UNIQUE"):
        manifest.announce([(new_replica(0, 1), 0), (new_replica(0, 1), 0)], "w")
    assert manifest.intents() == []
    _commit(manifest, new_replica(0, 1))


def test_a_group_may_be_large(manifest: Manifest) -> None:
    """SQLite takes 32766 parameters at once unless built otherwise; chunks of fill value have no bytes that would end a group."""
    manifest._connection.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, 100)
    _commit(manifest, *(new_replica(chunk, 1, b"") for chunk in range(200)))
    assert manifest.changes(0)[0] == len(manifest.replicas("d", ARRAY)) == 200


def test_who_settles_late_changes_nothing(manifest: Manifest) -> None:
    """Two processes settle the same commit, and a third has committed in between."""
    _commit(manifest, new_replica(0, 1))
    manifest.finish([new_replica(0, 1)])
    _commit(manifest, new_replica(0, 2))
    newest, _ = manifest.changes(0)
    manifest.finish([new_replica(0, 1)])
    assert manifest.replica("d", ARRAY, 0) == new_replica(0, 2)
    assert manifest.changes(newest) == (newest, {})
    manifest.announce([(new_replica(0, 3), 2)], "w")
    manifest.withdraw([new_replica(0, 2)])
    assert manifest.has_intent("d", ARRAY, 0)
    manifest.finish([new_replica(5, 1, name="nobody knows it")])
    assert manifest._rows("SELECT count(*) FROM replica") == [(1,)]


def test_changes_are_complete(manifest: Manifest) -> None:
    assert manifest.changes(0) == (0, {})
    _commit(manifest, new_replica(4, 1), new_replica(0, 1))
    _commit(manifest, new_replica(2, 1, name="e"))
    first, found = manifest.changes(0)
    assert {name: [column.tolist() for column in columns] for name, columns in found.items()} == {
        ("d", ARRAY): [[0, 4], [1, 1]],
        ("e", ARRAY): [[2], [1]],
    }
    _commit(manifest, new_replica(4, 2))
    second, found = manifest.changes(first)
    assert second == first + 1 == 4
    assert [column.tolist() for column in found["d", ARRAY]] == [[4], [2]]
    assert all(column.dtype == np.uint32 for column in found["d", ARRAY])


def test_replicas_are_one_table(manifest: Manifest) -> None:
    _commit(manifest, new_replica(4, 1), new_replica(0, 1))
    table = manifest.replicas("d", ARRAY)
    assert table.dtype == REPLICA_DTYPE
    assert table["chunk"].tolist() == [0, 4]
    assert table["digest"][1].tobytes() == new_replica(4, 1).digest
    assert table["recipe"][1].tobytes() == new_replica(4, 1).recipe
    assert len(manifest.replicas("d", "none")) == 0
    assert manifest.replicas("d", "none").dtype == REPLICA_DTYPE


def test_a_damaged_replica_shows_no_recipe(manifest: Manifest) -> None:
    replica = new_replica(0, 1)
    _commit(manifest, replica)
    manifest.mark_damaged(new_replica(0, 2))  # another generation than the one that is here
    assert manifest.replica("d", ARRAY, 0) == replica
    manifest.mark_damaged(replica)
    assert manifest.replica("d", ARRAY, 0) == replace(replica, recipe=UNKNOWN)
    assert manifest.replicas("d", ARRAY)["recipe"][0].tobytes() == UNKNOWN
    manifest.mark_damaged(replica, False)
    assert manifest.replica("d", ARRAY, 0) == replica
    manifest.mark_damaged(replica)
    _commit(manifest, new_replica(0, 2))
    assert manifest.replica("d", ARRAY, 0) == new_replica(0, 2)


def test_two_processes_write_at_once(tmp_path: Path, processes: ProcessPoolExecutor) -> None:
    path = tmp_path / "manifest.sqlite"
    manifest = Manifest(path)
    count = 150
    futures = [processes.submit(commit_rows, path, range(first, 2 * count, 2), f"w{first}") for first in (0, 1)]
    seen: dict[int, int] = {}
    newest = 0
    ended = False
    while not ended:  # follow as the scheduler does: nothing may be passed over
        ended = all(future.done() for future in futures)
        newest, found = manifest.changes(newest)
        for chunk in found.get(("d", ARRAY), ([], []))[0]:
            seen[int(chunk)] = seen.get(int(chunk), 0) + 1
    for future in futures:
        future.result()
    assert seen == dict.fromkeys(range(2 * count), 1)
    assert _sequence(manifest) == list(range(1, 2 * count + 1))
    manifest.close()


# -- records ----------------------------------------------------------------------------------------------------------------------


def test_the_newer_record_wins(manifest: Manifest) -> None:
    assert manifest.record("d") is None
    assert manifest.version("d") is None
    assert manifest.put_record(new_record(version=2))
    assert not manifest.put_record(new_record(version=2, state="writing"))
    assert not manifest.put_record(new_record(version=1))
    assert manifest.record("d") == new_record(version=2)
    assert manifest.put_record(new_record(version=3, state="writing"))
    assert manifest.version("d") == (3, "writing")
    manifest.put_record(new_record("c"))
    assert [record.name for record in manifest.records()] == ["c", "d"]


def test_records_survive_json() -> None:
    record = replace(new_record(), transforms=({"declared": [1]},), statistics={"k": 1.5}, origin={"kind": "x"}, created="now")
    assert DatasetRecord.from_json(record.to_json()) == record
    assert record.next(state="removed").version == 2
    assert record.chunk_name(ARRAY, 5) == "d/a/b/c/5"
    with pytest.raises(NotFound, match=r"no array 'd/x'; there is: a/b"):
        record.array("x")


def test_a_tombstone_takes_the_rows(manifest: Manifest) -> None:
    manifest.put_record(new_record())
    _commit(manifest, new_replica(0, 1), new_replica(0, 1, name="e"))
    assert manifest.removed() == []
    assert manifest.put_record(new_record(version=2, state="removed"))
    assert manifest.removed() == ["d"]
    assert manifest.replica("d", ARRAY, 0) is None
    assert manifest._rows("SELECT dataset FROM array") == [("e",)]
    assert list(manifest.changes(0)[1]) == [("e", ARRAY)]
    assert not manifest.put_record(new_record(version=1))
    with pytest.raises(NotFound, match="removed meanwhile"):
        manifest.announce([(new_replica(0, 1), 0)], "w")
    manifest.put_record(new_record(version=3))
    _commit(manifest, new_replica(0, 1))
    newest, found = manifest.changes(5)  # two commits, and records that were published, removed and published
    assert (newest, list(found)) == (6, [("d", ARRAY)])


def test_a_commit_that_a_tombstone_overtakes_gets_no_row(manifest: Manifest) -> None:
    manifest.put_record(new_record())
    here, there = new_replica(0, 1), new_replica(0, 1, name="e")
    manifest.announce([(here, 0), (there, 0)], "w")
    manifest.put_record(new_record(version=2, state="removed"))
    assert manifest.removed() == []
    assert len(manifest.intents()) == 2
    assert manifest.finish([here, there]) == [here]
    assert manifest.replica("d", ARRAY, 0) is None
    assert manifest.replica("e", ARRAY, 0) == there
    assert manifest.intents() == []
    assert manifest.removed() == ["d"]


# -- the file ---------------------------------------------------------------------------------------------------------------------


def test_a_manifest_of_the_future_is_refused(manifest: Manifest, tmp_path: Path) -> None:
    manifest._connection.execute("UPDATE meta SET value = 4 WHERE key = 'format'")
    manifest.close()
    with pytest.raises(StoreError, match=r"manifest format 4 is newer than this gpuflow \(3\); update gpuflow"):
        Manifest(tmp_path / "manifest.sqlite")


def test_a_manifest_of_the_past_is_upgraded(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "manifest.sqlite") as old:
        old.executescript(_SCHEMA)
        old.execute("INSERT INTO array (dataset, path) VALUES ('d', ?)", (ARRAY,))
        old.execute("INSERT INTO dataset VALUES ('d', 1, 'ready', ?)", (new_record().to_json(),))
        intent = "INSERT INTO intent VALUES (1, 1, 7, 9, ?, ?, ?, NULL, 'w')"
        old.execute(intent, (b"d" * 16, b"r" * 16, b"i" * 16))
        old.execute("INSERT INTO replica VALUES (1, 0, 7, 9, ?, ?, ?, 1, 0)", (b"d" * 16, b"r" * 16, b"i" * 16))
    old.close()
    for _ in range(2):
        manifest = Manifest(tmp_path / "manifest.sqlite")
        assert manifest.replica("d", ARRAY, 0) == Replica("d", ARRAY, 0, 7, 9, b"d" * 16, b"r" * 16, b"i" * 16)
        assert manifest.query("SELECT value FROM meta WHERE key = 'format'") == [(FORMAT,)]
        assert manifest.records() == [new_record()]
        assert [intent.sound for intent in manifest.intents()] == [True]
        assert manifest.changes(0)[1]["d", ARRAY][1].tolist() == [7]
        assert manifest.query("SELECT * FROM snapshot") == manifest.query("SELECT * FROM kept") == []
        manifest.close()


@pytest.mark.parametrize("damage", ["garbage", "middle", "no format", "no tables"])
def test_a_damaged_file_is_a_store_error_with_a_remedy(manifest: Manifest, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "manifest.sqlite"
    _commit(manifest, *(new_replica(chunk, 1) for chunk in range(2000)))
    if damage == "no format":
        manifest._connection.execute("DELETE FROM meta WHERE key = 'format'")
    manifest.close()
    data = path.read_bytes()
    if damage == "garbage":
        path.write_bytes(b"this is no database".ljust(5000, b"."))
    if damage == "middle":
        path.write_bytes(data[:4096] + b"\xa5" * (len(data) - 4096))
    if damage == "no tables":
        path.unlink()
        with sqlite3.connect(path) as other:
            other.execute("CREATE TABLE meta (key, value)")
        other.close()
    with pytest.raises(StoreError, match="the file is damaged; `gpuflow doctor --rebuild` makes it anew"):
        Manifest(path).changes(0)


def test_no_manifest_is_made_where_none_should_be(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds no gpuflow store; ingest something first"):
        Manifest(tmp_path / "manifest.sqlite", create=False)
    assert list(tmp_path.iterdir()) == []


def test_a_new_file_that_another_process_holds_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite itself gives up at once when it is to enter WAL mode: 7 of 400 opens, with four processes at a new file."""
    refusals = [1, 2, 3]

    class Busy(sqlite3.Connection):
        def execute(self, statement: str, *args: Any) -> sqlite3.Cursor:
            if "journal_mode" in statement and refusals:
                refusals.pop()
                error = sqlite3.OperationalError("database is locked")
                error.sqlite_errorcode, error.sqlite_errorname = sqlite3.SQLITE_BUSY, "SQLITE_BUSY"
                raise error
            return super().execute(statement, *args)

    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=Busy))
    Manifest(tmp_path / "manifest.sqlite").close()
    assert refusals == []


def test_a_failed_transaction_leaves_nothing(manifest: Manifest) -> None:
    def fail() -> None:
        with manifest.transaction():
            manifest.put_record(new_record())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert manifest.records() == []
    assert manifest.put_record(new_record())


@pytest.mark.parametrize("text", ["{", "[]", '{"transforms": []}', '{"name": "d"}'])
def test_a_record_that_cannot_be_read_is_a_store_error_with_a_remedy(manifest: Manifest, tmp_path: Path, text: str) -> None:
    manifest.put_record(new_record())
    manifest._rows("UPDATE dataset SET record = ?", text)
    for read in (manifest.records, partial(manifest.record, "d")):
        with pytest.raises(StoreError, match="record cannot be read") as raised:
            read()
        assert str(tmp_path) in str(raised.value)
        assert "doctor" in str(raised.value)


# -- seals ------------------------------------------------------------------------------------------------------------------------

_CHANGED = {
    "array": 9,
    "chunk": 5,
    "generation": 2,
    "nbytes": 99,
    "digest": b"x" * 16,
    "recipe": b"x" * 16,
    "inputs": b"x" * 15,
    "seq": 7,
    "damaged": 1,
    "seal": 0,
}


@pytest.mark.parametrize("value", [None, "text", -1, 1 << 40], ids=str)
@pytest.mark.parametrize("column", _CHANGED)
def test_a_replica_whose_row_changed_is_not_here(manifest: Manifest, column: str, value: object) -> None:
    """Whichever way it is read; a commit over it goes ahead, and then it is here again."""
    _commit(manifest, new_replica(0, 1), new_replica(1, 1))
    new = _CHANGED[column] if value is None else value
    manifest._rows(f"UPDATE replica SET {column} = ? WHERE chunk = 1", new)
    assert manifest.replica("d", ARRAY, 1) is None
    assert list(manifest.replicas_of("d", ARRAY, [0, 1])) == [0]
    assert manifest.replicas("d", ARRAY)["chunk"].tolist() == [0]
    assert manifest.changes(0)[1]["d", ARRAY][0].tolist() == [0]
    assert manifest.is_broken("d", ARRAY, 1) == (column not in ("array", "chunk"))
    assert not manifest.is_broken("d", ARRAY, 0)
    manifest.mark_damaged(new_replica(1, 1))
    assert manifest.replica("d", ARRAY, 1) is None, "not sealed anew"
    _commit(manifest, new_replica(1, 1))
    assert manifest.replica("d", ARRAY, 1) == new_replica(1, 1)
    assert manifest.replicas("d", ARRAY)["chunk"].tolist() == [0, 1]


def test_a_row_under_another_name_is_not_here(manifest: Manifest) -> None:
    _commit(manifest, new_replica(0, 1))
    manifest._rows("UPDATE array SET dataset = 'e'")
    assert manifest.replica("e", ARRAY, 0) is None
    assert len(manifest.replicas("e", ARRAY)) == 0
    assert manifest.changes(0)[1] == {}


def test_a_commit_whose_intent_changed_is_not_sound(manifest: Manifest) -> None:
    manifest.announce([(new_replica(0, 1), 0), (new_replica(1, 1), 0)], "w")
    manifest._rows("UPDATE intent SET recipe = zeroblob(16) WHERE chunk = 1")
    intents = {intent.replica.chunk: intent for intent in manifest.intents()}
    assert [intents[chunk].sound for chunk in (0, 1)] == [True, False]
    manifest.withdraw([intents[1].replica])
    assert not manifest.has_intent("d", ARRAY, 1)


@pytest.mark.parametrize(
    "change", ["name = 'e'", "version = 2", "state = 'writing'", "record = replace(record, 'ready', 'readx')"]
)
def test_a_record_whose_row_changed_is_a_store_error(manifest: Manifest, change: str) -> None:
    manifest.put_record(new_record())
    manifest._rows(f"UPDATE dataset SET {change}")
    with pytest.raises(StoreError, match=r"is not as it was sealed.*doctor --rebuild"):
        manifest.records()


@pytest.mark.parametrize("key", ["seq", "seal"])
def test_a_changed_number_of_commits_is_a_store_error(manifest: Manifest, key: str) -> None:
    _commit(manifest, new_replica(0, 1))
    manifest._rows("UPDATE meta SET value = 0 WHERE key = ?", key)
    for call in (partial(manifest.changes, 0), partial(_commit, manifest, new_replica(1, 1))):
        with pytest.raises(StoreError, match=r"number of its commits is not as it was sealed.*doctor --rebuild"):
            call()
