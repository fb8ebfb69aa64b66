"""The states in which a crash may leave the files of a recording.

Pure, but for `CrashState.lay`. When a process dies, everything it did is there, in order, and a last write in part. When the power fails,
 - a directory's entries are durable once it was synced, and what renames and exchanges do is done as a whole; of the other changes any may
   be there, in any order, only not before an earlier change of the same entry;
 - a file's bytes are durable once it was synced; later writes may be there, or not, or torn, or only the file's new length;
 - the WAL is durable as far as SQLite synced it, and what follows is there up to any point, with anything behind it.
States that differ only in the bytes of temporary files are one, since nothing ever reads those; and such files are all there or none."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path

from ci.proofs.recording import MANIFEST, Acknowledged, Entries, Entry, Operation, Recording, Sync, WalSync, WalWrite, Write

Tree = dict[str, int | None]
"""Number of the file by path, None for a directory."""


@dataclass(frozen=True)
class CrashState:
    """files: bytes by number. acknowledged: how many steps the caller had been told are done. lossy: whether the power failed."""

    tree: tuple[tuple[str, int | None], ...]
    files: tuple[tuple[int, bytes], ...]
    main: bytes
    wal: bytes
    acknowledged: int
    lossy: bool

    def lay(self, folder: Path) -> None:
        """Make the files, in a new folder."""
        files, laid = dict(self.files), dict[int, Path]()
        folder.mkdir()
        for name, number in self.tree:
            path = folder / name
            if number is None:
                path.mkdir()
            elif number in laid:
                os.link(laid[number], path)
            else:
                path.write_bytes(files[number])
                laid[number] = path
        (folder / "root" / MANIFEST).write_bytes(self.main)
        if self.wal:
            (folder / "root" / f"{MANIFEST}-wal").write_bytes(self.wal)


def killed(recording: Recording) -> Iterator[CrashState]:
    """The states that a process leaves that dies between two operations or in the middle of one."""
    for number in range(len(recording.operations) + 1):
        done = recording.operations[:number]
        last = done[-1] if done else None
        yield _state(recording, done, _all(done), False)
        if isinstance(last, Write) and last.data:
            half = Write(last.node, last.offset, last.data[: len(last.data) // 2])
            yield _state(recording, [*done[:-1], half], _all(done), False)


def power_lost(recording: Recording, most: int | None = None) -> Iterator[CrashState]:
    """The states that a power failure may leave. most: of each point in time, an even choice."""
    for number in range(len(recording.operations) + 1):
        states = list(_lost_after(recording, recording.operations[:number]))
        step = 1 if most is None else max(1, len(states) // most)
        yield from states[::step]


def _all(done: Sequence[Operation]) -> list[int]:
    return [number for number, operation in enumerate(done) if isinstance(operation, Entries)]


def _state(recording: Recording, done: Sequence[Operation], kept: Sequence[int], lossy: bool) -> CrashState:
    """The state in which everything but entries is as last written."""
    tree = _tree(recording, done, kept)
    files = {number: _written(recording, number, done) for number in tree.values() if number is not None}
    lengths = [operation.nbytes for operation in done if isinstance(operation, WalWrite)]
    wal = recording.wal[: lengths[-1] if lengths else recording.wal_nbytes]
    return _made(recording, tree, files, wal, done, lossy)


def _made(
    recording: Recording, tree: Tree, files: Mapping[int, bytes], wal: bytes, done: Sequence[Operation], lossy: bool
) -> CrashState:
    acknowledged = recording.acknowledged + sum(isinstance(operation, Acknowledged) for operation in done)
    names, contents = tuple(sorted(tree.items())), tuple(sorted(files.items()))
    return CrashState(names, contents, recording.main, wal, acknowledged, lossy or recording.lossy)


def _lost_after(recording: Recording, done: Sequence[Operation]) -> Iterator[CrashState]:
    wals = _wals(recording, done)
    seen = set()
    for kept in _kept(done):
        tree = _tree(recording, done, kept)
        key = tuple(sorted(tree.items()))
        if key in seen:
            continue
        seen.add(key)
        numbers = sorted({number for number in tree.values() if number is not None})
        read = {number for path, number in tree.items() if number is not None and not path.startswith("root/staging/")}
        choices = [_contents(recording, number, done)[: None if number in read else 1] for number in numbers]
        for wal, *contents in product(wals, *choices):
            yield _made(recording, tree, dict(zip(numbers, contents, strict=True)), wal, done, True)


# -- names ---------------------------------------------------------------------------------------------------------------------------


def _kept(done: Sequence[Operation]) -> Iterator[list[int]]:
    """Which of the changes of entries may be there, each time with all that they rest upon."""
    needs: dict[int, set[int]] = {}  # change -> earlier changes of the same entries
    latest: dict[Entry, int] = {}
    touched: dict[int, list[int]] = {}  # directory -> changes in it
    sure: set[int] = set()
    for number, operation in enumerate(done):
        if isinstance(operation, Sync):
            sure.update(touched.pop(operation.node, ()))
        elif isinstance(operation, Entries):
            needs[number] = {latest[entry] for entry in operation.changes if entry in latest}
            for entry in operation.changes:
                latest[entry] = number
                touched.setdefault(entry[0], []).append(number)
    sure = _with_needed(sure, needs)
    unsure = [number for number in needs if number not in sure]
    free = {number for number in unsure if done[number].temporary}  # type: ignore[union-attr]
    for kept in _closed([number for number in unsure if number not in free], needs, sure, free):
        yield sorted(kept)
        if free:
            yield sorted(_with_needed(kept - free, needs))


def _closed(rest: Sequence[int], needs: Mapping[int, set[int]], kept: set[int], free: set[int]) -> Iterator[set[int]]:
    """Every choice among `rest` that leaves out nothing that a chosen one needs, with all of `free` that may be there."""
    if not rest:
        yield kept | {number for number in free if _all_needed(number, needs) <= kept | free}
        return
    first, *others = rest
    yield from _closed(others, needs, kept, free)
    if _all_needed(first, needs) - free <= kept:
        yield from _closed(others, needs, kept | {first}, free)


def _all_needed(number: int, needs: Mapping[int, set[int]]) -> set[int]:
    """The changes that one rests upon, directly or not; without itself."""
    return _with_needed(needs[number], needs)


def _with_needed(numbers: set[int], needs: Mapping[int, set[int]]) -> set[int]:
    found, rest = set(numbers), list(numbers)
    while rest:
        more = needs[rest.pop()] - found
        found |= more
        rest += more
    return found


def _tree(recording: Recording, done: Sequence[Operation], kept: Sequence[int]) -> Tree:
    """What can be reached from the folder, by path."""
    entries: dict[Entry, int | None] = dict(recording.entries)
    for number in kept:
        operation = done[number]
        assert isinstance(operation, Entries)
        entries.update(operation.changes)
    inside: dict[int, list[tuple[str, int]]] = {}
    for (folder, name), node in entries.items():
        if node is not None:
            inside.setdefault(folder, []).append((name, node))
    tree: Tree = {}
    rest = [("", 0)]
    while rest:
        prefix, folder = rest.pop()
        for name, node in inside.get(folder, ()):
            if node in recording.directories:
                tree[prefix + name] = None
                rest.append((f"{prefix}{name}/", node))
            else:
                tree[prefix + name] = node
    return tree


# -- bytes ---------------------------------------------------------------------------------------------------------------------------


def _apply(content: bytes, write: Write) -> bytes:
    if write.data is None:
        return content[: write.offset].ljust(write.offset, b"\0")
    return content[: write.offset].ljust(write.offset, b"\0") + write.data + content[write.offset + len(write.data) :]


def _written(recording: Recording, node: int, done: Sequence[Operation]) -> bytes:
    """A file's bytes after all writes."""
    content = recording.contents.get(node, b"")
    for operation in done:
        if isinstance(operation, Write) and operation.node == node:
            content = _apply(content, operation)
    return content


