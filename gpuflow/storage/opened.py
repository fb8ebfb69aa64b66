"""Files of stored objects, opened to read parts of them.

That a file is the object which was committed: it is opened, then the manifest is asked whether that replica is still the one, with no
commit under way. The open file stays that one, since commits replace files and write over none that is open. What its bytes are is for the
reader to verify."""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gpuflow.errors import NotFound
from gpuflow.storage.buffers import Buffer
from gpuflow.storage.byte_codecs import Bytes, CodecError
from gpuflow.storage.manifest import Replica
from gpuflow.storage.node import NodeStore

Range = tuple[int, int]
"""From one offset to another."""


class OpenFile:
    """Open as long as it lives. FileNotFoundError; CodecError when it is not of `nbytes`."""

    def __init__(self, path: Path, nbytes: int) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)
        found = os.fstat(self._descriptor).st_size
        if found != nbytes:
            raise CodecError(f"{found} bytes, committed were {nbytes}")

    def read_at(self, start: int, stop: int, buffer: Buffer) -> Bytes:
        """That part, in `buffer`. CodecError when the file ends before."""
        place = buffer.bytes(stop - start)
        self._read_into(place, start)
        return place

    def read(self, ranges: Sequence[Range]) -> Bytes:
        """Parts, one behind the other. CodecError when the file ends before."""
        found: NDArray[np.uint8] = np.empty(total(ranges), np.uint8)
        position = 0
        for start, stop in ranges:
            self._read_into(found[position : position + stop - start], start)
            position += stop - start
        return found

    def _read_into(self, place: Bytes, start: int) -> None:
        position = 0
        while position < len(place) and (part := os.preadv(self._descriptor, [place[position:].data], start + position)):
            position += part
        if position < len(place):
            raise CodecError(f"the file ends at {start + position}")


def open_committed(store: NodeStore, replica: Replica) -> OpenFile | None:
    """The file of just this replica; None when the store has another one, or one that is not as it was committed: it knows which."""
    try:
        file = OpenFile(store.path(replica.dataset, replica.array, replica.chunk), replica.nbytes)
    except (OSError, CodecError, NotFound):
        return None
    return file if _is_committed(store, replica) else None


def read_ranges(store: NodeStore, replica: Replica, ranges: Sequence[Range]) -> Bytes:
    """Parts of just this replica, one behind the other, not verified. OSError when the store does not have it, or not those parts of it."""
    file = open_committed(store, replica)
    if file is None:
        raise FileNotFoundError(f"node {store.node_id} does not have it as it was committed")
    try:
        return file.read(ranges)
    except CodecError as error:
        raise OSError(str(error)) from error


def _is_committed(store: NodeStore, replica: Replica) -> bool:
    """Whether a file that is open already is this one. The intent comes before the rename and goes with the row, so the order matters: a
    commit that ended since shows in the row."""
    under_way = store.manifest.has_intent(replica.dataset, replica.array, replica.chunk)
    row = store.manifest.replica(replica.dataset, replica.array, replica.chunk)
    return not under_way and row is not None and row.digest == replica.digest


def total(ranges: Sequence[Range]) -> int:
    """Bytes of them together."""
    return sum(stop - start for start, stop in ranges)
