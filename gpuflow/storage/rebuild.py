"""A manifest made anew from a root's files, after it was lost or damaged.

Digests are computed; what made a chunk is not known any more (recipe UNKNOWN), so that no pipeline in place is applied to it twice. Other
nodes are asked first, since they know more: a chunk that one of them has with the same bytes gets its row; one that differs from theirs is
left out, for a known history wins. A chunk that nobody else has gets the time of the rebuild, in seconds since 1970, as its generation:
above every generation that this node can have told before, so that none goes backwards anywhere, whoever remembers it. For the same
reason the sequence numbers of commits go on from there."""

from __future__ import annotations

import contextlib
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from gpuflow.errors import StoreError
from gpuflow.storage.disk import digest, read_file, store_errors, sync_directories
from gpuflow.storage.doctor import REBUILD, ManifestDamaged, check_seals, open_manifest, read_records
from gpuflow.storage.manifest import UNKNOWN, Manifest, Replica
from gpuflow.storage.record import DatasetRecord
from gpuflow.storage.snapshots import enter_snapshot
from gpuflow.storage.writer import dead_writers

Elsewhere = Callable[[str, str], NDArray[Any]]
"""(dataset, array) -> what the other nodes have: REPLICA_DTYPE by chunk number, generation 0 where they have nothing."""