def _contents(recording: Recording, node: int, done: Sequence[Operation]) -> list[bytes]:
    """What a power failure may leave of a file, all of it written first."""
    found = [recording.contents.get(node, b"")]
    for operation in done:
        if isinstance(operation, Sync) and operation.node == node:
            found = found[-1:]
        elif isinstance(operation, Write) and operation.node == node:
            found.append(_apply(found[-1], operation))
    torn = [piece for old, new in pairwise(found) for piece in _torn(old, new)]
    return list(dict.fromkeys([*reversed(found), *torn]))


def _torn(old: bytes, new: bytes) -> list[bytes]:
    """Half of the new bytes over the old, the half alone, and the new length with nothing in it."""
    half = new[: len(new) // 2]
    return [half + old[len(half) :], half, old[: len(new)].ljust(len(new), b"\0"), bytes(len(new))]


def _wals(recording: Recording, done: Sequence[Operation]) -> list[bytes]:
    """What may be left of the WAL, all of it first: up to the end of a transaction or cut within it, then nothing or zeros."""
    lengths = [recording.wal_nbytes]
    for operation in done:
        if isinstance(operation, WalSync):
            lengths = lengths[-1:]
        elif isinstance(operation, WalWrite):
            lengths.append(operation.nbytes)
    found = [recording.wal[:length] for length in reversed(lengths)]
    for start, end in pairwise(lengths):
        cut = recording.wal[: (start + end) // 2]
        found += [cut, cut.ljust(end, b"\0")]
    return found
