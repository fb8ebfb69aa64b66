"""Snapshots of a dataset, on all its nodes at once: taken, compared, gone back to, deleted.

A snapshot is what the dataset was at one moment: every node links what it has, then every node is asked whether it still has just that;
if so, it was all there together in between. It exists once the dataset's record names it, which is published last:
{tag: {"id", "created", "transforms", "chunks", "nbytes", "nodes": {node: chunks}}}.

Going back makes new generations of the old bytes, so that newest-wins holds everywhere. Until the last chunk is back the record's state
is ROLLING_BACK, which keeps pipelines away; then the record's in-place history is the snapshot's again. Statistics need no care: they
are kept by the digest of what they were computed from."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuflow.datasets import catalog
from gpuflow.datasets.catalog import ChunkTable, Nodes, merge
from gpuflow.datasets.leases import leased
from gpuflow.errors import ChunkLost, ClusterError, ConfigError, NameTaken, NotFound, Problem
from gpuflow.storage import snapshots as storage
from gpuflow.storage.node import NodeStore
from gpuflow.storage.record import DatasetRecord
from gpuflow.storage.snapshots import Share

ROLLING_BACK = "rolling back"

_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def check_tag(tag: str) -> str:
    """`tag` itself when a snapshot may be called that; it is also a directory's name. ConfigError when not."""
    if not _TAG.fullmatch(tag):
        hint = "use at most 100 letters, digits, `.`, `_` and `-`, beginning with a letter or digit"
        raise ConfigError([Problem(f"{tag[:60]!r} cannot be the tag of a snapshot", "tag", hint=hint)])
    return tag


def find_snapshot(record: DatasetRecord, tag: str) -> Mapping[str, Any]:
    """The record's entry. NotFound lists the tags that there are."""
    if tag not in record.snapshots:
        hint = "" if record.snapshots else f"dataset {record.name!r} has none; take one with `gpuflow snapshot {record.name} TAG`"
        raise NotFound("snapshot", tag, sorted(record.snapshots), hint)
    return record.snapshots[tag]


# -- taking and deleting ------------------------------------------------------------------------------------------------------------


def take_snapshot(nodes: Nodes, name: str, tag: str) -> Mapping[str, Any]:
    """Take one, in hard links and no bytes, on every node. Its entry in the record.

    NameTaken when the tag is in use or a run is changing the dataset; ChunkLost when a chunk is on no live node."""
    check_tag(tag)
    record = catalog.find(nodes, name)
    if tag in record.snapshots:
        raise NameTaken(
            name, f"has a snapshot {tag!r} of {record.snapshots[tag]['created']}; choose another tag, or delete that one"
        )
    _check_ready(record)
    record = _publish(nodes, record.next())  # from here on nothing older can be published: what was begun and left is swept away
    identity = uuid.uuid4().hex
    try:
        nodes.each_node(storage.take, record, tag, identity)
        tables = _kept_tables(nodes, record, identity)
        _check_complete(record, tables)
        nodes.each_node(storage.check_current, record, identity)
    except BaseException:
        nodes.each_node(storage.drop, name, identity)
        raise
    entry = _entry(record, identity, tables)
    _publish(nodes, record.next(snapshots={**record.snapshots, tag: entry}))
    return entry


def take_before(nodes: Nodes, name: str, tag: str, level: int) -> None:
    """The snapshot that an in-place run asks for before it changes anything, unless it is there: the run was interrupted, or the state is
    the same. level: number of in-place pipelines before this one. NameTaken when the tag is of another state, or it is too late."""
    record = catalog.find(nodes, name)
    if len(record.transforms) > level:
        if tag not in record.snapshots:
            raise NameTaken(
                name, f"has been changed by this pipeline already, without a snapshot {tag!r}; leave `snapshot` out to go on"
            )
    elif tag not in record.snapshots:
        take_snapshot(nodes, name, tag)
    elif len(record.snapshots[tag]["transforms"]) != level or any(diff.differing for diff in compare(nodes, name, tag).values()):
        raise NameTaken(name, f"has a snapshot {tag!r} of another state of it; choose another tag, or delete that one")


def delete_snapshot(nodes: Nodes, name: str, tag: str) -> None:
    """Forget a snapshot, then delete it from every live node; a node that is away deletes it before it takes the next one."""
    record = catalog.find(nodes, name)
    find_snapshot(record, tag)
    _check_ready(record)
    left = {other: entry for other, entry in record.snapshots.items() if other != tag}
    sweep(nodes, _publish(nodes, record.next(snapshots=left)))


