"""A node's root, checked without a cluster: manifest against files, what was left over, and what the disk can do.

Nothing is changed. A node may be running meanwhile: what looks wrong is looked at again, since a commit may have come in between."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from gpuflow.storage.disk import digest, read_file
from gpuflow.storage.findings import Finding, found
from gpuflow.storage.machine import check_features, check_permissions, check_room
from gpuflow.storage.manifest import FORMAT, sealed_record
from gpuflow.storage.node import EMPTY
from gpuflow.storage.record import DatasetRecord
from gpuflow.storage.seals import add_functions
from gpuflow.units import format_nbytes

REBUILD = "stop the node, then run `gpuflow doctor --rebuild`"
AGAIN = "run the command again that made it, or roll back to a snapshot"
SETTLE = "start the node, which settles them"


class ManifestDamaged(Exception):
    """The manifest cannot be used. `finding` says why."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding)
        self.finding = finding


def examine(root: Path, *, full: bool = False) -> list[Finding]:
    """All that is wrong with a root. full: read every chunk and compare its digest."""
    findings = [*_check_identity(root), *check_permissions(root), *check_room(root), *check_features(root)]
    try:
        with contextlib.closing(open_manifest(root)) as manifest:
            reader = _Reader(root, manifest, full)
            findings += [*check_seals(manifest), *_check_leftovers(root, manifest), *reader.datasets(), *reader.snapshots()]
    except ManifestDamaged as error:
        findings.append(error.finding)
    return findings


def _check_identity(root: Path) -> Iterator[Finding]:
    path = root / "node.json"
    try:
        node_id = json.loads(read_file(path))["node_id"]
        if not isinstance(node_id, str) or not node_id:
            raise ValueError(f"node_id is {node_id!r}")
    except FileNotFoundError:
        yield Finding("node.json is missing", "restore it; else the next start makes this a new node, with the same chunks")
    except (OSError, ValueError, KeyError, TypeError) as error:
        yield Finding(f"node.json is damaged ({error})", 'restore it: {"format": 1, "node_id": "..."}')


