"""Failing disks: the k-th call that changes the disk raises, or kills the process."""

from __future__ import annotations

import errno
import os
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

from gpuflow.storage import node

OS_CALLS = ("write", "fsync", "fdatasync", "rename", "replace", "link", "unlink", "mkdir", "ftruncate")
_SQLITE = {
    errno.ENOSPC: (sqlite3.SQLITE_FULL, "SQLITE_FULL", "database or disk is full"),
    errno.EIO: (sqlite3.SQLITE_IOERR, "SQLITE_IOERR_WRITE", "disk I/O error"),
    errno.EROFS: (sqlite3.SQLITE_READONLY, "SQLITE_READONLY", "attempt to write a readonly database"),
}
"""What SQLite makes of them."""
SAID = {errno.ENOSPC: "full", errno.EIO: "I/O error|Input/output error", errno.EROFS: "readonly|not writable"}
"""What the user is told."""
_WRITES = ("BEGIN IMMEDIATE", "INSERT", "UPDATE", "REPLACE", "DELETE", "COMMIT")


class Faults:
    """Counts calls while `armed`. The `call`-th (from 1) fails with `code`, and those after it too with `stays`, as on a disk that is
    gone."""

    def __init__(self, call: int = 0, *, stays: bool = False, kill: bool = False, code: int = errno.ENOSPC) -> None:
        self.call, self.stays, self.kill, self.code = call, stays, kill, code
        self.armed, self.count = False, 0

    def os_error(self) -> OSError:
        return OSError(self.code, os.strerror(self.code))

    def sqlite_error(self) -> sqlite3.OperationalError:
        number, name, text = _SQLITE[self.code]
        error = sqlite3.OperationalError(text)
        error.sqlite_errorcode, error.sqlite_errorname = number, name
        return error

    def strike(self, error: Exception) -> None:
        """Called before each call."""
        if not self.armed:
            return
        self.count += 1
        if self.count == self.call or (self.stays and 0 < self.call < self.count):
            if self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise error


@contextmanager
def patched(faults: Faults) -> Iterator[Faults]:
    """Every os call of OS_CALLS and every SQLite statement that writes asks `faults` first."""
    with pytest.MonkeyPatch.context() as patch:
        for name in OS_CALLS:
            patch.setattr(os, name, _asking(faults, getattr(os, name)))
        patch.setattr(node, "exchange", _asking(faults, node.exchange))
        patch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=_connection(faults)))
        yield faults


def _asking(faults: Faults, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        faults.strike(faults.os_error())
        return function(*args, **kwargs)

    return call


def _connection(faults: Faults) -> type[sqlite3.Connection]:
    class Connection(sqlite3.Connection):
        def execute(self, statement: str, *args: Any) -> sqlite3.Cursor:
            if statement.startswith(_WRITES):
                faults.strike(faults.sqlite_error())
            return super().execute(statement, *args)

        def executemany(self, statement: str, *args: Any) -> sqlite3.Cursor:
            faults.strike(faults.sqlite_error())
            return super().executemany(statement, *args)

    return Connection
