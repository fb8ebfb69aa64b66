"""What a node holds, and what it is about to change: one SQLite file in WAL mode.

Several worker processes of a node share it. Every change is one transaction; a chunk has at most one intent at a time. Every row has a
seal (seals.py). A replica whose seal is broken is not here: nothing of it can be believed, and it is made or fetched anew like a lost one.
A commit whose intent is broken never happened. Other rows are few, and without one of them nothing is known: a StoreError."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuflow.errors import NotFound, StoreError
from gpuflow.storage import news, seals
from gpuflow.storage.record import DatasetRecord

FORMAT = 3
_BUSY_SECONDS = 60.0  # a writer holds the lock for one transaction: milliseconds, or the fsync of a slow disk
_RETRY_SECONDS = 0.005
_ROWS_AT_ONCE = 256
_DAMAGED = "the file is damaged; `gpuflow doctor --rebuild` makes it anew from the chunks"

UNKNOWN = bytes(16)
"""The recipe that a damaged replica shows: none that is wanted equals it, so that the chunk is made anew."""

REPLICA_DTYPE = np.dtype(
    [("chunk", "<u4"), ("generation", "<u4"), ("nbytes", "<u8"), ("digest", "V16"), ("recipe", "V16"), ("inputs", "V16")]
)
"""One row a replica; `digest` of the stored bytes, `recipe` that made them, `inputs`: digest of what it was made from."""

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE dataset (
    name TEXT PRIMARY KEY, version INTEGER NOT NULL, state TEXT NOT NULL, record TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE array (id INTEGER PRIMARY KEY AUTOINCREMENT, dataset TEXT NOT NULL, path TEXT NOT NULL, UNIQUE (dataset, path));
CREATE TABLE replica (
    array INTEGER NOT NULL, chunk INTEGER NOT NULL, generation INTEGER NOT NULL, nbytes INTEGER NOT NULL,
    digest BLOB NOT NULL, recipe BLOB NOT NULL, inputs BLOB NOT NULL, seq INTEGER NOT NULL, damaged INTEGER NOT NULL,
    PRIMARY KEY (array, chunk)) WITHOUT ROWID;
CREATE INDEX replica_seq ON replica (seq, generation);
CREATE TABLE intent (
    array INTEGER NOT NULL, chunk INTEGER NOT NULL, generation INTEGER NOT NULL, nbytes INTEGER NOT NULL,
    digest BLOB NOT NULL, recipe BLOB NOT NULL, inputs BLOB NOT NULL, before BLOB, writer TEXT NOT NULL,
    PRIMARY KEY (array, chunk)) WITHOUT ROWID;
INSERT INTO meta VALUES ('format', 1), ('seq', 0);
"""

_UPGRADES = {
    1: """
CREATE TABLE snapshot (
    id TEXT PRIMARY KEY, dataset TEXT NOT NULL, tag TEXT NOT NULL, version INTEGER NOT NULL, seal INTEGER NOT NULL,
    UNIQUE (dataset, tag)) WITHOUT ROWID;
CREATE TABLE kept (
    snapshot TEXT NOT NULL, array TEXT NOT NULL, chunk INTEGER NOT NULL, generation INTEGER NOT NULL, nbytes INTEGER NOT NULL,
    digest BLOB NOT NULL, recipe BLOB NOT NULL, inputs BLOB NOT NULL, seal INTEGER NOT NULL,
    PRIMARY KEY (snapshot, array, chunk)) WITHOUT ROWID;
ALTER TABLE dataset ADD COLUMN seal INTEGER NOT NULL DEFAULT 0;
ALTER TABLE replica ADD COLUMN seal INTEGER NOT NULL DEFAULT 0;
ALTER TABLE intent ADD COLUMN seal INTEGER NOT NULL DEFAULT 0;
UPDATE dataset SET seal = seal_of_names(name, version, state, record);
UPDATE replica SET seal = (SELECT seal_of(seal_of_names(dataset, path), chunk, generation, nbytes, seq, damaged, digest, recipe, inputs)
    FROM array WHERE id = replica.array);
UPDATE intent SET seal = (SELECT seal_of(
    seal_of_names(dataset, path, writer), chunk, generation, nbytes, 0, 0, digest, recipe, inputs)
    FROM array WHERE id = intent.array);
INSERT INTO meta SELECT 'seal', seal_of_names('seq', value) FROM meta WHERE key = 'seq';
""",
    2: news.TABLES,
}
"""What makes the following format of each; a new file goes through all of them. snapshot, kept: see snapshots.py; moment, news: news.py."""