def node_id_of(root: Path) -> str | None:
    """The node's id, None when nobody can tell."""
    try:
        return str(json.loads(read_file(root / "node.json"))["node_id"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


# -- the manifest -------------------------------------------------------------------------------------------------------------------


def open_manifest(root: Path) -> sqlite3.Connection:
    """The manifest, to be read. ManifestDamaged when it is missing, damaged or of a newer format."""
    path = root / "manifest.sqlite"
    if not path.exists():
        raise ManifestDamaged(Finding("manifest.sqlite is missing", REBUILD))
    connection = None
    try:
        connection = _connect(path)
        wrong = [row[0] for row in connection.execute("PRAGMA integrity_check(5)")]
        formats = connection.execute("SELECT value FROM meta WHERE key = 'format'").fetchall()
    except sqlite3.Error as error:
        if connection is not None:
            connection.close()
        raise ManifestDamaged(Finding(f"manifest.sqlite is damaged ({error})", REBUILD)) from error
    problem, remedy = "", REBUILD
    if wrong != ["ok"]:
        problem = f"manifest.sqlite is damaged ({'; '.join(map(str, wrong))})"
    elif len(formats) != 1 or not isinstance(formats[0][0], int):
        problem = "manifest.sqlite is damaged (its format is not stated)"
    elif formats[0][0] > FORMAT:
        problem, remedy = f"manifest.sqlite has format {formats[0][0]}, newer than this gpuflow ({FORMAT})", "update gpuflow"
    if problem:
        connection.close()
        raise ManifestDamaged(Finding(problem, remedy))
    return connection


def read_records(manifest: sqlite3.Connection) -> dict[str, DatasetRecord]:
    """By name. ManifestDamaged when one cannot be read."""
    try:
        if _has_seals(manifest):
            rows = manifest.execute("SELECT name, version, state, record, seal FROM dataset ORDER BY name").fetchall()
            return {row[0]: sealed_record(*row) for row in rows}
        rows = manifest.execute("SELECT record FROM dataset ORDER BY name").fetchall()
        return {record.name: record for record in (DatasetRecord.from_json(text) for (text,) in rows)}
    except (sqlite3.Error, ValueError, TypeError, KeyError) as error:
        raise ManifestDamaged(Finding(f"manifest.sqlite is damaged (a record cannot be read: {error})", REBUILD)) from error


def _has_seals(manifest: sqlite3.Connection) -> bool:
    """A manifest of format 1 has none."""
    return bool(manifest.execute("SELECT 1 FROM pragma_table_info('replica') WHERE name = 'seal'").fetchall())


def check_seals(manifest: sqlite3.Connection) -> Iterator[Finding]:
    """Rows that are not as they were sealed. ManifestDamaged when a name in them is no text."""
    if not _has_seals(manifest):
        return
    rest = "chunk, generation, nbytes, {}, digest, recipe, inputs)"
    statement = (
        "SELECT dataset || '/' || path || ', chunk ' || chunk FROM {0} LEFT JOIN array ON array.id = {0}.array "
        "WHERE {0}.seal IS NOT seal_of(seal_of_names({1}), " + rest.format("{2}")
    )
    replicas = _names(manifest, statement.format("replica", "dataset, path", "seq, damaged"))
    remedy = f"`gpuflow scrub` fetches them from other nodes or makes them again; else {AGAIN}"
    yield from found("chunks whose row in the manifest is damaged", remedy, replicas)
    intents = _names(manifest, statement.format("intent", "dataset, path, writer", "0, 0"))
    yield from found("commits under way whose row in the manifest is damaged", SETTLE, intents)
    kept = "SELECT array || ', chunk ' || chunk FROM kept WHERE seal IS NOT seal_of(seal_of_names(snapshot, array), "
    remedy = "take a new snapshot; delete that one"
    yield from found(
        "chunks of snapshots whose row in the manifest is damaged", remedy, _names(manifest, kept + rest.format("0, 0"))
    )
    entered = "SELECT dataset || ', snapshot ' || tag FROM snapshot WHERE seal IS NOT seal_of_names(id, dataset, tag, version)"
    yield from found("snapshots whose row in the manifest is damaged", REBUILD, _names(manifest, entered))
    yield from _check_news(manifest)
    sequence = "SELECT value FROM meta WHERE key = 'seal'"
    if manifest.execute(f"SELECT ({sequence}) IS NOT seal_of_names('seq', value) FROM meta WHERE key = 'seq'").fetchall() != [
        (0,)
    ]:
        yield Finding("manifest.sqlite is damaged (the number of its commits is not as it was sealed)", REBUILD)


def _check_news(manifest: sqlite3.Connection) -> Iterator[Finding]:
    """Of what the manifest tells of its past; a manifest of format 2 tells nothing."""
    columns = {"moment": "seq, time, run", "news": "seq, time, kind, dataset, array, version"}
    for table, sealed in columns.items():
        if manifest.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table,)).fetchall():
            wrong = _names(manifest, f"SELECT 'number ' || seq FROM {table} WHERE seal IS NOT seal_of_names({sealed})")
            remedy = "nothing has to be done: followers are told of the datasets as they are now"
            yield from found("commits of whose past the row in the manifest is damaged", remedy, wrong, serious=False)


def _names(manifest: sqlite3.Connection, statement: str) -> list[str]:
    try:
        return [str(name) for (name,) in manifest.execute(statement)]
    except sqlite3.OperationalError as error:  # a name that is no text any more
        raise ManifestDamaged(Finding(f"manifest.sqlite is damaged ({error})", REBUILD)) from error


def _connect(path: Path) -> sqlite3.Connection:
    """Read-only. On a file system that is read-only itself, without the log, which nobody can be writing then."""
    for mode in ("mode=ro", "immutable=1"):
        connection = sqlite3.connect(f"file:{quote(str(path))}?{mode}", uri=True, timeout=10, isolation_level=None)
        try:
            connection.execute("SELECT 1 FROM sqlite_master")
            add_functions(connection)
            return connection
        except sqlite3.OperationalError:
            connection.close()
            if mode == "immutable=1":
                raise
    raise AssertionError(path)


