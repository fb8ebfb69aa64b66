"""A file in shared memory that lives as long as a process uses it.

Whoever uses it holds a shared lock on it (flock), which the kernel takes back when the process ends, however it ends; the last one to
leave removes the file. One that nobody holds, because its users were killed, goes at the next `sweep`. Whoever has the lock looks whether
the file still has its name: one without is used by nobody."""

from __future__ import annotations

import fcntl
import os
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.util import Finalize
from pathlib import Path

_SHARED_MEMORY = Path("/dev/shm")
_LOCK = "hhqqi"  # struct flock of 64-bit Linux: type, whence, start, length, process


def folder() -> Path:
    """Where such files lie: in memory, or on disk where the system has no shared memory."""
    return _SHARED_MEMORY if os.access(_SHARED_MEMORY, os.W_OK) else Path(tempfile.gettempdir())


def sweep() -> None:
    """Remove this user's files that no process uses."""
    for path in folder().glob(f"{_prefix()}*"):
        with suppress(OSError):  # it went meanwhile
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
            try:
                _remove_unused(descriptor, path)
            finally:
                os.close(descriptor)


class SharedFile:
    """`name`, of `nbytes`, zeros where nobody has written yet: the same for every process of this user on this machine. Used by one
    process: another one, be it forked, opens its own. Takes memory only where it was `allocated`. OSError."""

    def __init__(self, name: str, nbytes: int) -> None:
        self.path = folder() / f"{_prefix()}{name}"
        self.descriptor = _joined(self.path)
        # Processes of multiprocessing end without `atexit`. Threads may still be at work then, so that the file stays open.
        self._leave = Finalize(None, _leave, (self.descriptor, self.path), exitpriority=0)
        try:
            if os.fstat(self.descriptor).st_size < nbytes:
                os.ftruncate(self.descriptor, nbytes)
        except OSError:
            self.close()
            raise

    @contextmanager
    def alone(self) -> Iterator[None]:
        """No other process is in here, nor another SharedFile of this process; its threads may be. Ends with the process that is."""
        # A lock of the open file (OFD): those of the process would go when anything in it closes the same file.
        fcntl.fcntl(self.descriptor, fcntl.F_OFD_SETLKW, struct.pack(_LOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0))
        try:
            yield
        finally:
            fcntl.fcntl(self.descriptor, fcntl.F_OFD_SETLKW, struct.pack(_LOCK, fcntl.F_UNLCK, os.SEEK_SET, 0, 1, 0))

    def allocate(self, start: int, nbytes: int) -> None:
        """Have memory for that part, so that writing to it cannot fail: a mapped page that the system then lacks kills the process
        (SIGBUS). OSError when there is no room."""
        os.posix_fallocate(self.descriptor, start, nbytes)

    @property
    def allocated_nbytes(self) -> int:
        """What it takes, as the system counts it."""
        return os.fstat(self.descriptor).st_blocks * 512

    def close(self) -> None:
        """Use it no more. Once, by the process that opened it."""
        self._leave()
        os.close(self.descriptor)


def _prefix() -> str:
    return f"gpuflow-loader-{os.geteuid()}-"


def _joined(path: Path) -> int:
    """The file, locked. PermissionError when another user has laid one there."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            if os.fstat(descriptor).st_uid != os.geteuid():
                raise PermissionError(f"{path} is another user's")
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            if _has_name(descriptor, path):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # it was removed before it was locked


def _leave(descriptor: int, path: Path) -> None:
    # Given back first: of two that leave at once, each would else find the other's. And given back by name: a process that was forked
    # meanwhile holds the same lock.
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    _remove_unused(descriptor, path)
    fcntl.flock(descriptor, fcntl.LOCK_UN)


def _remove_unused(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    if _has_name(descriptor, path):
        path.unlink()


def _has_name(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False