_GROUP_CHUNKS = 4096


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What came of one array on one node. alone: chunks that only this node has, whose history is lost; known: those that another node
    has too; left_out: files of chunks that other nodes have with other bytes; absent: chunks without a file here."""

    dataset: str
    array: str
    alone: int
    known: int
    left_out: tuple[str, ...]
    absent: int


def rebuild(root: Path, known: Mapping[str, DatasetRecord], elsewhere: Elsewhere) -> list[Rebuilt]:
    """Make `manifest.sqlite`; the one that is there is kept beside it. known: what other nodes know, by name.

    StoreError when the manifest is whole, or a process uses the root. Interrupted, it begins again."""
    _check_needed(root)
    fresh = root / "manifest.rebuilt"
    with store_errors(root):
        (root / "staging").mkdir(exist_ok=True)
        with dead_writers(root) as dead:
            if live := [folder.name for folder in (root / "staging").iterdir() if folder.is_dir() and folder.name not in dead]:
                raise StoreError(str(root), f"is in use by {len(live)} processes", "stop the node first")
            _delete(fresh)
            with contextlib.closing(Manifest(fresh)) as manifest:
                seconds = int(time.time())
                manifest.set_sequence(seconds)
                done = [part for record in _records(root, known) for part in _enter(root, manifest, record, elsewhere, seconds)]
            _swap(root, fresh)
    return done


def _check_needed(root: Path) -> None:
    """StoreError unless the manifest is lost, damaged, or was made anew, empty, where files are."""
    try:
        with contextlib.closing(open_manifest(root)) as manifest:
            read_records(manifest)
            damaged = any(finding.remedy == REBUILD for finding in check_seals(manifest))
            if not damaged and manifest.execute("SELECT 1 FROM replica LIMIT 1").fetchall():
                hint = "nothing has to be rebuilt; to have it made anew all the same, move manifest.sqlite away"
                raise StoreError(str(root), "its manifest is whole", hint)
    except ManifestDamaged as error:
        if "newer than this gpuflow" in error.finding.problem:
            raise StoreError(str(root), error.finding.problem, error.finding.remedy) from error


def _delete(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


def _swap(root: Path, fresh: Path) -> None:
    """Put the new manifest in place and keep the old one aside, log and all."""
    kept = f"manifest.sqlite.damaged-{datetime.now(UTC):%Y%m%dT%H%M%S}"
    for suffix in ("-shm", "-wal", ""):
        path = root / f"manifest.sqlite{suffix}"
        if path.exists():
            os.rename(path, root / f"{kept}{suffix}")
    os.rename(fresh, root / "manifest.sqlite")
    sync_directories([root])


# -- records ------------------------------------------------------------------------------------------------------------------------


def _records(root: Path, known: Mapping[str, DatasetRecord]) -> Iterator[DatasetRecord]:
    """One for every dataset that other nodes know of or that lies here. One of ours alone has version 0: any other wins over it."""
    yield from known.values()
    base = root / "datasets"
    for folder in sorted(base.iterdir()) if base.is_dir() else ():
        if folder.name not in known and folder.is_dir():
            record = _record_of(folder)
            if record.arrays:
                yield replace(record, snapshots=_snapshots_of(root, record))


def _record_of(folder: Path) -> DatasetRecord:
    arrays, groups = {}, {}
    for path in sorted(folder.rglob("zarr.json")):
        name = "" if path.parent == folder else str(path.parent.relative_to(folder))
        try:
            document = json.loads(read_file(path))
            if document["node_type"] == "array":
                arrays[name] = document
            else:
                groups[name] = document.get("attributes") or {}
        except (ValueError, KeyError, TypeError) as error:
            hint = "copy it from another node, or move the dataset's folder away"
            raise StoreError(str(folder.parents[1]), f"{path} is damaged ({error})", hint) from error
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return DatasetRecord(folder.name, 0, "ready", arrays, groups, {"kind": "rebuilt"}, created=now)


def _snapshots_of(root: Path, record: DatasetRecord) -> dict[str, dict[str, Any]]:
    """Entries for the trees of snapshots that are there. Of the in-place pipelines of then nothing is known."""
    base, found = root / "snapshots" / record.name, {}
    for tree in sorted(base.iterdir()) if base.is_dir() else ():
        created = datetime.fromtimestamp(tree.stat().st_mtime, UTC).isoformat(timespec="seconds")
        held = [(path, chunk) for path in record.arrays for chunk, _ in _files(tree, record, path)]
        nbytes = sum((tree / path / record.array(path).key(chunk)).stat().st_size for path, chunk in held)
        entry = {"id": uuid.uuid4().hex, "created": created, "transforms": [], "chunks": len(held), "nbytes": nbytes, "nodes": {}}
        found[tree.name] = entry
    return found


# -- chunks -------------------------------------------------------------------------------------------------------------------------


def _files(folder: Path, record: DatasetRecord, array: str) -> Iterator[tuple[int, Path]]:
    """The chunks of an array that have a file below `folder`."""
    metadata = record.array(array)
    for chunk in range(metadata.grid.size):
        path = folder / array / metadata.key(chunk)
        if path.is_file():
            yield chunk, path


def _enter(root: Path, manifest: Manifest, record: DatasetRecord, elsewhere: Elsewhere, seconds: int) -> Iterator[Rebuilt]:
    """The record, the rows of its arrays and those of its snapshots."""
    manifest.put_record(record)
    if record.state == "removed":
        return
    for array in record.arrays:
        others, size = elsewhere(record.name, array), record.array(array).grid.size
        here, left_out, alone = [], [], 0
        for chunk, path in _files(root / "datasets" / record.name, record, array):
            data = read_file(path)
            replica = Replica(record.name, array, chunk, seconds, len(data), digest(data), UNKNOWN, UNKNOWN)
            if len(others) and others["generation"][chunk]:
                _, *theirs = others[chunk].tolist()
                if theirs[2] != replica.digest:
                    left_out.append(record.chunk_name(array, chunk))
                    continue
                replica = Replica(record.name, array, chunk, *theirs)
            alone += replica.generation == seconds
            here.append(replica)
        for start in range(0, len(here), _GROUP_CHUNKS):
            group = here[start : start + _GROUP_CHUNKS]
            manifest.announce([(replica, 0) for replica in group], "rebuild")
            manifest.finish(group)
        yield Rebuilt(record.name, array, alone, len(here) - alone, tuple(left_out), size - len(here) - len(left_out))
    for tag, entry in record.snapshots.items():
        _enter_snapshot(root, manifest, record, tag, entry["id"])


def _enter_snapshot(root: Path, manifest: Manifest, record: DatasetRecord, tag: str, identity: str) -> None:
    tree = root / "snapshots" / record.name / tag
    if not tree.is_dir():
        return
    with manifest.transaction():
        enter_snapshot(manifest, identity, record.name, tag, record.version)
        for array in record.arrays:
            for chunk, path in _files(tree, record, array):
                data = read_file(path)
                row = (chunk, 1, len(data), digest(data), UNKNOWN, UNKNOWN)
                seal = "seal_of(seal_of_names(?, ?), ?, ?, ?, 0, 0, ?, ?, ?)"
                values = (identity, array, *row)
                manifest.query(f"INSERT INTO kept VALUES (?, ?, ?, ?, ?, ?, ?, ?, {seal})", *values, *values)