# -- what processes left -------------------------------------------------------------------------------------------------------------


def _check_leftovers(root: Path, manifest: sqlite3.Connection) -> Iterator[Finding]:
    folders = [folder for folder in _entries(root / "staging") if folder.is_dir()]
    dead = [folder for folder in folders if not is_alive(folder)]
    left = [f"staging/{folder.name}: {format_nbytes(_nbytes(folder))}" for folder in dead]
    yield from found("temporary files of processes that ended", SETTLE, left, serious=False)  # as any that is stopped leaves
    live = {folder.name for folder in folders} - {folder.name for folder in dead}
    names: dict[str, int] = {}
    for dataset, writer in manifest.execute("SELECT dataset, writer FROM intent JOIN array ON array.id = intent.array"):
        if writer not in live:
            names[dataset] = names.get(dataset, 0) + 1
    items = [f"{name}: {count} chunks" for name, count in sorted(names.items())]
    yield from found("commits that were begun by processes that died", SETTLE, items)
    strays = [path.name for path in _entries(root / "staging") if not path.is_dir()]
    yield from found("files in staging/ that no process made", "delete them", strays)


def _nbytes(folder: Path) -> int:
    total = 0
    with contextlib.suppress(FileNotFoundError):  # somebody settles them just now
        for path in folder.iterdir():
            total += path.stat().st_size
    return total


