"""Whether a root's file system does what the store needs of it: tried out, in a writer's folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

from gpuflow.storage.disk import exchange, sync_directories, write_file
from gpuflow.storage.findings import Finding
from gpuflow.storage.spares import write_over
from gpuflow.storage.writer import Writer
from gpuflow.units import format_nbytes

_LOW_NBYTES = 2**30  # the spares of a few processes, and the chunks that they have staged
_LOW_FILES = 10_000
_MEND = "mend the permissions, or choose another root"


def check_room(root: Path) -> list[Finding]:
    """Free space and free inodes."""
    status = os.statvfs(root)
    free, findings = status.f_bavail * status.f_frsize, []
    if free < _LOW_NBYTES:
        findings.append(Finding(f"{format_nbytes(free)} are free", "remove datasets or snapshots, or add room"))
    if status.f_files and status.f_favail < _LOW_FILES:
        findings.append(Finding(f"only {status.f_favail} more files can be made", "remove datasets or snapshots"))
    return findings


def check_permissions(root: Path) -> list[Finding]:
    """Of the root's own entries."""
    paths = [root, *(root / name for name in ("datasets", "staging", "snapshots")), *root.glob("manifest.sqlite*")]
    wrong = [path.name or str(path) for path in paths if path.exists() and not os.access(path, os.R_OK | os.W_OK)]
    return [Finding("not readable and writable by this user", _MEND, tuple(wrong))] if wrong else []


def check_features(root: Path) -> list[Finding]:
    """Try what commits, snapshots and the manifest do."""
    try:
        writer = Writer(root)
    except OSError as error:
        return [Finding(f"nothing can be written ({error.strerror})", _MEND)]
    try:
        return list(_tried(Path(writer.folder)))
    finally:
        writer.close()


def _tried(folder: Path) -> Iterator[Finding]:
    one, other = folder / "one", folder / "other"
    local = "put the root on a local file system such as ext4 or XFS"
    slower = "nothing has to be done"
    trials: list[tuple[Callable[[], bool], str, str, bool]] = [
        (lambda: _wrote(one, other), "files cannot be written durably (fsync)", local, True),
        (lambda: _linked(one, folder / "link"), "no hard links: no snapshots, no `ingest --link`", local, True),
        (lambda: _locked(one), "no file locks (flock): processes cannot tell who lives", local, True),
        (lambda: _wal(folder / "wal.sqlite"), "SQLite cannot use its write-ahead log", local, True),
        (lambda: exchange(str(one), str(other)), "files cannot be exchanged: commits are slower", slower, False),
        (lambda: write_over(str(other), b"again"), "no write leases: commits write new files, which is slower", slower, False),
    ]
    for trial, problem, remedy, serious in trials:
        works, why = False, ""
        try:
            works = trial()
        except (OSError, sqlite3.Error) as error:
            why = f" ({error})"
        if not works:
            yield Finding(problem + why, remedy, (), serious)


def _wrote(*paths: Path) -> bool:
    for path in paths:
        write_file(path, b"gpuflow doctor")
    sync_directories([paths[0].parent])
    return True


def _linked(path: Path, link: Path) -> bool:
    os.link(path, link)
    same = os.stat(path).st_ino == os.stat(link).st_ino and os.stat(path).st_nlink == 2
    os.unlink(link)
    return same


def _locked(path: Path) -> bool:
    descriptors = [os.open(path, os.O_RDWR) for _ in range(2)]
    try:
        fcntl.flock(descriptors[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptors[1], fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
        return True
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _wal(path: Path) -> bool:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        mode = connection.execute("PRAGMA journal_mode=WAL").fetchone()[0]
        connection.execute("CREATE TABLE t (x)")
        return str(mode) == "wal"
