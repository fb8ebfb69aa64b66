"""Who has a CUDA device of this machine: one worker, or those that share it.

A claim is a lock of the kernel's on a file named for the device. It goes with its process, however that ends; the file stays."""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path

from gpuflow.errors import DeviceUnavailable

_FOLDER = Path("/run/lock")
"""Of the machine, not of a user or a store: workers of other stores may have the same devices."""


class DeviceClaim:
    """`close` gives it up."""

    def __init__(self, uuid: str, *, share: bool = False, folder: Path | None = None) -> None:
        """share: with others that share it. DeviceUnavailable when another process has it."""
        path = (folder or _folder()) / f"gpuflow-{uuid.replace('/', '-')}.lock"
        self._file = _open(path)
        try:
            fcntl.flock(self._file, (fcntl.LOCK_SH if share else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._file, 20, 0).decode(errors="replace").strip() or "of another user"
            os.close(self._file)
            remedy = "end that one, or start both with --share-device"
            raise DeviceUnavailable(f"CUDA device {uuid} is already that of another worker (process {holder})", remedy) from None
        self._sign()

    def _sign(self) -> None:
        """For the message to who comes second."""
        try:
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, f"{os.getpid()}\n".encode(), 0)
        except OSError:  # the file is another user's: the lock counts
            return

    def close(self) -> None:
        """Others may have the device."""
        os.close(self._file)


def _folder() -> Path:
    return _FOLDER if os.access(_FOLDER, os.W_OK) else Path(tempfile.gettempdir())


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except PermissionError:  # another user's; for a lock it does to read it
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
