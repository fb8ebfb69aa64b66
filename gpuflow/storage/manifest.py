"""What a node holds, and what it is about to change: one SQLite file in WAL mode.

Several worker processes of a node share it. Every change is one transaction; a chunk has at most one intent at a time."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuflow.errors import StoreError
from gpuflow.storage.record import DatasetRecord

FORMAT = 1
_BUSY_SECONDS = 60.0  # a writer holds the lock for one transaction: milliseconds, or the fsync of a slow disk

REPLICA_DTYPE = np.dtype(
    [("chunk", "<u4"), ("generation", "<u4"), ("nbytes", "<u8"), ("digest", "V16"), ("recipe", "V16"), ("inputs", "V16")]
)
"""One row a replica; `digest` of the stored bytes, `recipe` that made them, `inputs`: digest of what it was made from."""

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE dataset (name TEXT PRIMARY KEY, version INTEGER NOT NULL, record TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE array (id INTEGER PRIMARY KEY, dataset TEXT NOT NULL, path TEXT NOT NULL, UNIQUE (dataset, path));
CREATE TABLE replica (
    array INTEGER NOT NULL, chunk INTEGER NOT NULL, generation INTEGER NOT NULL, nbytes INTEGER NOT NULL,
    digest BLOB NOT NULL, recipe BLOB NOT NULL, inputs BLOB NOT NULL, seq INTEGER NOT NULL,
    PRIMARY KEY (array, chunk)) WITHOUT ROWID;
CREATE INDEX replica_seq ON replica (seq);
CREATE TABLE intent (
    array INTEGER NOT NULL, chunk INTEGER NOT NULL, generation INTEGER NOT NULL, nbytes INTEGER NOT NULL,
    digest BLOB NOT NULL, recipe BLOB NOT NULL, inputs BLOB NOT NULL, before BLOB, writer TEXT NOT NULL,
    PRIMARY KEY (array, chunk)) WITHOUT ROWID;
INSERT INTO meta VALUES ('format', 1), ('seq', 0);
"""


@dataclass(frozen=True, slots=True)
class Replica:
    """A chunk as a node holds it (or is about to). digest, recipe, inputs: 16 bytes each; generation counts from 1."""

    dataset: str
    array: str
    chunk: int
    generation: int
    nbytes: int
    digest: bytes
    recipe: bytes
    inputs: bytes


@dataclass(frozen=True, slots=True)
class Intent:
    """A commit that has been announced and not finished. before: digest of the file it replaces, None where there was none."""

    replica: Replica
    before: bytes | None
    writer: str


