"""A dataset as it was when it was opened: every chunk that is read through a view is of the generation that it had then.

A reader must not get some chunks from before and some from after an in-place pipeline. What has been changed since is refused by name."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuflow.errors import NameTaken, StaleChunk
from gpuflow.storage.locator import Found, Locator, count_read, read_chunk, read_known
from gpuflow.storage.manifest import Replica
from gpuflow.storage.node import NodeStore
from gpuflow.storage.record import DatasetRecord

_WINDOW, _WINDOWS = 256, 512  # rows of the manifest that are asked for together, 2 us each against 20; how many such are kept
_CACHE_NBYTES = 128 * 2**20
"""Of verified chunks that parts are read from: an inner chunk of a shard is read by itself, while the digest is of the whole."""


class View:
    """Thread-safe. pinned: as above; else what has been changed since is read as it now is, for who also writes.

    Pickled, it takes along what it knows of the generations where that is little; else who gets it asks again, and refuses a dataset that
    another pipeline has changed in place since."""

    def __init__(self, locator: Locator, record: DatasetRecord, *, pinned: bool = True) -> None:
        self.locator, self.record, self.pinned = locator, record, pinned
        self._generations: dict[str, NDArray[np.uint32]] = {}
        self._start()

    def _start(self) -> None:
        self._lock = threading.Lock()
        self._cache: OrderedDict[tuple[str, int, int], Found] = OrderedDict()
        self._cached_nbytes = 0
        self._rows: dict[tuple[str, int], dict[int, tuple[NodeStore, Replica]]] = {}
        self._once: set[tuple[str, int]] = set()
        self._key_of: dict[str, Callable[[int], str]] = {}

    def __getstate__(self) -> dict[str, Any]:
        uniform = {path: column for path, column in self._generations.items() if column.strides == (0,)}
        packed = {path: (int(column[0]), len(column)) for path, column in uniform.items() if len(column)}
        return {"locator": self.locator, "record": self.record, "pinned": self.pinned, "generations": packed}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.locator, self.record, self.pinned = state["locator"], state["record"], state["pinned"]
        packed = state["generations"]
        self._generations = {path: np.broadcast_to(np.uint32(value), (count,)) for path, (value, count) in packed.items()}
        self._start()

    def generation(self, array: str, chunk: int) -> int:
        """Of a chunk in this view."""
        return int(self.generations(array)[chunk])

    def generations(self, array: str) -> NDArray[np.uint32]:
        """(chunks,): those of this view, asked for when the first chunk is read.

        NameTaken when the dataset is, or has been since it was opened, changed in place."""
        column = self._generations.get(array)
        if column is None:
            self._check_unchanged()
            count = self.record.array(array).grid.size
            column = self._generations.setdefault(array, self.locator.generations(self.record.name, array, count))
        return column

    def _check_unchanged(self) -> None:
        name = self.record.name
        reason = self.locator.changed_by(self.record)
        if not reason and len(self.locator.record(name).transforms) != len(self.record.transforms):
            reason = "has been changed in place since it was opened; open it again"
        if reason:
            raise NameTaken(name, reason)

    def learn(self, array: str, chunk: int, generation: int) -> None:
        """A chunk is at `generation` in this view from now on: it has just been written."""
        with self._lock:
            self._rows.pop((array, chunk // _WINDOW), None)
            column = self._generations.get(array)
            if column is not None:
                self._generations[array] = column = column if column.flags.writeable else column.copy()
                column[chunk] = generation

    def forget(self, record: DatasetRecord) -> None:
        """The dataset's record is now another one."""
        with self._lock:
            same = {path for path in record.arrays if record.arrays[path] == self.record.arrays.get(path)}
            self._generations = {path: column for path, column in self._generations.items() if path in same}
            self.record = record
            self._key_of = {}

    def read(self, array: str, chunk: int) -> Found:
        """A chunk of this view: see `locator.read_chunk`."""
        if (found := self.read_here(array, chunk)) is not None:
            return found
        try:
            return read_chunk(self.locator, self.record, array, chunk, self.generation(array, chunk))
        except StaleChunk as error:
            if self.pinned:
                raise
            self.learn(array, chunk, error.found)
            return read_chunk(self.locator, self.record, array, chunk, error.found)

    def read_here(self, array: str, chunk: int, *, cached: bool = False) -> Found | None:
        """A chunk of this view that lies on this machine, as it was looked up; else None. cached: only from the page cache."""
        known = self.known_here(array, chunk)
        if known is None or known[1].generation != self.generation(array, chunk):
            return None
        found = read_known(*known, self._names(array)(chunk), cached=cached)
        if found is not None:
            count_read(self.locator, found)
        return found

    def known_here(self, array: str, chunk: int) -> tuple[NodeStore, Replica] | None:
        """The store of this machine that has the chunk, and its replica, as they were looked up with others beside it: once several of
        them are read, they are asked for together. What they say is believed only when the bytes agree."""
        number, rows = chunk // _WINDOW, self._rows
        window = rows.get((array, number))
        if window is None:
            if (array, number) in self._once:
                start, count = number * _WINDOW, self.record.array(array).grid.size
                window = self.locator.local_many(self.record.name, array, range(start, min(start + _WINDOW, count)))
                if len(rows) >= _WINDOWS:
                    rows.clear()
                rows[array, number] = window
            else:
                self._once.add((array, number))
                return self.locator.local(self.record.name, array, chunk)
        return window.get(chunk)

    def _names(self, array: str) -> Callable[[int], str]:
        """`record.chunk_name`, without what it looks up."""
        if array not in self._key_of:
            key, start = self.record.array(array).key, f"{self.record.name}/{array}/"
            self._key_of[array] = lambda chunk: start + key(chunk)
        return self._key_of[array]

    def read_cached(self, array: str, chunk: int) -> Found:
        """The same; parts of one chunk are read one after the other, and the chunk only once."""
        key = array, chunk, self.generation(array, chunk)
        with self._lock:
            found = self._cache.get(key)
            if found is not None:
                self._cache.move_to_end(key)
        if found is None:
            found = self.read(array, chunk)
            self._keep((array, chunk, found.replica.generation), found)
        return found

    def _keep(self, key: tuple[str, int, int], found: Found) -> None:
        with self._lock:
            if key not in self._cache:
                self._cache[key] = found
                self._cached_nbytes += len(found.data)
            while self._cached_nbytes > _CACHE_NBYTES and len(self._cache) > 1:
                self._cached_nbytes -= len(self._cache.popitem(last=False)[1].data)