_SEALED = f"{seals.COLUMNS}, seal"


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
    """A commit that has been announced and not finished. before: digest of the file it replaces, None where there was none.

    Nothing is decided by `before`, and it is not sealed. sound: whether the rest is as it was announced; else it only serves to withdraw
    it."""

    replica: Replica
    before: bytes | None
    writer: str
    sound: bool = True


class Manifest:
    """Open with `Manifest(path)`. Thread-safe: one connection behind a lock."""

    def __init__(self, path: Path, *, create: bool = True) -> None:
        if not create and not path.exists():
            raise StoreError(str(path.parent), "holds no gpuflow store", "ingest something first, or give the right root")
        self._path, self._lock, self._durable = path, threading.RLock(), True
        with self._sqlite_errors():
            self._connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        self._notes = news.Notes(self.query, self._connection.execute)
        try:
            seals.add_functions(self._connection)
            self._prepare()
        except BaseException:
            self._connection.close()
            raise

    def _prepare(self) -> None:
        with self._sqlite_errors():
            self._enter_wal()
            self._connection.execute("PRAGMA synchronous=FULL")
            with self.transaction():
                if not self._rows("SELECT 1 FROM sqlite_master WHERE name = 'meta'"):
                    self._execute_all(_SCHEMA)
                self._upgrade()

    def _upgrade(self) -> None:
        rows = self._rows("SELECT value FROM meta WHERE key = 'format'")
        if len(rows) != 1 or not isinstance(rows[0][0], int) or rows[0][0] < 1:
            raise StoreError(str(self._path.parent), "manifest: its format is not stated", _DAMAGED)
        if rows[0][0] > FORMAT:
            reason = f"manifest format {rows[0][0]} is newer than this gpuflow ({FORMAT})"
            raise StoreError(str(self._path.parent), reason, "update gpuflow")
        for number in range(rows[0][0], FORMAT):
            self._execute_all(_UPGRADES[number])
            self._connection.execute("UPDATE meta SET value = ? WHERE key = 'format'", (number + 1,))

    def _execute_all(self, statements: str) -> None:
        for statement in statements.split(";\n"):
            self._connection.execute(statement)

    def _enter_wal(self) -> None:
        """SQLite does not wait for its lock here, so that of several processes on a new file some are refused: wait ourselves."""
        deadline = time.monotonic() + _BUSY_SECONDS
        while True:
            try:
                self._connection.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(_RETRY_SECONDS)

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    # -- datasets -------------------------------------------------------------------------------------------------------------

    def records(self) -> list[DatasetRecord]:
        """Every dataset this node knows of, by name."""
        return [self._parsed(row) for row in self._rows("SELECT name, version, state, record, seal FROM dataset ORDER BY name")]

    def record(self, name: str) -> DatasetRecord | None:
        rows = self._rows("SELECT name, version, state, record, seal FROM dataset WHERE name = ?", name)
        return self._parsed(rows[0]) if rows else None

    def _parsed(self, row: tuple[Any, ...]) -> DatasetRecord:
        try:
            return sealed_record(*row)
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            reason = f"manifest: a dataset's record cannot be read ({error})"
            raise StoreError(str(self._path.parent), reason, _DAMAGED) from error

    def version(self, name: str) -> tuple[int, str] | None:
        """(version, state) of the record of that name."""
        rows = self._rows("SELECT version, state FROM dataset WHERE name = ?", name)
        return (rows[0][0], rows[0][1]) if rows else None

    def put_record(self, record: DatasetRecord) -> bool:
        """Keep `record` unless the node has that version or a newer one; whether it was kept.

        A record with state "removed" takes the dataset's replicas with it, in the same transaction. It stays, so that an older
        version that comes from another node cannot bring the dataset back. Announced commits stay too: see `finish`."""
        with self.transaction():
            known = self.version(record.name)
            if known is not None and known[0] >= record.version:
                return False
            self._tell(record)
            row = (record.name, record.version, record.state, record.to_json())
            self._connection.execute("REPLACE INTO dataset VALUES (?, ?, ?, ?, ?)", (*row, seals.seal_of_names(*row)))
            if record.state == "removed":
                arrays = "SELECT id FROM array WHERE dataset = ?"
                self._connection.execute(f"DELETE FROM replica WHERE array IN ({arrays})", (record.name,))
                used = "SELECT array FROM intent"
                self._connection.execute(f"DELETE FROM array WHERE dataset = ? AND id NOT IN ({used})", (record.name,))
            return True

    def _tell(self, record: DatasetRecord) -> None:
        """What the record changes of what others want to know is numbered like a commit (see news.py)."""
        before = self._sequence()
        if told := self._notes.recorded(before, self.record(record.name), record):
            self.set_sequence(before + told)

    def removed(self) -> list[str]:
        """Datasets that were removed and that no commit is under way in. Within a transaction that stays so."""
        busy = "SELECT 1 FROM intent JOIN array ON array.id = intent.array WHERE array.dataset = dataset.name"
        return [name for (name,) in self._rows(f"SELECT name FROM dataset WHERE state = 'removed' AND NOT EXISTS ({busy})")]

    # -- replicas -------------------------------------------------------------------------------------------------------------

    def replica(self, dataset: str, array: str, chunk: int) -> Replica | None:
        statement = (
            f"SELECT {_SEALED} FROM replica WHERE array = (SELECT id FROM array WHERE dataset = ? AND path = ?) AND chunk = ?"
        )
        names = seals.seal_of_names(dataset, array)
        for *row, seal in self._rows(statement, dataset, array, int(chunk)):
            if seals.seal_of(names, *row) == seal:
                return _replica(dataset, array, tuple(row))
        return None

    def replicas_of(self, dataset: str, array: str, chunks: Sequence[int]) -> dict[int, Replica]:
        """The replicas of those of `chunks` that are here."""
        if len(chunks) == 1:
            replica = self.replica(dataset, array, chunks[0])
            return {} if replica is None else {replica.chunk: replica}
        return {row[0]: _replica(dataset, array, row) for row in self._sound_rows(dataset, array, chunks)}

    def is_broken(self, dataset: str, array: str, chunk: int) -> bool:
        """Whether there is a row of this chunk that is not as it was sealed."""
        rows = self._rows("SELECT 1 FROM replica WHERE array = ? AND chunk = ?", self._array_id(dataset, array), chunk)
        return bool(rows) and self.replica(dataset, array, chunk) is None

    def broken(self, dataset: str, array: str) -> list[int]:
        """Chunks of an array whose row here is not as it was sealed."""
        number, names = self._array_id(dataset, array), seals.seal_of_names(dataset, array)
        statement = f"SELECT chunk FROM replica WHERE array = ? AND seal IS NOT seal_of(?, {seals.COLUMNS})"
        return [chunk for (chunk,) in self._rows(statement, number, names)]

    def _sound_rows(self, dataset: str, array: str, chunks: Sequence[int]) -> list[tuple[Any, ...]]:
        """seals.COLUMNS of those of `chunks` that are here."""
        number, names = self._array_id(dataset, array), seals.seal_of_names(dataset, array)
        if len(chunks) == 1:
            rows = self._rows(f"SELECT {_SEALED} FROM replica WHERE array = ? AND chunk = ?", number, int(chunks[0]))
        else:
            rows = self._at([(number, chunk) for chunk in chunks], f"SELECT {_SEALED} FROM replica")
        return [row[:-1] for row in rows if seals.seal_of(names, *row[:-1]) == row[-1]]

    def replicas(self, dataset: str, array: str) -> NDArray[Any]:
        """All replicas of an array on this node: REPLICA_DTYPE, ordered by chunk."""
        statement = f"SELECT array, {_SEALED} FROM replica WHERE array = ? ORDER BY chunk"
        with self._lock:
            tables = self._tables(statement, self._array_id(dataset, array))
            parts = [as_replicas(_sound(table, dataset, array)) for table in tables]
        return np.concatenate(parts) if parts else np.empty(0, REPLICA_DTYPE)

    def changes(self, since: int) -> tuple[int, dict[tuple[str, str], tuple[NDArray[np.uint32], NDArray[np.uint32]]]]:
        """(newest sequence number, {(dataset, array): (chunks, generations)}) of the replicas committed after `since`.

        A removed dataset has no rows to report: who keeps what is reported here must forget it when its record says so."""
        how = "" if since else "NOT INDEXED"  # all of them: as they lie
        with self.transaction("DEFERRED"):
            newest = self._sequence()
            arrays = {number: (dataset, path) for number, dataset, path in self._rows("SELECT id, dataset, path FROM array")}
            parts: dict[tuple[str, str], list[NDArray[np.uint32]]] = {}
            for table in self._tables(f"SELECT array, {_SEALED} FROM replica {how} WHERE seq > ?", since):
                for number in np.unique(table["array"]).tolist():
                    if number in arrays:
                        sound = _sound(table[table["array"] == number], *arrays[number])
                        rows = np.array([sound["chunk"], sound["generation"]], np.uint32)
                        parts.setdefault(arrays[number], []).append(rows)
        found = {}
        for name, several in parts.items():
            chunks, generations = np.concatenate(several, axis=1)
            order = np.argsort(chunks, kind="stable")
            if len(order):
                found[name] = (chunks[order], generations[order])
        return newest, found

    def _sequence(self) -> int:
        """The newest sequence number."""
        meta = dict(self._rows("SELECT key, value FROM meta"))
        if seals.seal_of_names("seq", meta.get("seq")) != meta.get("seal"):
            raise StoreError(str(self._path.parent), "manifest: the number of its commits is not as it was sealed", _DAMAGED)
        return int(meta["seq"])

    def set_sequence(self, newest: int) -> None:
        """Commits are numbered from the one after `newest`."""
        rows = [("seq", newest), ("seal", seals.seal_of_names("seq", newest))]
        with self.transaction():
            self._connection.executemany("REPLACE INTO meta VALUES (?, ?)", rows)

    def mark_damaged(self, replica: Replica, damaged: bool = True) -> None:
        """Its bytes are not those committed: it shows no recipe from now on, so that what made it makes it again. Or they are after
        all, and it shows its recipe again: what was applied in place must not be applied twice for a passing fault of the disk."""
        with self.transaction():
            number, names = self._array_id(replica.dataset, replica.array), seals.seal_of_names(replica.dataset, replica.array)
            for row in self._sound_rows(replica.dataset, replica.array, [replica.chunk]):
                chunk, generation, nbytes, seq, _, *rest = row
                if generation == replica.generation:
                    seal = seals.seal_of(names, chunk, generation, nbytes, seq, damaged, *rest)
                    self._connection.execute(
                        "UPDATE replica SET damaged = ?, seal = ? WHERE array = ? AND chunk = ?", (damaged, seal, number, chunk)
                    )

    def forget(self, dataset: str, array: str, generations: Mapping[int, int]) -> list[int]:
        """Delete the rows of chunks that are at the given generations and that no commit is under way of. Which they were."""
        with self.transaction():
            number = self._array_id(dataset, array)
            here = self.replicas_of(dataset, array, list(generations))
            busy = set(self._at([(number, chunk) for chunk in here], "SELECT array, chunk FROM intent"))
            gone = [c for c, replica in here.items() if replica.generation == generations[c] and (number, c) not in busy]
            self._at([(number, chunk) for chunk in gone], "DELETE FROM replica")
            return sorted(gone)

    # -- commits --------------------------------------------------------------------------------------------------------------

    def announce(
        self, commits: Sequence[tuple[Replica, int]], writer: str, *, durable: bool = True
    ) -> list[tuple[Replica, int, int]]:
        """Write an intent for each (replica, generation that it replaces), in one transaction.

        Returns those that cannot go ahead, with the generation found, and then writes none: the chunk is at another generation,
        or another intent stands on it. NotFound when the dataset was removed."""
        with self.transaction(durable=durable):
            for name in {replica.dataset for replica, _ in commits}:
                if self._is_removed(name):
                    raise NotFound("dataset", name, hint="it was removed meanwhile")
            blocked, rows = [], []
            keys = self._keys([replica for replica, _ in commits], create=True)
            names = {key[0]: seals.seal_of_names(r.dataset, r.array) for key, (r, _) in zip(keys, commits, strict=True)}
            here = self._at(keys, f"SELECT array, {_SEALED} FROM replica")
            sound = (row for row in here if seals.seal_of(names[row[0]], *row[1:-1]) == row[-1])
            current = {row[:2]: (row[2], row[6]) for row in sound}
            busy = set(self._at(keys, "SELECT array, chunk FROM intent"))
            for (replica, replaces), key in zip(commits, keys, strict=True):
                found, before = current.get(key, (0, None))
                if key in busy or found != replaces:
                    blocked.append((replica, replaces, found))
                fields = (replica.generation, replica.nbytes, replica.digest, replica.recipe, replica.inputs)
                rows.append((*key, *fields, before, writer, _intent_seal(replica, writer)))
            if not blocked:
                self._connection.executemany("INSERT INTO intent VALUES (?,?,?,?,?,?,?,?,?,?)", rows)
            return blocked

    def _at(self, keys: Sequence[tuple[int, int]], statement: str) -> list[tuple[Any, ...]]:
        """Run `statement` for the rows at these (array, chunk), once for each array; what it gives."""
        rows = []
        for array in {array for array, _ in keys}:
            chunks = [chunk for owner, chunk in keys if owner == array]
            each = "SELECT value FROM json_each(?)"  # one parameter: their number is limited
            rows += self._rows(f"{statement} WHERE array = ? AND chunk IN ({each})", array, json.dumps(chunks))
        return rows

    def finish(self, replicas: Sequence[Replica], *, durable: bool = True, run: str = "") -> list[Replica]:
        """The files of these announced replicas are in place: write their rows, end their intents. run: whose commits they are.

        Returns those whose dataset was removed meanwhile; they get no row. One whose intent has ended already is passed over."""
        with self.transaction(durable=durable):
            announced = self._end_intents(replicas)
            gone = {name for name in {replica.dataset for replica in announced} if self._is_removed(name)}
            kept = [replica for replica in announced if replica.dataset not in gone]
            before = self._sequence()
            self.set_sequence(before + len(kept))
            if kept:
                self._notes.committed(before, len(kept), run)
            rows = []
            for seq, (key, r) in enumerate(zip(self._keys(kept), kept, strict=True), before + 1):
                names = seals.seal_of_names(r.dataset, r.array)
                seal = seals.seal_of(names, r.chunk, r.generation, r.nbytes, seq, 0, r.digest, r.recipe, r.inputs)
                rows.append((*key, r.generation, r.nbytes, r.digest, r.recipe, r.inputs, seq, 0, seal))
            self._connection.executemany("REPLACE INTO replica VALUES (?,?,?,?,?,?,?,?,?,?)", rows)
            return [replica for replica in announced if replica.dataset in gone]

    def withdraw(self, replicas: Iterable[Replica]) -> None:
        """These announced replicas did not come about."""
        with self.transaction():
            self._end_intents(list(replicas))

    def _end_intents(self, replicas: Sequence[Replica]) -> list[Replica]:
        """Those whose intent was there: of two that settle the same commit, only the first finds it."""
        keys = self._keys(replicas)
        there = {row[:2]: row[2:] for row in self._at(keys, "SELECT array, chunk, generation, digest FROM intent")}
        ended = [
            (key, replica)
            for key, replica in zip(keys, replicas, strict=True)
            if there.get(key) == (replica.generation, replica.digest)
        ]
        self._at([key for key, _ in ended], "DELETE FROM intent")
        return [replica for _, replica in ended]

    def _keys(self, replicas: Sequence[Replica], create: bool = False) -> list[tuple[int, int]]:
        """(array's number, chunk) of each."""
        arrays = {(replica.dataset, replica.array) for replica in replicas}
        numbers = {array: self._array_id(*array, create=create) for array in arrays}
        return [(numbers[replica.dataset, replica.array], replica.chunk) for replica in replicas]

    def _is_removed(self, name: str) -> bool:
        return bool(self._rows("SELECT 1 FROM dataset WHERE name = ? AND state = 'removed'", name))

    def intents(self, writer: str | None = None) -> list[Intent]:
        """Unfinished commits, of one writer or of all."""
        rows = self._rows(
            "SELECT dataset, path, chunk, generation, nbytes, digest, recipe, inputs, before, writer, intent.seal "
            "FROM intent JOIN array ON array.id = intent.array WHERE ? IS NULL OR writer = ?",
            writer,
            writer,
        )
        found = []
        for *fields, before, by, seal in rows:
            replica = Replica(*fields)
            found.append(Intent(replica, before, by, _intent_seal(replica, by) == seal))
        return found

    def has_intent(self, dataset: str, array: str, chunk: int) -> bool:
        """Whether a commit of this chunk is under way."""
        return bool(self._rows("SELECT 1 FROM intent WHERE array = ? AND chunk = ?", self._array_id(dataset, array), chunk))

    def forget_array(self, dataset: str, array: str) -> bool:
        """An array that its dataset has no more. False, and nothing is done, while a commit of one of its chunks is under way."""
        with self.transaction():
            number = self._array_id(dataset, array)
            if self._rows("SELECT 1 FROM intent WHERE array = ? LIMIT 1", number):
                return False
            for statement in ("DELETE FROM replica WHERE array = ?", "DELETE FROM array WHERE id = ?"):
                self._connection.execute(statement, (number,))
            return True

    def totals(self, dataset: str, array: str) -> tuple[int, int]:
        """Chunks of an array here, and their encoded bytes, without a look at the seals: for display."""
        rows = self._rows("SELECT count(*), sum(nbytes) FROM replica WHERE array = ?", self._array_id(dataset, array))
        return int(rows[0][0]), int(rows[0][1] or 0)

    def generation_range(self, dataset: str, array: str) -> tuple[int, int]:
        """The smallest and the greatest generation of an array's chunks here, (0, 0) without one: a tenth of a second for 10^6 chunks."""
        rows = self._rows("SELECT min(generation), max(generation) FROM replica WHERE array = ?", self._array_id(dataset, array))
        return (int(rows[0][0]), int(rows[0][1])) if rows[0][0] is not None else (0, 0)

    # -- SQLite ---------------------------------------------------------------------------------------------------------------

    def query(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """For modules that have tables of their own in this file."""
        return self._rows(statement, *parameters)

    def _rows(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        with self._lock, self._sqlite_errors():
            return self._connection.execute(statement, parameters).fetchall()

    def _tables(self, statement: str, *parameters: Any) -> Iterator[NDArray[Any]]:
        """What `statement` gives, SEALED_DTYPE, some hundred rows at a time, which stay in the cache: a million of them at once takes
        twice as long and 400 MB. Holding the lock is for the caller."""
        with self._sqlite_errors():
            cursor = self._connection.execute(statement, parameters)
            while rows := cursor.fetchmany(_ROWS_AT_ONCE):
                yield seals.as_table(rows)

    @contextmanager
    def transaction(self, kind: str = "IMMEDIATE", *, durable: bool = True) -> Iterator[None]:
        """A transaction, for writing unless it is DEFERRED; nests into the one that is open. No other thread gets in between.

        Not durable: it survives the process, and after a power loss the manifest is whole but may lack it."""
        with self._lock, self._sqlite_errors():
            if self._connection.in_transaction:
                yield
                return
            if durable != self._durable:
                self._connection.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
                self._durable = durable
            self._connection.execute(f"BEGIN {kind}")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    self._connection.rollback()
                raise

    def _array_id(self, dataset: str, array: str, create: bool = False) -> int:
        """The array's number in this file; -1, which no row has, when it is not known and not to be created.

        Looked up each time: another process may remove the dataset. A number is never used again."""
        rows = self._rows("SELECT id FROM array WHERE dataset = ? AND path = ?", dataset, array)
        if create and not rows:  # within a transaction, so nobody is faster
            rows = self._rows("INSERT INTO array (dataset, path) VALUES (?, ?) RETURNING id", dataset, array)
        return int(rows[0][0]) if rows else -1

    @contextmanager
    def _sqlite_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self._store_error(error) from error
        except UnicodeDecodeError as error:  # of a name in the file, or in SQLite's own message about it
            raise StoreError(str(self._path.parent), f"manifest: {error}", _DAMAGED) from error

    def _store_error(self, error: sqlite3.Error) -> StoreError:
        hint = {
            "SQLITE_FULL": "free some space and run again: what is committed is kept",
            "SQLITE_READONLY": "choose another root or mend its permissions",
            "SQLITE_CANTOPEN": "choose another root or mend its permissions",
            "SQLITE_NOTADB": _DAMAGED,
            "SQLITE_CORRUPT": _DAMAGED,
        }.get("_".join(getattr(error, "sqlite_errorname", "").split("_")[:2]), "")
        return StoreError(str(self._path.parent), f"manifest: {error}", hint)


def _replica(dataset: str, array: str, row: tuple[Any, ...]) -> Replica:
    """From seals.COLUMNS."""
    chunk, generation, nbytes, _, damaged, checksum, recipe, inputs = row
    return Replica(dataset, array, chunk, generation, nbytes, checksum, UNKNOWN if damaged else recipe, inputs)


def as_replicas(table: NDArray[Any]) -> NDArray[Any]:
    """REPLICA_DTYPE of a table of seals.SEALED_DTYPE."""
    replicas = np.empty(len(table), REPLICA_DTYPE)
    for name in REPLICA_DTYPE.names or ():
        replicas[name] = table[name]
    replicas["recipe"][table["damaged"] != 0] = np.void(UNKNOWN)
    return replicas


def _sound(table: NDArray[Any], dataset: str, array: str) -> NDArray[Any]:
    sound = seals.are_sound(table, seals.seal_of_names(dataset, array))
    return table if sound.all() else table[sound]


def _intent_seal(replica: Replica, writer: str) -> int | None:
    names = seals.seal_of_names(replica.dataset, replica.array, writer)
    row = (replica.chunk, replica.generation, replica.nbytes, 0, 0, replica.digest, replica.recipe, replica.inputs)
    return seals.seal_of(names, *row)


def sealed_record(name: str, version: int, state: str, text: str, seal: int) -> DatasetRecord:
    """The record of a row of `dataset`. ValueError when the row is not as it was sealed."""
    if seals.seal_of_names(name, version, state, text) != seal:
        raise ValueError(f"the row of {name!r} is not as it was sealed")
    return DatasetRecord.from_json(text)