def sweep(nodes: Nodes, record: DatasetRecord) -> None:
    """Delete what the nodes have of snapshots that `record` does not name."""
    nodes.each_node(storage.sweep, record)


def _check_ready(record: DatasetRecord) -> None:
    if record.state == ROLLING_BACK:
        raise NameTaken(record.name, f"is in the middle of a rollback; finish it first: `gpuflow rollback {record.name} TAG`")
    if record.state != "ready":
        raise NameTaken(record.name, "is not complete; finish it first: run the same command again that made it")
    if record.growth:
        raise NameTaken(record.name, "is growing, and that was not finished; run the same command again first")


def _publish(nodes: Nodes, record: DatasetRecord) -> DatasetRecord:
    if not catalog.publish(nodes, record):
        raise NameTaken(record.name, "is being changed by another command; run again when that has ended")
    return record


def _entry(record: DatasetRecord, identity: str, tables: Mapping[str, ChunkTable]) -> dict[str, Any]:
    held: dict[str, int] = {}
    for table in tables.values():
        for node, count in table.chunks_by_node().items():
            held[node] = held.get(node, 0) + count
    return {
        "id": identity,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "transforms": list(record.transforms),
        "chunks": sum(len(table.rows) for table in tables.values()),
        "nbytes": sum(int(table.rows["nbytes"].sum()) for table in tables.values()),
        "nodes": {node: count for node, count in held.items() if count},
    }


def _check_complete(record: DatasetRecord, tables: Mapping[str, ChunkTable]) -> None:
    for path, table in tables.items():
        if not table.present.all():
            missing = int(np.flatnonzero(~table.present)[0])
            raise ChunkLost(record.chunk_name(path, missing), table.nodes)


def kept_table(nodes: Nodes, record: DatasetRecord, tag: str, array: str) -> ChunkTable:
    """What the live nodes keep of an array in a snapshot: the newest generation of then."""
    return _kept_table(nodes, record, find_snapshot(record, tag)["id"], array)


def _kept_table(nodes: Nodes, record: DatasetRecord, identity: str, array: str) -> ChunkTable:
    return merge(nodes.each_node(storage.kept, identity, array), record.array(array).grid.size)


def _kept_tables(nodes: Nodes, record: DatasetRecord, identity: str) -> dict[str, ChunkTable]:
    return {path: _kept_table(nodes, record, identity, path) for path in record.arrays}


def _current_tables(nodes: Nodes, record: DatasetRecord) -> dict[str, ChunkTable]:
    return {path: catalog.chunk_table(nodes, record.name, path, metadata.grid.size) for path, metadata in record.metadata.items()}


def _snapshot_tables(nodes: Nodes, record: DatasetRecord, tag: str) -> dict[str, ChunkTable]:
    """`_kept_tables` of a snapshot in the record. ClusterError when a node that holds a part of it is away."""
    entry = find_snapshot(record, tag)
    tables = _kept_tables(nodes, record, entry["id"])
    missing = sum(int((~table.present).sum()) for table in tables.values())
    if missing:
        live = set().union(*(table.nodes for table in tables.values()))
        away = ", ".join(sorted(set(entry["nodes"]) - live)) or "a node that has lost it"
        raise ClusterError(f"{missing} chunks of snapshot {tag!r} of {record.name!r} are on {away}", "start it, then run again")
    return tables


# -- comparing ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ArrayDiff:
    """Chunks of an array that differ between two states of it, and their encoded bytes in each. chunks: of the whole array."""

    chunks: int
    differing: tuple[int, ...]
    first_nbytes: int
    second_nbytes: int


def compare(nodes: Nodes, name: str, tag: str, other: str | None = None) -> dict[str, ArrayDiff]:
    """What differs between a snapshot and another, or the dataset as it is. By array; only metadata is read."""
    record = catalog.find(nodes, name)
    first = _snapshot_tables(nodes, record, tag)
    second = _snapshot_tables(nodes, record, other) if other is not None else _current_tables(nodes, record)
    return {path: _diff(first[path].rows, second[path].rows) for path in record.arrays}


def _diff(first: NDArray[Any], second: NDArray[Any]) -> ArrayDiff:
    differing = np.flatnonzero((first["digest"] != second["digest"]) | (second["generation"] == 0))
    return ArrayDiff(
        len(first),
        tuple(differing.tolist()),
        int(first["nbytes"][differing].sum()),
        int(second["nbytes"][differing].sum()),
    )


