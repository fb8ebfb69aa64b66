"""One cache of decoded units for the ranks of a machine, in shared memory: what one has decoded, none of the others reads again.

The file: a page whose first word says how far it is taken; a table with (offset, checksum) of every unit of the dataset; then units one
behind the other, as they came first. A unit's place is given out under a lock, with memory behind it, before anyone writes to it; its
checksum is written after it. A rank that finds a checksum compares it with what stands there before it uses the unit for the first time:
so a unit is whole or not there, in whatever order a processor shows the writes of another, and when a rank is killed while it writes. Two
that decode one unit at once write the same bytes to the same place."""

from __future__ import annotations

import logging
import mmap
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from gpuflow.training.cache import Cache, Kept, Key
from gpuflow.training.shared_file import SharedFile, folder, sweep

logger = logging.getLogger(__name__)

_PAGE = mmap.PAGESIZE
_WORD = 8
_ENTRY = 2 * _WORD
_ALIGNMENT = 64


@dataclass(frozen=True)
class Layout:
    """Of the units of one array: of each `shape` and `dtype`, `per_object` in each of `objects` stored objects."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    per_object: int
    objects: int

    @property
    def nbytes(self) -> int:
        """Of a unit."""
        return prod(self.shape) * self.dtype.itemsize


def open_cache(name: str | None, layouts: Sequence[Layout], most_nbytes: int) -> Cache:
    """The cache that ranks of this machine share by `name`; this process's own without one. Nothing is kept, and the log says so, where
    shared memory cannot be had."""
    sweep()
    if name is None or not most_nbytes:
        return Kept(most_nbytes)
    try:
        return SharedKept(name, layouts, most_nbytes)
    except OSError as error:
        logger.warning("decoded data is not kept in memory: no file can be shared in %s: %s", folder(), error)
        return Kept(0)


class SharedKept:
    """At most `most_nbytes` of shared memory, its table included, whoever fills it. Thread-safe. OSError."""

    def __init__(self, name: str, layouts: Sequence[Layout], most_nbytes: int) -> None:
        self._layouts, self._most = layouts, most_nbytes
        *self._first, count = accumulate((layout.per_object * layout.objects for layout in layouts), initial=0)
        form = repr((name, most_nbytes, _PAGE, [(one.shape, one.dtype.str, one.per_object, one.objects) for one in layouts]))
        self._begin = -(-(_PAGE + _ENTRY * count) // _PAGE) * _PAGE
        size = self._begin + -(-most_nbytes // _PAGE) * _PAGE
        self._file = SharedFile(xxhash.xxh3_128_hexdigest(form.encode()), size)
        try:
            self._memory: NDArray[np.uint8] = np.frombuffer(mmap.mmap(self._file.descriptor, size), np.uint8)
        except (OSError, ValueError):
            self._file.close()
            raise
        self._units: dict[Key, NDArray[Any]] = {}
        self._too_large: float = np.inf  # from so many bytes on, units found no room
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Shared memory that is taken, by all ranks."""
        return self._file.allocated_nbytes

    def get(self, key: Key) -> NDArray[Any] | None:
        """See `Cache`: a unit that any rank has kept."""
        found = self._units.get(key)
        if found is None:
            offset, checksum = self._entry(self._number(key))
            if checksum:
                place = self._place(offset, self._layouts[key[0]])
                if _checksum(place) == checksum:
                    found = self._remember(key, place)
        return found

    def made(
        self, key: Key, shape: tuple[int, ...], dtype: np.dtype[Any], make: Callable[[NDArray[Any]], None]
    ) -> NDArray[Any] | None:
        """None: units are made elsewhere, since decoders write more than once to a place, where other ranks may be reading."""
        return None

    def keep(self, key: Key, unit: NDArray[Any]) -> bool:
        """See `Cache`: for all ranks."""
        layout = self._layouts[key[0]]
        if layout.nbytes >= self._too_large:
            return False
        number = self._number(key)
        with self._lock, self._file.alone():
            offset = self._reserved(number, layout.nbytes)
        if offset is None:
            return False
        place = self._place(offset, layout)
        place[...] = unit
        os.pwrite(self._file.descriptor, _checksum(place).to_bytes(_WORD, "little"), _PAGE + _ENTRY * number + _WORD)
        self._remember(key, place)
        return True

    def close(self) -> None:
        """See `Cache`."""
        self._units.clear()
        self._file.close()
        del self._memory

    def _reserved(self, number: int, nbytes: int) -> int | None:
        """Where a unit belongs; None when there is no room. Under the lock. A process that is killed in here loses one unit's room."""
        offset, _ = self._entry(number)
        if offset:
            return offset  # another one writes it, has written it, or was killed when it did
        if nbytes >= self._too_large:  # as another thread has found meanwhile
            return None
        taken = int.from_bytes(os.pread(self._file.descriptor, _WORD, 0), "little")
        offset = taken or self._begin
        end = offset + -(-nbytes // _ALIGNMENT) * _ALIGNMENT
        pages = -(-end // _PAGE) - offset // _PAGE + 2  # the first one and one of the table may be new
        if self.nbytes + pages * _PAGE > self._most:
            self._too_large = nbytes
            return None
        try:
            self._file.allocate(offset, end - offset)
            os.pwrite(self._file.descriptor, end.to_bytes(_WORD, "little"), 0)
            os.pwrite(self._file.descriptor, offset.to_bytes(_WORD, "little"), _PAGE + _ENTRY * number)
        except OSError as error:
            self._too_large = 0
            message = "the cache of decoded data stays at %d bytes, of %d: %s: %s (give it more room, or a smaller cache)"
            logger.warning(message, self.nbytes, self._most, folder(), error)
            return None
        return offset

    def _number(self, key: Key) -> int:
        part, stored, unit = key
        return self._first[part] + stored * self._layouts[part].per_object + unit

    def _entry(self, number: int) -> tuple[int, int]:
        """(offset, checksum), 0 while there is none. Not by the mapping: a page of it that nobody has written to would need memory."""
        words = os.pread(self._file.descriptor, _ENTRY, _PAGE + _ENTRY * number)
        return int.from_bytes(words[:_WORD], "little"), int.from_bytes(words[_WORD:], "little")

    def _place(self, offset: int, layout: Layout) -> NDArray[Any]:
        return self._memory[offset : offset + layout.nbytes].view(layout.dtype).reshape(layout.shape)

    def _remember(self, key: Key, place: NDArray[Any]) -> NDArray[Any]:
        place.flags.writeable = False
        return self._units.setdefault(key, place)


def _checksum(place: NDArray[Any]) -> int:
    """Of a unit where it lies; never 0."""
    return xxhash.xxh3_64_intdigest(place.reshape(-1).view(np.uint8).data) or 1
