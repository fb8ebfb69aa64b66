"""A process's right to write in a store root, and how others see that it is gone.

Each writer has a folder `staging/<writer>/` for its temporary files, with a lock file that it holds (flock) while it lives. The kernel
releases the lock when the process dies, however it dies, so a writer whose lock can be taken is dead, and its work can be settled."""

from __future__ import annotations

import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path


class Writer:
    """The live writer of this process in `root`. Close it when done; a killed process needs no closing."""

    def __init__(self, root: Path) -> None:
        self.name = uuid.uuid4().hex
        staging = root / "staging"
        staging.mkdir(exist_ok=True)
        hidden = staging / f".{self.name}"  # appears under its name only once it is locked
        hidden.mkdir()
        self._lock = _take(hidden / "lock")
        self.folder = hidden.rename(staging / self.name)
        self._numbers = count()

    def temporary(self) -> Path:
        """A path for a new temporary file, on the root's own file system."""
        return self.folder / str(next(self._numbers))

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)


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
def dead_writers(root: Path) -> Iterator[list[str]]:
    """Names of the writers in `root` that died. They are held meanwhile, so that one process settles each; their temporary files
    go when the block ends without an error."""
    held: dict[str, int] = {}
    try:
        for folder in sorted((root / "staging").glob("[0-9a-f]*")):
            try:
                held[folder.name] = _take(folder / "lock")
            except (BlockingIOError, FileNotFoundError):
                continue
        yield list(held)
        for name in held:
            shutil.rmtree(root / "staging" / name, ignore_errors=True)
    finally:
        for descriptor in held.values():
            os.close(descriptor)