class Manifest:
    """Open with `Manifest(path)`. Thread-safe: one connection behind a lock."""

    def __init__(self, path: Path, *, create: bool = True) -> None:
        if not create and not path.exists():
            raise StoreError(str(path.parent), "holds no gpuflow store", "ingest something first, or give the right root")
        self._path, self._lock, self._array_ids = path, threading.RLock(), dict[tuple[str, str], int]()
        try:
            self._connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=FULL")
            with self._transaction():
                if not self._rows("SELECT 1 FROM sqlite_master WHERE name = 'meta'"):
                    for statement in _SCHEMA.split(";\n"):
                        self._connection.execute(statement)
            (found,) = self._rows("SELECT value FROM meta WHERE key = 'format'")[0]
        except sqlite3.Error as error:
            raise self._store_error(error) from error
        if found > FORMAT:
            raise StoreError(str(path.parent), f"manifest format {found} is newer than this gpuflow ({FORMAT})", "update gpuflow")

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    # -- datasets -------------------------------------------------------------------------------------------------------------

    def records(self) -> list[DatasetRecord]:
        """Every dataset this node knows of, by name."""
        return [DatasetRecord.from_json(text) for (text,) in self._rows("SELECT record FROM dataset ORDER BY name")]

    def record(self, name: str) -> DatasetRecord | None:
        rows = self._rows("SELECT record FROM dataset WHERE name = ?", name)
        return DatasetRecord.from_json(rows[0][0]) if rows else None

    def put_record(self, record: DatasetRecord) -> bool:
        """Keep `record` unless the node has that version or a newer one; whether it was kept."""
        with self._transaction():
            rows = self._rows("SELECT version FROM dataset WHERE name = ?", record.name)
            if rows and rows[0][0] >= record.version:
                return False
            self._connection.execute("REPLACE INTO dataset VALUES (?, ?, ?)", (record.name, record.version, record.to_json()))
            return True

    # -- replicas -------------------------------------------------------------------------------------------------------------

    def replica(self, dataset: str, array: str, chunk: int) -> Replica | None:
        rows = self._rows(
            "SELECT generation, nbytes, digest, recipe, inputs FROM replica WHERE array = ? AND chunk = ?",
            self._array_id(dataset, array),
            chunk,
        )
        return Replica(dataset, array, chunk, *rows[0]) if rows else None

    def replicas(self, dataset: str, array: str) -> NDArray[Any]:
        """All replicas of an array on this node: REPLICA_DTYPE, ordered by chunk."""
        rows = self._rows(
            "SELECT chunk, generation, nbytes, digest, recipe, inputs FROM replica WHERE array = ? ORDER BY chunk",
            self._array_id(dataset, array),
        )
        return np.array(rows, dtype=REPLICA_DTYPE)

    def changes(self, since: int) -> tuple[int, dict[tuple[str, str], tuple[NDArray[np.uint32], NDArray[np.uint32]]]]:
        """(newest sequence number, {(dataset, array): (chunks, generations)}) of the replicas committed after `since`."""
        with self._lock:
            self._connection.execute("BEGIN")
            try:
                (newest,) = self._rows("SELECT value FROM meta WHERE key = 'seq'")[0]
                arrays = self._rows("SELECT id, dataset, path FROM array")
                rows = self._rows("SELECT array, chunk, generation FROM replica WHERE seq > ? ORDER BY array, chunk", since)
            finally:
                self._connection.execute("COMMIT")
        table = np.array(rows, dtype=np.uint32).reshape(-1, 3)
        found = {}
        for number, dataset, path in arrays:
            part = table[table[:, 0] == number]
            if len(part):
                found[dataset, path] = (np.ascontiguousarray(part[:, 1]), np.ascontiguousarray(part[:, 2]))
        return newest, found

    def mark_damaged(self, replica: Replica) -> None:
        """Its bytes are not those committed: no recipe matches it from now on, so that what made it makes it again."""
        with self._transaction():
            self._connection.execute(
                "UPDATE replica SET recipe = ? WHERE array = ? AND chunk = ? AND generation = ?",
                (bytes(16), self._array_id(replica.dataset, replica.array), replica.chunk, replica.generation),
            )

    # -- commits --------------------------------------------------------------------------------------------------------------

    def announce(self, commits: Sequence[tuple[Replica, int]], writer: str) -> list[tuple[Replica, int, int]]:
        """Write an intent for each (replica, generation that it replaces), in one transaction.

        Returns those that cannot go ahead, with the generation found, and then writes none: the chunk is at another generation, or
        another intent stands on it."""
        with self._transaction():
            blocked, rows = [], []
            for replica, replaces in commits:
                key = (self._array_id(replica.dataset, replica.array, create=True), replica.chunk)
                busy = self._rows("SELECT 1 FROM intent WHERE array = ? AND chunk = ?", *key)
                current = self._rows("SELECT generation, digest FROM replica WHERE array = ? AND chunk = ?", *key)
                found, before = current[0] if current else (0, None)
                if busy or found != replaces:
                    blocked.append((replica, replaces, found))
                fields = (replica.generation, replica.nbytes, replica.digest, replica.recipe, replica.inputs)
                rows.append((*key, *fields, before, writer))
            if not blocked:
                self._connection.executemany("INSERT INTO intent VALUES (?,?,?,?,?,?,?,?,?)", rows)
            return blocked

    def finish(self, replicas: Sequence[Replica]) -> None:
        """The files of these announced replicas are in place: write their rows, end their intents."""
        with self._transaction():
            (seq,) = self._connection.execute(
                "UPDATE meta SET value = value + ? WHERE key = 'seq' RETURNING value", (len(replicas),)
            ).fetchone()
            rows = [
                (self._array_id(r.dataset, r.array), r.chunk, r.generation, r.nbytes, r.digest, r.recipe, r.inputs, seq - i)
                for i, r in enumerate(reversed(replicas))
            ]
            self._connection.executemany("REPLACE INTO replica VALUES (?,?,?,?,?,?,?,?)", rows)
            self._connection.executemany("DELETE FROM intent WHERE array = ? AND chunk = ?", [row[:2] for row in rows])

    def withdraw(self, replicas: Iterable[Replica]) -> None:
        """These announced replicas did not come about."""
        with self._transaction():
            keys = [(self._array_id(r.dataset, r.array), r.chunk) for r in replicas]
            self._connection.executemany("DELETE FROM intent WHERE array = ? AND chunk = ?", keys)

    def intents(self, writer: str | None = None) -> list[Intent]:
        """Unfinished commits, of one writer or of all."""
        rows = self._rows(
            "SELECT dataset, path, chunk, generation, nbytes, digest, recipe, inputs, before, writer "
            "FROM intent JOIN array ON array.id = intent.array WHERE ?1 IS NULL OR writer = ?1",
            writer,
        )
        return [Intent(Replica(*row[:8]), row[8], row[9]) for row in rows]

    def has_intent(self, dataset: str, array: str, chunk: int) -> bool:
        """Whether a commit of this chunk is under way."""
        return bool(self._rows("SELECT 1 FROM intent WHERE array = ? AND chunk = ?", self._array_id(dataset, array), chunk))

    # -- SQLite ---------------------------------------------------------------------------------------------------------------

    def _rows(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        with self._lock:
            try:
                return self._connection.execute(statement, parameters).fetchall()
            except sqlite3.Error as error:
                raise self._store_error(error) from error

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """A write transaction; nests into the one that is open."""
        with self._lock:
            if self._connection.in_transaction:
                yield
                return
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                yield
                self._connection.execute("COMMIT")
            except BaseException as error:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                self._array_ids.clear()
                if isinstance(error, sqlite3.Error):
                    raise self._store_error(error) from error
                raise

    def _array_id(self, dataset: str, array: str, create: bool = False) -> int:
        """The array's number in this file; -1, which no row has, when it is not known and not to be created."""
        with self._lock:
            if (dataset, array) not in self._array_ids:
                if create:
                    self._connection.execute("INSERT OR IGNORE INTO array (dataset, path) VALUES (?, ?)", (dataset, array))
                rows = self._rows("SELECT id FROM array WHERE dataset = ? AND path = ?", dataset, array)
                if not rows:
                    return -1
                self._array_ids[dataset, array] = int(rows[0][0])
            return self._array_ids[dataset, array]

    def _store_error(self, error: sqlite3.Error) -> StoreError:
        hint = {
            "SQLITE_FULL": "free some space and run again: what is committed is kept",
            "SQLITE_READONLY": "choose another root or mend its permissions",
            "SQLITE_CANTOPEN": "choose another root or mend its permissions",
            "SQLITE_NOTADB": "the file is damaged; move it away and ingest again",
            "SQLITE_CORRUPT": "the file is damaged; move it away and ingest again",
        }.get(getattr(error, "sqlite_errorname", ""), "")
        return StoreError(str(self._path.parent), f"manifest: {error}", hint)
