"""Snapshots of a dataset as one node keeps them: hard links below `snapshots/<dataset>/<tag>/`, a plain Zarr tree, and the rows of then.

Commits replace a chunk's file and never write into one that has another name, so that a link keeps what it links. A snapshot is here
whole or not at all. Whether it counts, the dataset's record says; one that no record names, now or later, is swept away."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuflow.errors import ChunkCorrupt, ChunkLost, NameTaken, StoreError
from gpuflow.storage.disk import digest, make_directories, read_file, store_errors, sync_directories, sync_file_system
from gpuflow.storage.manifest import UNKNOWN, Manifest, Replica, as_replicas
from gpuflow.storage.node import EMPTY, NodeStore, Staged
from gpuflow.storage.record import DatasetRecord
from gpuflow.storage.seals import are_sound, as_table, seal_of, seal_of_names

Rows = Mapping[str, NDArray[Any]]
"""By array: REPLICA_DTYPE, ordered by chunk."""


@dataclass(frozen=True)
class Share:
    """What a rollback asks of a node, for one array: columns of equal length.

    generations: at which each of `chunks` is to be as it was kept. differs: whether no node has that content at present; where one has,
    only a node that has another generation of the chunk joins it."""

    chunks: NDArray[np.int64]
    generations: NDArray[np.int64]
    differs: NDArray[np.bool_]

    def joined(self, other: Share) -> Share:
        """Both."""
        return Share(*(np.concatenate(pair) for pair in zip(self.columns(), other.columns(), strict=True)))

    def without(self, chunks: Sequence[int]) -> Share:
        """The same but for `chunks`."""
        stays = ~np.isin(self.chunks, np.array(chunks, np.int64))
        return Share(*(column[stays] for column in self.columns()))

    def columns(self) -> tuple[NDArray[Any], ...]:
        """All three."""
        return self.chunks, self.generations, self.differs


Shares = Mapping[str, Share]
"""By array."""

_GROUP_CHUNKS = 256  # restored in one commit: little to do again after a crash, enough to share the fsyncs
_FEW_FOLDERS = 64  # fsynced one by one in the time of a few of the file system's journal commits


def folder_of(store: NodeStore, dataset: str, tag: str) -> Path:
    """Where a snapshot's Zarr tree lies."""
    return store.root / "snapshots" / dataset / tag


# -- taking and dropping ------------------------------------------------------------------------------------------------------------


def take(store: NodeStore, record: DatasetRecord, tag: str, identity: str) -> None:
    """Link every chunk that this node has of the dataset, for the record that follows `record` to name under `identity`.

    NameTaken when a commit changes the dataset meanwhile; ChunkCorrupt when a chunk is missing or known to be damaged."""
    begin(store, record)
    with store_errors(store.root):
        made = store.writer.temporary()
        target = folder_of(store, record.name, tag)
        try:
            rows = {path: _sound(store, record.name, path) for path in record.arrays}
            _link(store, record, rows, made)
            make_directories(target.parent)
            with store.manifest.transaction():
                _check_unchanged(store, record.name, rows)
                _enter(store, record, tag, identity)
                os.rename(made, target)
            sync_directories([target.parent])
        except BaseException:
            shutil.rmtree(made, ignore_errors=True)
            raise


def begin(store: NodeStore, record: DatasetRecord) -> None:
    """What is said of the dataset's chunks from now on holds: commits that a process died in are settled, and older snapshots swept."""
    store.put_record(record)
    store.recover()
    sweep(store, record)


def _sound(store: NodeStore, dataset: str, array: str) -> NDArray[Any]:
    """The array's replicas here, those read again that were marked as damaged or whose row is broken: ChunkCorrupt where they are."""
    rows = store.manifest.replicas(dataset, array)
    for chunk in store.manifest.broken(dataset, array):
        store.read(dataset, array, chunk)
    suspect = rows["chunk"][rows["recipe"] == np.void(UNKNOWN)].tolist()
    for chunk in suspect:
        store.read(dataset, array, chunk)
    return store.manifest.replicas(dataset, array) if suspect else rows