def is_alive(folder: Path) -> bool:
    """Whether the process whose folder in staging/ this is lives: it holds a lock then."""
    try:
        descriptor = os.open(folder / "lock", os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


# -- rows against files -----------------------------------------------------------------------------------------------------------------


class _Reader:
    """The rows of one manifest, held against the files of its root."""

    def __init__(self, root: Path, manifest: sqlite3.Connection, full: bool) -> None:
        self._root, self._manifest, self._full = root, manifest, full
        self._records = read_records(manifest)
        self._live = {name: record for name, record in self._records.items() if record.state != "removed"}

    def datasets(self) -> Iterator[Finding]:
        """Every dataset, and folders that belong to none."""
        for name, record in self._live.items():
            yield from self._documents(record)
            rows: dict[str, tuple[Any, ...]] = {}
            for path, metadata in record.becoming.items():
                for chunk, *row in self._rows(name, path):
                    if chunk < metadata.grid.size:  # others are left of an append that was given up
                        rows[os.path.join(path, metadata.key(chunk))] = (path, chunk, *row)
            yield from self._compare(self._root / "datasets" / name, name, rows)
        strange = [path.name for path in _entries(self._root / "datasets") if path.name not in self._live]
        removed = [name for name in strange if name in self._records]
        yield from found("what is left of datasets that were removed", SETTLE, removed)
        unknown = [f"datasets/{name}" for name in strange if name not in removed]
        yield from found("no dataset of the manifest", "move it away; if the manifest was lost, rebuild it", unknown)

    def _rows(self, dataset: str, array: str, chunk: int | None = None) -> list[tuple[Any, ...]]:
        """(chunk, generation, nbytes, digest) of one chunk or of all."""
        statement = (
            "SELECT chunk, generation, nbytes, digest FROM replica JOIN array ON array.id = replica.array "
            "WHERE dataset = ? AND path = ? AND (? IS NULL OR chunk = ?)"
        )
        return self._manifest.execute(statement, (dataset, array, chunk, chunk)).fetchall()

    def _documents(self, record: DatasetRecord) -> Iterator[Finding]:
        wanted: dict[str, Mapping[str, Any]] = dict(record.arrays)
        for path, attributes in record.groups.items():
            wanted[path] = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
        wrong = []
        for path, document in wanted.items():
            name = os.path.join("datasets", record.name, path, "zarr.json")
            try:
                same = json.loads(read_file(self._root / name)) == document
            except (OSError, ValueError):
                same = False
            if not same:
                wrong.append(name)
        remedy = f"`gpuflow snapshot {record.name} TAG` lays them anew; --delete TAG afterwards"
        yield from found("missing, or not what the record says", remedy, wrong)

    def _compare(self, folder: Path, dataset: str, rows: Mapping[str, tuple[Any, ...]]) -> Iterator[Finding]:
        """Rows by file name, {name: (array, chunk, generation, nbytes, digest)}, against the files in `folder`."""
        wrong: dict[str, list[str]] = {"missing": [], "size": [], "digest": []}
        for name, (array, chunk, *row) in rows.items():
            problem = self._wrong(folder / name, *row[1:])
            if problem is not None and self._is_settled(dataset, array, chunk, row):
                wrong[problem].append(f"{dataset}/{name}")
        yield from found("chunks whose file is missing", AGAIN, wrong["missing"])
        yield from found("chunks whose file has another size than was committed", AGAIN, wrong["size"])
        yield from found("chunks whose file has other bytes than were committed", AGAIN, wrong["digest"])
        yield from found("files that belong to no chunk of this node", "move them away", self._strays(folder, dataset, rows))

    def _wrong(self, path: Path, nbytes: int, checksum: bytes) -> str | None:
        if checksum == EMPTY:
            return None
        try:
            if path.stat().st_size != nbytes:
                return "size"
            return "digest" if self._full and digest(read_file(path)) != checksum else None
        except OSError:
            return "missing"

    def _is_settled(self, dataset: str, array: str, chunk: int, row: list[Any]) -> bool:
        """Whether no commit is changing the file, and the row still stands: in this order, as a commit ends with its row."""
        return (array, chunk) not in self._changing(dataset) and self._rows(dataset, array, chunk) == [(chunk, *row)]

    def _changing(self, dataset: str) -> set[tuple[str, int]]:
        """(array, chunk) of the commits that are under way."""
        statement = "SELECT path, chunk FROM intent JOIN array ON array.id = intent.array WHERE dataset = ?"
        return set(self._manifest.execute(statement, (dataset,)))

    def _strays(self, folder: Path, dataset: str, rows: Mapping[str, tuple[Any, ...]]) -> list[str]:
        record, strays = self._live[dataset], []
        documents = {os.path.join(path, "zarr.json") for path in (*record.arrays, *record.groups)}
        for parent, _, names in os.walk(folder):
            for file in names:
                name = os.path.relpath(os.path.join(parent, file), folder)
                row = rows.get(name)
                if name not in documents and (row is None or row[-1] == EMPTY):
                    strays.append(name)
        if not strays:
            return []
        new = self._changing(dataset)
        new |= {(path, row[0]) for path in record.arrays for row in self._rows(dataset, path) if row[-1] != EMPTY}
        known = {os.path.join(path, record.array(path).key(chunk)) for path, chunk in new}
        return [os.path.relpath(folder / name, self._root) for name in strays if name not in known and (folder / name).exists()]

    # -- snapshots --------------------------------------------------------------------------------------------------------------

    def snapshots(self) -> Iterator[Finding]:
        """Every snapshot, and folders and rows that belong to none."""
        if not self._manifest.execute("SELECT 1 FROM sqlite_master WHERE name = 'snapshot'").fetchall():
            return  # a manifest of format 1, which has none
        trees = {(base.name, tree.name) for base in _entries(self._root / "snapshots") for tree in _entries(base)}
        spoiled, left = [], []
        for identity, dataset, tag in self._manifest.execute("SELECT id, dataset, tag FROM snapshot").fetchall():
            trees.discard((dataset, tag))
            record = self._live.get(dataset)
            if record is None or record.snapshots.get(tag, {}).get("id") != identity:
                left.append(f"{dataset}, snapshot {tag}")
                continue
            statement = "SELECT array, chunk, nbytes, digest FROM kept WHERE snapshot = ?"
            for array, chunk, nbytes, checksum in self._manifest.execute(statement, (identity,)):
                name = os.path.join(dataset, tag, array, record.array(array).key(chunk))
                if self._wrong(self._root / "snapshots" / name, nbytes, checksum) is not None:
                    spoiled.append(f"snapshots/{name}")
        yield from found("missing or damaged in a snapshot", "take a new one; delete that one", spoiled)
        left += [f"snapshots/{dataset}/{tag}" for dataset, tag in sorted(trees)]
        yield from found("what is left of snapshots that were deleted or not finished", SETTLE, left)
