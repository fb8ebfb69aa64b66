"""A process's right to write in a store root, and how others see that it is gone.

Each writer has a folder `staging/<writer>/` for its temporary files, with a lock file that it holds (flock) while it lives. The
kernel releases the lock when the process dies, however it dies, so a writer whose lock can be taken is dead, and its work can be
settled. A lock on `staging/` itself keeps the making of a writer and the settling of dead ones apart."""

from __future__ import annotations

import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path


class Writer:
    """The live writer of this process in `root`. Close it when done; a killed process needs no closing."""

    def __init__(self, root: Path) -> None:
        self.name = uuid.uuid4().hex
        self.folder = root / "staging" / self.name
        self.folder.parent.mkdir(exist_ok=True)
        with _locked(self.folder.parent, fcntl.LOCK_SH):
            self.folder.mkdir()
            self._lock: int | None = _take(self.folder / "lock")
        self._numbers, self._prefix = count(), f"{self.folder}/"

    def temporary(self) -> str:
        """A path for a new temporary file, on the root's own file system."""
        return f"{self._prefix}{next(self._numbers)}"

    def close(self) -> None:
        """Temporary files go. Closing twice is harmless."""
        lock, self._lock = self._lock, None
        if lock is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
            os.close(lock)


def _take(path: Path) -> int:
    """Lock `path`, at once or with BlockingIOError."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


@contextmanager
def _locked(folder: Path, kind: int) -> Iterator[None]:
    """Hold `folder` shared or alone; waits for those who hold it otherwise."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, kind)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def dead_writers(root: Path) -> Iterator[list[str]]:
    """Names of the writers in `root` that died. One process at a time has them; their temporary files go when the block ends without
    an error. No writer can be made inside the block."""
    held: dict[str, int] = {}
    with _locked(root / "staging", fcntl.LOCK_EX):
        try:
            for folder in sorted((root / "staging").iterdir()):
                with suppress(BlockingIOError, FileNotFoundError, NotADirectoryError):
                    held[folder.name] = _take(folder / "lock")
            yield list(held)
            for name in held:
                shutil.rmtree(root / "staging" / name, ignore_errors=True)
        finally:
            for descriptor in held.values():
                os.close(descriptor)