def _link(store: NodeStore, record: DatasetRecord, rows: Rows, target: str) -> None:
    """The dataset's tree at `target`, as links, its directories durable."""
    source, made = f"{store.root}/datasets/{record.name}", {os.path.dirname(target)}
    names = [os.path.join(path, "zarr.json") for path in (*record.arrays, *record.groups)]
    for path, replicas in rows.items():
        key = record.array(path).key
        full = replicas["chunk"][replicas["digest"] != np.void(EMPTY)].tolist()
        names += [os.path.join(path, key(chunk)) for chunk in full]
    for name in names:
        _make_folders(os.path.dirname(f"{target}/{name}"), made)
        try:
            os.link(f"{source}/{name}", f"{target}/{name}")
        except FileNotFoundError:
            _check_unchanged(store, record.name, rows)
            raise ChunkCorrupt(f"{record.name}/{name}", store.node_id, "its file is missing") from None
    _make_folders(target, made)
    if len(made) > _FEW_FOLDERS:
        sync_file_system(target)
    else:
        sync_directories(made)


def _make_folders(folder: str, made: set[str]) -> None:
    """`mkdir -p`, unless `made` has it; all that are new join `made`."""
    if folder not in made:
        os.makedirs(folder, exist_ok=True)
    while folder not in made:
        made.add(folder)
        folder = os.path.dirname(folder)


def _enter(store: NodeStore, record: DatasetRecord, tag: str, identity: str) -> None:
    query = store.manifest.query
    if query("SELECT 1 FROM snapshot WHERE dataset = ? AND tag = ?", record.name, tag):
        raise NameTaken(record.name, f"is getting a snapshot {tag!r} from another command too; run again when that has ended")
    enter_snapshot(store.manifest, identity, record.name, tag, record.version + 1)
    seal = "seal_of(seal_of_names(?, path), chunk, generation, nbytes, 0, 0, digest, recipe, inputs)"
    query(
        f"INSERT INTO kept SELECT ?, path, chunk, generation, nbytes, digest, recipe, inputs, {seal} "
        "FROM (SELECT path, chunk, generation, nbytes, digest, inputs, CASE WHEN damaged THEN zeroblob(16) ELSE recipe END AS recipe "
        "FROM replica JOIN array ON array.id = replica.array WHERE dataset = ?)",
        identity,
        identity,
        record.name,
    )


def enter_snapshot(manifest: Manifest, identity: str, dataset: str, tag: str, version: int) -> None:
    """Its row, but for what it keeps."""
    row = (identity, dataset, tag, version)
    manifest.query("INSERT INTO snapshot VALUES (?, ?, ?, ?, ?)", *row, seal_of_names(*row))


def _check_unchanged(store: NodeStore, dataset: str, rows: Rows) -> None:
    """NameTaken unless every replica is as in `rows`, and no commit is under way. A file changes only between a commit's announcement
    and its row, so that the files that were linked since `rows` were read are those that `rows` tell of."""
    busy = store.manifest.query("SELECT 1 FROM intent JOIN array ON array.id = intent.array WHERE dataset = ? LIMIT 1", dataset)
    if busy or any(not np.array_equal(store.manifest.replicas(dataset, path), before) for path, before in rows.items()):
        raise NameTaken(dataset, "is being changed by a run; take the snapshot when that has ended, or stop it")


def check_current(store: NodeStore, record: DatasetRecord, identity: str) -> None:
    """NameTaken unless the dataset's chunks here still are those of the snapshot, and no later command has swept it away."""
    with store.manifest.transaction("DEFERRED"):
        if not store.manifest.query("SELECT 1 FROM snapshot WHERE id = ?", identity):
            raise NameTaken(record.name, "is being changed by another command; run again when that has ended")
        _check_unchanged(store, record.name, {path: kept(store, identity, path) for path in record.arrays})


def drop(store: NodeStore, dataset: str, identity: str) -> None:
    """Delete a snapshot, if it is here."""
    _drop(store, dataset, lambda known, _version: known == identity)


def sweep(store: NodeStore, record: DatasetRecord) -> None:
    """Delete the dataset's snapshots that `record` does not name and no later one can, and trees that a crash left without rows."""
    named = {entry["id"] for entry in record.snapshots.values()}
    _drop(store, record.name, lambda identity, version: identity not in named and version <= record.version)