# -- going back -----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RolledBack:
    """What a rollback did. chunks: committed, on whatever node; transforms: in-place pipelines that were undone, and that are left."""

    tag: str
    chunks: int
    nbytes: int
    undone: int
    left: int


def roll_back(nodes: Nodes, name: str, tag: str) -> RolledBack:
    """Bring the dataset back to a snapshot. Interrupted, the same call finishes it; or one with another tag.

    Nothing is changed when the snapshot is not whole: NotFound, ClusterError for a node that is away or a file that is damaged. NameTaken
    when a run is changing the dataset."""
    find_snapshot(catalog.find(nodes, name), tag)
    same = f"rollback to {tag}"  # as one run, however often it is begun: it takes over from one that died
    with leased(nodes, name, same, same):
        return _roll_back(nodes, catalog.find(nodes, name), tag)


def _roll_back(nodes: Nodes, record: DatasetRecord, tag: str) -> RolledBack:
    entry = find_snapshot(record, tag)
    if record.state != ROLLING_BACK:
        _check_ready(record)
    nodes.each_node(storage.begin, record)
    kept = _snapshot_tables(nodes, record, tag)
    shares = _shares(kept, _current_tables(nodes, record))
    shares = _without_damaged(nodes, record, tag, shares)
    if record.state != ROLLING_BACK:
        record = _publish(nodes, record.next(state=ROLLING_BACK))
    done = nodes.each_node(_restore, record, tag, shares).values()
    current = _current_tables(nodes, record)
    if any(_differs(kept[path], current[path]).any() for path in kept):
        raise NameTaken(record.name, "was changed by a run while it was rolled back; when that has ended, roll back again")
    _publish(nodes, record.next(state="ready", transforms=tuple(entry["transforms"])))
    undone, left = len(record.transforms) - len(entry["transforms"]), len(entry["transforms"])
    return RolledBack(tag, sum(chunks for chunks, _ in done), sum(nbytes for _, nbytes in done), undone, left)


Shares = dict[str, dict[str, Share]]
"""By node, then by array."""


def _differs(kept: ChunkTable, current: ChunkTable) -> NDArray[np.bool_]:
    """Chunks whose newest generation is not what was kept."""
    different = [kept.rows[column] != current.rows[column] for column in ("nbytes", "digest", "recipe", "inputs")]
    return np.asarray(np.any(different, axis=0) | ~current.present)


def _shares(kept: Mapping[str, ChunkTable], current: Mapping[str, ChunkTable]) -> Shares:
    """What each node that kept the newest of a chunk is to have of it. Pure.

    A chunk that differs gets the next generation; one that was rolled back before, on some of its nodes, keeps that generation."""
    found: Shares = {}
    for path, table in kept.items():
        differs = _differs(table, current[path])
        generations = current[path].rows["generation"].astype(np.int64) + differs
        for number in np.unique(table.holders):
            chunks = np.flatnonzero(table.holders == number)
            for node in table.sets[number]:
                share = Share(chunks, generations[chunks], differs[chunks])
                before = found.setdefault(node, {}).get(path)
                found[node][path] = share if before is None else before.joined(share)
    return found


def _without_damaged(nodes: Nodes, record: DatasetRecord, tag: str, shares: Shares) -> Shares:
    """The shares without chunks whose kept file is damaged, where another node has the same. ClusterError where none has."""
    damaged = nodes.each_node(_damaged, record, tag, shares)
    sound = {
        node: {path: share.without(damaged.get(node, {}).get(path, ())) for path, share in part.items()}
        for node, part in shares.items()
    }
    lost = []
    for node, part in damaged.items():
        for path, chunks in part.items():
            left = {chunk for other in sound.values() if path in other for chunk in other[path].chunks.tolist()}
            lost += [f"{record.chunk_name(path, chunk)} on {node}" for chunk in chunks if chunk not in left]
    if lost:
        reason = (
            f"snapshot {tag!r} of {record.name!r} is damaged: {len(lost)} of its chunks are not what was kept, such as {lost[0]}"
        )
        raise ClusterError(reason, "nothing was changed; roll back to another one")
    return sound


def _damaged(store: NodeStore, record: DatasetRecord, tag: str, shares: Shares) -> dict[str, list[int]]:
    return storage.damaged(store, record, tag, shares.get(store.node_id, {}))


def _restore(store: NodeStore, record: DatasetRecord, tag: str, shares: Shares) -> tuple[int, int]:
    return storage.restore(store, record, tag, shares.get(store.node_id, {}))
