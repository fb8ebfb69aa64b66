"""Which files of a directory are complete: by looking at them, never by what was said of them.

A file is complete when nobody on this machine has it open for writing and it holds all that it says it holds. So a missed or doubled
notification does no harm, and neither does a clock that jumps: times are only compared for equality."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpuflow.errors import SourceError
from gpuflow.objectstore.sources.image_files import is_image
from gpuflow.objectstore.sources.open import ZARR_MARKERS

SUCCESS = "_SUCCESS"
"""A file that a Zarr directory gets once it is complete, which nothing else tells; as Hadoop and Spark write it."""
SUPPORTED = f".npy files, images, and Zarr directories that hold a file {SUCCESS} once they are complete"
_PARTIAL = (".tmp", ".part", ".partial", ".crdownload", ".swp", "~")

Stamp = tuple[int, int, int]
"""Of a file: its inode, size and time. Another one: another file."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """Something in the directory. waiting: its writer is not done; reason: why it cannot be appended as it is, "" when it can."""

    path: Path
    stamp: Stamp
    waiting: bool = False
    reason: str = ""


def arrivals(directory: Path) -> Iterator[Arrival]:
    """What lies there, by name; but for hidden files, and those that are called as unfinished ones are. SourceError without it."""
    try:
        names = sorted(entry.name for entry in os.scandir(directory))
    except OSError as error:
        raise SourceError(str(directory), f"cannot be listed: {error.strerror}", "give a directory that is there") from error
    for name in names:
        if name.startswith(".") or name.endswith(_PARTIAL) or name == SUCCESS:
            continue
        path = directory / name
        try:
            found = os.stat(path)
            yield _seen(path, (found.st_ino, found.st_size, found.st_mtime_ns))
        except FileNotFoundError:
            continue  # it is gone again


def _seen(path: Path, stamp: Stamp) -> Arrival:
    if path.is_dir():
        if not any((path / marker).is_file() for marker in ZARR_MARKERS):
            return Arrival(path, stamp, reason=f"is a directory and no Zarr; supported are {SUPPORTED}")
        try:
            done = os.stat(path / SUCCESS)
        except FileNotFoundError:
            return Arrival(path, stamp, waiting=True)
        return Arrival(path, (done.st_ino, done.st_size, done.st_mtime_ns))
    if path.suffix != ".npy" and not is_image(path.name):
        return Arrival(path, stamp, reason=f"is a file of another kind; supported are {SUPPORTED}")
    if _is_written(path):
        return Arrival(path, stamp, waiting=True)
    return Arrival(path, stamp, reason=_what_lacks(path, stamp[1]) if path.suffix == ".npy" else "")


def _is_written(path: Path) -> bool:
    """Whether somebody on this machine has it open for writing: then there is no read lease on it. Where leases are not to be had (another
    one's file, a network's file system), what the file says of itself has to do."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)  # were it opened just now: a signal that is ignored, not SIGIO
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


def _what_lacks(path: Path, nbytes: int) -> str:
    """What a .npy file has not got of what its header says."""
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file)
            wanted = file.tell() + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    except FileNotFoundError:
        raise
    except (ValueError, OSError) as error:
        return f"is half-written, or no .npy: {error}"
    return "" if nbytes >= wanted or dtype.hasobject else f"is half-written: {nbytes} of {wanted} bytes are there"