def sweep_all(store: NodeStore) -> None:
    """`sweep` for every dataset that this node knows of: a node that was away when one was deleted or removed."""
    for record in store.manifest.records():
        sweep(store, record)


def _drop(store: NodeStore, dataset: str, condemned: Callable[[str, int], bool]) -> None:
    base, moved = store.root / "snapshots" / dataset, []
    if not base.exists() and not store.manifest.query("SELECT 1 FROM snapshot WHERE dataset = ?", dataset):
        return
    writer = store.writer  # made outside of the transaction: its maker waits for recoverers, who wait for transactions
    with store_errors(store.root), store.manifest.transaction():
        staying = set()
        for identity, tag, version in _entered(store, dataset):
            if condemned(identity, version):
                store.manifest.query("DELETE FROM kept WHERE snapshot = ?", identity)
                store.manifest.query("DELETE FROM snapshot WHERE id = ?", identity)
            else:
                staying.add(tag)
        for folder in base.iterdir() if base.exists() else ():
            if folder.name not in staying:
                moved.append(writer.temporary())
                os.rename(folder, moved[-1])
    for gone in moved:
        shutil.rmtree(gone, ignore_errors=True)
    with contextlib.suppress(OSError):  # others are in it, or come
        os.rmdir(base)


def _entered(store: NodeStore, dataset: str) -> list[tuple[str, str, int]]:
    """(id, tag, version) of the dataset's snapshots. StoreError when the row of any is broken: what it names must not be swept away."""
    found = []
    for *row, seal in store.manifest.query("SELECT id, dataset, tag, version, seal FROM snapshot"):
        if seal_of_names(*row) != seal:
            reason = f"manifest: the row of snapshot {row[2]!r} of {row[1]!r} is not as it was sealed"
            raise StoreError(
                str(store.root), reason, "the file is damaged; `gpuflow doctor --rebuild` makes it anew from the chunks"
            )
        if row[1] == dataset:
            found.append((row[0], row[2], row[3]))
    return found


# -- looking and going back -----------------------------------------------------------------------------------------------------------


def kept(store: NodeStore, identity: str, array: str) -> NDArray[Any]:
    """What this node keeps of an array in a snapshot: REPLICA_DTYPE, ordered by chunk. ChunkCorrupt when a row of it is broken."""
    columns = "chunk, generation, nbytes, 0, 0, digest, recipe, inputs, seal"
    statement = f"SELECT 0, {columns} FROM kept WHERE snapshot = ? AND array = ? ORDER BY chunk"
    rows = store.manifest.query(statement, identity, array)
    table = as_table(rows)
    if len(table) < len(rows) or not are_sound(table, seal_of_names(identity, array)).all():
        reason = "the manifest's row of a chunk is not as it was sealed; take a new snapshot and delete this one"
        raise ChunkCorrupt(f"a snapshot's {array}", store.node_id, reason)
    return as_replicas(table)


def kept_totals(store: NodeStore, identity: str, array: str) -> tuple[int, int]:
    """Chunks of an array in a snapshot that this node keeps, and their encoded bytes, without a look at the seals: for display."""
    statement = "SELECT count(*), sum(nbytes) FROM kept WHERE snapshot = ? AND array = ?"
    ((count, nbytes),) = store.manifest.query(statement, identity, array)
    return int(count), int(nbytes or 0)


def kept_generations(store: NodeStore, identity: str, array: str, chunks: Sequence[int]) -> dict[int, int]:
    """Generations of those of `chunks` that this node keeps in a snapshot, without those whose row is broken."""
    columns = "chunk, generation, nbytes, 0, 0, digest, recipe, inputs, seal"
    statement = f"SELECT {columns} FROM kept WHERE snapshot = ? AND array = ? AND chunk IN (SELECT value FROM json_each(?))"
    names, rows = seal_of_names(identity, array), store.manifest.query(statement, identity, array, json.dumps(list(chunks)))
    return {row[0]: row[1] for row in rows if seal_of(names, *row[:-1]) == row[-1]}


