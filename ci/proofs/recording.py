"""What a process changes below a folder, in order: the operations that a crash may cut short, lose or tear.

Every call of `os` that changes a file or a directory is seen, `exchange` too, and each transaction of the manifest by how far it took the
WAL. Files and directories are numbered, since names come and go."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial, wraps
from pathlib import Path
from typing import Any

import pytest

from gpuflow.storage import node

MANIFEST = "manifest.sqlite"
Entry = tuple[int, str]
"""(directory, name)"""


@dataclass(frozen=True)
class Entries:
    """Names change, all of them at once: {entry: what it names afterwards, None for nothing}.

    temporary: only such as lie in a writer's folder, its lock not among them."""

    changes: dict[Entry, int | None]
    temporary: bool = False


@dataclass(frozen=True)
class Write:
    """`data` at `offset` of a file; None cuts the file off there."""

    node: int
    offset: int
    data: bytes | None


@dataclass(frozen=True)
class Sync:
    """A file's bytes, or a directory's entries, are durable."""

    node: int


@dataclass(frozen=True)
class WalWrite:
    """A transaction took the manifest's WAL to this length."""

    nbytes: int


@dataclass(frozen=True)
class WalSync:
    """The WAL is durable as far as it goes."""


@dataclass(frozen=True)
class Acknowledged:
    """The caller was told that it is done."""


Operation = Entries | Write | Sync | WalWrite | WalSync | Acknowledged


@dataclass
class Recording:
    """What the folder was, durably, when recording began, and what happened since. Node 0 is the folder.

    acknowledged, lossy: of the crash before, when it is a recovery that was recorded; see crash_states.py."""

    entries: dict[Entry, int] = field(default_factory=dict)
    directories: set[int] = field(default_factory=set)
    contents: dict[int, bytes] = field(default_factory=dict)
    operations: list[Operation] = field(default_factory=list)
    main: bytes = b""
    wal: bytes = b""
    wal_nbytes: int = 0
    acknowledged: int = 0
    lossy: bool = False

    def acknowledge(self) -> None:
        self.operations.append(Acknowledged())


