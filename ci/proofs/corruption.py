"""c. What changes behind gpuflow's back is found when it is read, and named; nothing else is harmed by it.

Every bit of every chunk flipped, every length that it can be cut to, files that are gone, or swapped, or no files; and bits of the
manifest and of zarr.json. A change of the manifest counts as found when it is refused, when reading a chunk is an error that names it, or
when `gpuflow doctor` finds it; as harmless when what `_kept` reads of the manifest is all the same. The
files zarr.json are not read again by gpuflow: `gpuflow doctor` holds them against the record."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from gpuflow.errors import ChunkCorrupt, GpuflowError
from gpuflow.storage import snapshots
from gpuflow.storage.buffers import Slot
from gpuflow.storage.doctor import examine
from gpuflow.storage.node import NodeStore
from gpuflow.storage.tail import Tail
from tests.storage.scenarios import BEFORE
from tests.storage.stores import ARRAY, content, new_store

MANIFEST = "manifest.sqlite"


@dataclass
class Counts:
    """Changes made; those that were found, those that changed nothing that is kept, and what was wrong."""

    made: int = 0
    found: int = 0
    harmless: int = 0
    wrong: list[str] = field(default_factory=list)


# -- chunks ----------------------------------------------------------------------------------------------------------------------------


def chunks(folder: Path) -> dict[str, Counts]:
    """By kind of change."""
    counts: dict[str, Counts] = {}
    folder.mkdir()
    with closing(new_store(folder / "root")) as store:
        paths = {chunk: store.path("d", ARRAY, chunk) for chunk in BEFORE}
        for kind, touched, change in _changes(paths):
            count = counts.setdefault(kind, Counts())
            count.made += 1
            change()
            errors = _errors(store)
            for chunk, path in paths.items():
                _write(path, content(chunk, 1))
            if set(errors) == touched and all(f"d/{ARRAY}/c/{chunk}" in error for chunk, error in errors.items()):
                count.found += 1
            else:
                count.wrong.append(f"{kind} of {sorted(touched)}: {errors}")
            assert _errors(store) == {}, "whole again, and not seen to be"
    return counts


def _changes(paths: dict[int, Path]) -> Iterator[tuple[str, set[int], Callable[[], None]]]:
    for chunk, path in paths.items():
        data = content(chunk, 1)
        for bit in range(8 * len(data)):
            yield "bit flipped", {chunk}, partial(_write, path, _flipped(data, bit))
        for nbytes in range(len(data)):
            yield "cut short", {chunk}, partial(_write, path, data[:nbytes])
        yield "made longer", {chunk}, partial(_write, path, data + b"\0")
        yield "deleted", {chunk}, path.unlink
        yield "a folder in its place", {chunk}, partial(_make_folder, path)
        for other in (number for number in paths if number > chunk):
            yield "swapped", {chunk, other}, partial(_swap, path, paths[other])


def _flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def _write(path: Path, data: bytes) -> None:
    if path.is_dir():
        path.rmdir()
    path.write_bytes(data)


def _make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _swap(one: Path, two: Path) -> None:
    between = one.with_name("between")
    os.rename(one, between)
    os.rename(two, one)
    os.rename(between, two)


def _errors(store: NodeStore) -> dict[int, str]:
    """What reading each chunk says, where it says anything. AssertionError when wrong bytes are read."""
    errors = {}
    slot = Slot()
    for chunk in BEFORE:
        replica = store.manifest.replica("d", ARRAY, chunk)
        assert replica is not None
        known = store.read_known(str(store.path("d", ARRAY, chunk)), replica, slot.stored)
        assert known is None or bytes(known) == content(chunk, 1)
        try:
            assert store.read("d", ARRAY, chunk)[1] == content(chunk, 1)
        except ChunkCorrupt as error:
            errors[chunk] = str(error)
    return errors


# -- the manifest ----------------------------------------------------------------------------------------------------------------------


def manifest(folder: Path, flips: int, seed: int) -> Counts:
    """Single bits of the file, at random, and the file cut at page ends and within pages."""
    counts, generator = Counts(), random.Random(f"manifest {seed}")
    folder.mkdir()
    with closing(new_store(folder / "root")) as store:
        record = store.record("d").next(snapshots={"s": {"id": "id"}})
        snapshots.take(store, store.record("d"), "s", "id")
        store.put_record(record)
    assert examine(folder / "root") == []
    whole = (folder / "root" / MANIFEST).read_bytes()
    before = _kept(folder / "root")
    assert examine(folder / "root") == [], "what is read leaves something that a doctor finds"
    used = [byte for byte, value in enumerate(whole) if value]  # the rest is room that nothing fills
    for _ in range(flips):
        bit = 8 * generator.choice(used) + generator.randrange(8)
        _count_manifest(counts, folder, _flipped(whole, bit), before, f"bit {bit}")
    for nbytes in range(1, len(whole), 2048):
        _count_manifest(counts, folder, whole[:nbytes], before, f"cut to {nbytes}")
    return counts


def _count_manifest(counts: Counts, folder: Path, data: bytes, before: object, what: str) -> None:
    root = folder / "changed"
    shutil.copytree(folder / "root", root)
    (root / MANIFEST).write_bytes(data)
    counts.made += 1
    try:
        if _kept(root) == before:
            counts.harmless += 1
        elif examine(root):
            counts.found += 1
        else:
            counts.wrong.append(what)
    except GpuflowError:
        counts.found += 1
    except Exception as error:  # noqa: BLE001 - an error that is not gpuflow's names nothing and says nothing to do
        counts.wrong.append(f"{what}: {type(error).__name__}: {error}")
    shutil.rmtree(root)


def _kept(root: Path) -> object:
    """All that the store at `root` says: every chunk's bytes, records, replicas by each way to read them, snapshots and what they keep."""
    with closing(NodeStore(root, create=False)) as store:
        store.recover()
        manifest = store.manifest
        records = [record.to_json() for record in manifest.records()]
        one = [manifest.replica("d", ARRAY, chunk) for chunk in BEFORE]
        tables = manifest.replicas("d", ARRAY).tobytes(), snapshots.kept(store, "id", ARRAY).tobytes()
        newest, changed = manifest.changes(0)
        listed = {name: [column.tolist() for column in columns] for name, columns in changed.items()}
        _, later = manifest.changes(1)
        listed_later = {name: [column.tolist() for column in columns] for name, columns in later.items()}
        few = manifest.version("d"), manifest.removed(), manifest.intents(), [manifest.has_intent("d", ARRAY, c) for c in BEFORE]
        entered = manifest.query("SELECT id, dataset, tag, version FROM snapshot ORDER BY id")
        by_name = manifest.query("SELECT id FROM snapshot WHERE dataset = 'd' AND tag = 's'")
        data = [store.read("d", ARRAY, chunk)[1] for chunk in BEFORE]
        with closing(Tail(root)) as tail:
            data.append(repr(tail.page(0).to_wire()).encode())
        return records, one, tables, newest, listed, listed_later, few, entered, by_name, data