@dataclass(frozen=True, slots=True)
class Kept:
    """A snapshot: of which dataset, and as what a node keeps it."""

    dataset: str
    tag: str
    identity: str


def read_kept(store: NodeStore, what: Kept, array: str, chunk: int) -> tuple[Replica, bytes]:
    """A chunk as this node keeps it, verified; no bytes for one that was all fill value. ChunkLost when it is not kept here, ChunkCorrupt
    when its row or its file is not what it was."""
    columns = "chunk, generation, nbytes, 0, 0, digest, recipe, inputs, seal"
    statement = f"SELECT 0, {columns} FROM kept WHERE snapshot = ? AND array = ? AND chunk = ?"
    rows = store.manifest.query(statement, what.identity, array, int(chunk))
    record = store.record(what.dataset)
    name = f"{record.chunk_name(array, chunk)} of snapshot {what.tag!r}"
    if not rows:
        raise ChunkLost(name, [store.node_id])
    table = as_table(rows)
    if not len(table) or not are_sound(table, seal_of_names(what.identity, array)).all():
        raise ChunkCorrupt(name, store.node_id, "the manifest's row of it is not as it was sealed")
    replica = Replica(what.dataset, array, *as_replicas(table)[0].item())
    if replica.digest == EMPTY:
        return replica, b""
    try:
        data = read_file(folder_of(store, what.dataset, what.tag) / array / record.array(array).key(chunk))
    except OSError:
        raise ChunkCorrupt(name, store.node_id, "its file is missing") from None
    if digest(data) != replica.digest:
        raise ChunkCorrupt(name, store.node_id, "its digest is not the one that was kept")
    return replica, data


def damaged(store: NodeStore, record: DatasetRecord, tag: str, shares: Shares) -> dict[str, list[int]]:
    """By array, chunks that would have to be committed and whose kept file is missing or is not what it was."""
    found: dict[str, list[int]] = {}
    for replica, _ in _pending(store, record, tag, shares):
        if replica.digest != EMPTY:
            try:
                data = read_file(_file(store, record, tag, replica))
            except OSError:
                data = b""
            if digest(data) != replica.digest:
                found.setdefault(replica.array, []).append(replica.chunk)
    return found


def restore(store: NodeStore, record: DatasetRecord, tag: str, shares: Shares) -> tuple[int, int]:
    """Commit what is kept as the generations that are asked for. (chunks, bytes) that were committed: what is there already is left
    out, so that after a crash the same call does the rest."""
    count = nbytes = 0
    pending = _pending(store, record, tag, shares)
    while group := list(islice(pending, _GROUP_CHUNKS)):
        staged: list[Staged] = []
        try:
            for replica, replaces in group:
                staged.append(_stage(store, record, tag, replica, replaces))
        except BaseException:
            store.discard(staged)
            raise
        store.commit(staged)
        count += len(staged)
        nbytes += sum(replica.nbytes for replica, _ in group)
    return count, nbytes


def _pending(store: NodeStore, record: DatasetRecord, tag: str, shares: Shares) -> Iterator[tuple[Replica, int]]:
    """What is to be committed, and the generation that it replaces here."""
    for path, share in shares.items():
        here = {row[0]: row[1:] for row in store.manifest.replicas(record.name, path).tolist()}
        rows = {row[0]: row[2:] for row in kept(store, record.snapshots[tag]["id"], path).tolist()}
        for chunk, generation, differs in zip(*(column.tolist() for column in share.columns()), strict=True):
            there = here.get(chunk)
            if there != (generation, *rows[chunk]) and (there is not None or differs):
                yield Replica(record.name, path, chunk, generation, *rows[chunk]), there[0] if there else 0


def _stage(store: NodeStore, record: DatasetRecord, tag: str, replica: Replica, replaces: int) -> Staged:
    if replica.digest == EMPTY:
        return store.stage_empty(replica, replaces=replaces)
    return store.stage_link(replica, _file(store, record, tag, replica), replaces=replaces)


def _file(store: NodeStore, record: DatasetRecord, tag: str, replica: Replica) -> Path:
    return folder_of(store, record.name, tag) / replica.array / record.array(replica.array).key(replica.chunk)
