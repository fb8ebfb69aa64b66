"""Decoded units in memory: those that fit stay for the next epochs, and those that other samples may soon want for a while.

An epoch wants everything once, so that throwing out the least recently used would throw out what comes next: `Kept` takes what comes
first, until it is full, and never changes. A unit of many samples that did not fit is wanted again soon when samples are read in order, or
within a window: for those there is `Recent`. Units are read-only."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gpuflow.training.memory import new_block

Key = tuple[int, int, int]
"""Array, stored object, unit."""

_SLAB_NBYTES = 64 * 2**20


class Cache(Protocol):
    """What stays for the next epochs. Thread-safe."""

    def get(self, key: Key) -> NDArray[Any] | None:
        """If it is kept."""
        ...

    def made(
        self, key: Key, shape: tuple[int, ...], dtype: np.dtype[Any], make: Callable[[NDArray[Any]], None]
    ) -> NDArray[Any] | None:
        """A unit that `make` fills in at the place where it is kept; None, and nothing made, when there is none for it."""
        ...

    def keep(self, key: Key, unit: NDArray[Any]) -> bool:
        """Keep a copy. False when there is no room."""
        ...

    def close(self) -> None:
        """Give back what it has. Once."""
        ...


class Kept:
    """Of one process. At most `most_nbytes`, in slabs of memory. Thread-safe."""

    def __init__(self, most_nbytes: int) -> None:
        self._most, self.nbytes = most_nbytes, 0
        self._units: dict[Key, NDArray[Any]] = {}
        self._slab: NDArray[np.uint8] = np.empty(0, np.uint8)
        self._taken = 0
        self._lock = threading.Lock()

    def get(self, key: Key) -> NDArray[Any] | None:
        """See `Cache`."""
        return self._units.get(key)

    def made(
        self, key: Key, shape: tuple[int, ...], dtype: np.dtype[Any], make: Callable[[NDArray[Any]], None]
    ) -> NDArray[Any] | None:
        """See `Cache`."""
        place = self._place(shape, dtype)
        if place is not None:
            make(place)
            self._units.setdefault(key, place)
        return place

    def keep(self, key: Key, unit: NDArray[Any]) -> bool:
        """See `Cache`."""
        return self.made(key, unit.shape, unit.dtype, lambda place: np.copyto(place, unit)) is not None

    def close(self) -> None:
        """See `Cache`."""
        self._units.clear()
        self._slab, self._taken = np.empty(0, np.uint8), 0

    def _place(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any] | None:
        nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        size = -(-nbytes // 64) * 64
        with self._lock:
            if self._taken + size > len(self._slab):
                slab = max(size, min(_SLAB_NBYTES, self._most - self.nbytes))
                if self.nbytes + slab > self._most:
                    return None
                self._slab, self._taken = np.frombuffer(new_block(slab), np.uint8), 0
                self.nbytes += slab
            start, self._taken = self._taken, self._taken + size
            return self._slab[start : start + nbytes].view(dtype).reshape(shape)


class Recent:
    """The most recently used ones within `most_nbytes`. Thread-safe."""

    def __init__(self, most_nbytes: int) -> None:
        self._most, self._nbytes = most_nbytes, 0
        self._units: OrderedDict[Key, NDArray[Any]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Key) -> NDArray[Any] | None:
        """If it is there."""
        with self._lock:
            found = self._units.get(key)
            if found is not None:
                self._units.move_to_end(key)
            return found

    def put(self, key: Key, unit: NDArray[Any]) -> None:
        """A unit in memory of its own."""
        with self._lock:
            if key in self._units or unit.nbytes > self._most:
                return
            self._units[key] = unit
            self._nbytes += unit.nbytes
            while self._nbytes > self._most:
                self._nbytes -= self._units.popitem(last=False)[1].nbytes