# -- zarr.json -------------------------------------------------------------------------------------------------------------------------


def documents(folder: Path) -> Counts:
    """Every bit of every zarr.json flipped, every length that it can be cut to, and the file deleted."""
    counts, root = Counts(), folder / "root"
    folder.mkdir()
    new_store(root).close()
    assert examine(root) == []
    for path in sorted((root / "datasets").rglob("zarr.json")):
        data = path.read_bytes()
        changes = {f"bit {bit}": _flipped(data, bit) for bit in range(8 * len(data))}
        changes |= {f"cut to {nbytes}": data[:nbytes] for nbytes in range(len(data))}
        for what, changed in changes.items():
            path.write_bytes(changed)
            _count_document(counts, root, path, json.loads(data), what)
        path.unlink()
        _count_document(counts, root, path, json.loads(data), "deleted")
        path.write_bytes(data)
    return counts


def _count_document(counts: Counts, root: Path, path: Path, before: object, what: str) -> None:
    counts.made += 1
    name = str(path.relative_to(root))
    if any(name in finding.items for finding in examine(root)):
        counts.found += 1
    elif path.exists() and json.loads(path.read_bytes()) == before:  # white space, and letters that JSON may write in two ways
        counts.harmless += 1
    else:
        counts.wrong.append(f"{name}, {what}")