class Recorder:
    """Records while `recording` is set."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.recording: Recording | None = None
        self._numbers: dict[tuple[int, int], int] = {}  # (device, inode) -> node
        self._count = 0
        self._durable = True
        self._wal_nbytes = 0

    # -- beginning and end --------------------------------------------------------------------------------------------------------

    def begin(self) -> Recording:
        """What lies in the folder now counts as durable."""
        self._numbers.clear()
        self._count = 0
        begun = Recording(main=self._manifest().read_bytes(), wal_nbytes=self._wal_size())
        begun.directories.add(self._number(self.folder))
        for path in sorted(self.folder.rglob("*")):
            if path.name.startswith(MANIFEST):
                continue
            known = self._known(path)
            begun.entries[self._entry(path)] = number = self._number(path) if known is None else known
            if path.is_dir():
                begun.directories.add(number)
            else:
                begun.contents[number] = path.read_bytes()
        self._wal_nbytes = begun.wal_nbytes
        self.recording = begun
        return begun

    def end(self) -> None:
        """Before the store is closed, which empties the WAL."""
        assert self.recording is not None
        recording, self.recording = self.recording, None
        assert self._manifest().read_bytes() == recording.main, "the WAL was emptied meanwhile"
        wal = self._manifest("-wal")
        recording.wal = wal.read_bytes() if wal.exists() else b""

    def _manifest(self, suffix: str = "") -> Path:
        return self.folder / "root" / f"{MANIFEST}{suffix}"

    def _wal_size(self) -> int:
        wal = self._manifest("-wal")
        return wal.stat().st_size if wal.exists() else 0

    # -- numbers ------------------------------------------------------------------------------------------------------------------

    def _number(self, path: str | Path) -> int:
        """A new number, as an inode's may come again."""
        status = os.lstat(path)
        self._numbers[status.st_dev, status.st_ino] = self._count
        self._count += 1
        return self._count - 1

    def _known(self, path: str | Path | int) -> int | None:
        status = os.fstat(path) if isinstance(path, int) else os.lstat(path)
        return self._numbers.get((status.st_dev, status.st_ino))

    def _entry(self, path: str | Path) -> Entry:
        folder, name = os.path.split(path)
        status = os.stat(folder)
        return self._numbers[status.st_dev, status.st_ino], name

    # -- the calls ----------------------------------------------------------------------------------------------------------------

    def _note(self, operation: Operation) -> None:
        assert self.recording is not None
        self.recording.operations.append(operation)

    def before(self, name: str, *args: Any, dir_fd: int | None = None, **_: Any) -> Callable[[], None] | None:
        """What to note of a call of `os` that is about to be made, once it has succeeded."""
        if self.recording is None:
            return None
        if dir_fd is not None:
            args = (f"/proc/self/fd/{dir_fd}/{args[0]}", *args[1:])
        noted: Callable[[], None] | None = getattr(self, f"_{name}")(*args)
        return noted

    def _open(self, path: str | Path, flags: int, *_: Any) -> Callable[[], None] | None:
        assert not flags & os.O_TRUNC, "not recorded"
        if not flags & os.O_CREAT or os.path.lexists(path):
            return None
        return lambda: self._change({path: self._number(path)})

    def _mkdir(self, path: str | Path, *_: Any) -> Callable[[], None]:
        def note() -> None:
            assert self.recording is not None
            number = self._number(path)
            self.recording.directories.add(number)
            self._change({path: number})

        return note

    def _change(self, changes: dict[str | Path, int | None]) -> None:
        staging = str(self.folder / "root" / "staging")
        places = [os.path.relpath(os.path.realpath(os.path.dirname(path)), staging) for path in changes]
        inside = all(place.split("/")[0] not in (".", "..") for place in places)
        locks = any(os.path.basename(path) == "lock" for path in changes)
        self._note(Entries({self._entry(path): number for path, number in changes.items()}, inside and not locks))

    def _write(self, descriptor: int, data: Any) -> Callable[[], None] | None:
        number = self._known(descriptor)
        if number is None:
            return None
        offset, written = os.lseek(descriptor, 0, os.SEEK_CUR), bytes(data)
        return lambda: self._note(Write(number, offset, written))

    def _ftruncate(self, descriptor: int, nbytes: int) -> Callable[[], None] | None:
        number = self._known(descriptor)
        return None if number is None else lambda: self._note(Write(number, nbytes, None))

    def _fsync(self, descriptor: int) -> Callable[[], None] | None:
        number = self._known(descriptor)
        return None if number is None else lambda: self._note(Sync(number))

    _fdatasync = _fsync

    def _rename(self, source: str | Path, target: str | Path) -> Callable[[], None] | None:
        if not os.path.lexists(source) or (os.path.lexists(target) and os.path.samefile(source, target)):
            return None  # it fails, or two names of one file stay as they are
        moved = self._known(source)
        return lambda: self._change({source: None, target: moved})

    _replace = _rename

    def _exchange(self, one: str, other: str) -> Callable[[], None] | None:
        if not (os.path.lexists(one) and os.path.lexists(other)):
            return None
        numbers = self._known(one), self._known(other)
        return lambda: self._change({one: numbers[1], other: numbers[0]})

    def _link(self, source: str | Path, target: str | Path) -> Callable[[], None]:
        number = self._known(source)
        return lambda: self._change({target: number})

    def _unlink(self, path: str | Path) -> Callable[[], None]:
        return lambda: self._change({path: None})

    _rmdir = _unlink

    # -- the manifest -------------------------------------------------------------------------------------------------------------

    def after_statement(self, statement: str, open_transaction: bool) -> None:
        if statement.startswith("PRAGMA synchronous="):
            self._durable = statement.endswith("FULL")
        if self.recording is None or open_transaction:
            return
        nbytes = self._wal_size()
        if nbytes != self._wal_nbytes:
            self._wal_nbytes = nbytes
            self._note(WalWrite(nbytes))
            if self._durable:
                self._note(WalSync())


_CALLS = ("open", "mkdir", "write", "ftruncate", "fsync", "fdatasync", "rename", "replace", "link", "unlink", "rmdir")


@contextmanager
def recorder(folder: Path, *, exchange: bool = True, synced: bool = True) -> Iterator[Recorder]:
    """A recorder of `folder`, in which the store lies at `root`. Without `exchange` the file system has no such call; without `synced`
    fsyncs are noted and not made: what the recorded process itself sees is the same."""
    made = Recorder(folder)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("fsync", "fdatasync") if not synced else ():
            patch.setattr(os, name, lambda descriptor: None)
        for name in _CALLS:
            patch.setattr(os, name, _noting(made, name, getattr(os, name)))
        patch.setattr(node, "exchange", _noting(made, "exchange", node.exchange) if exchange else lambda one, other: False)
        patch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=_connection(made)))
        yield made


def _noting(made: Recorder, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        note = made.before(name, *args, **kwargs)
        result = function(*args, **kwargs)
        if note is not None and result is not False:  # an exchange that the file system has not
            note()
        return result

    return call


def _connection(made: Recorder) -> type[sqlite3.Connection]:
    class Connection(sqlite3.Connection):
        def execute(self, statement: str, *args: Any) -> sqlite3.Cursor:
            try:
                return super().execute(statement, *args)
            finally:
                made.after_statement(statement, self.in_transaction)

        def executemany(self, statement: str, *args: Any) -> sqlite3.Cursor:
            try:
                return super().executemany(statement, *args)
            finally:
                made.after_statement(statement, self.in_transaction)

    return Connection
