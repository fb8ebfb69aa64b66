"""The blocks of a tier, array by array, in the order in which they are given up.

Not thread-safe: a tier has a lock."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np


class Key(NamedTuple):
    """Whose block it is."""

    dataset: str
    array: str
    chunk: int


class Version(NamedTuple):
    """Which block of it: of the replica with this generation and digest, decoded as `form` says (`ArrayCodec.form`)."""

    generation: int
    digest: bytes
    form: bytes


@dataclass(eq=False, slots=True)
class Entry:
    """A block of a tier. last: bytes that had been asked of the tier when it was used last. gone: nobody finds it any more, some may still
    read it."""

    key: Key
    version: Version
    piece: Any
    nbytes: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    uses: int
    last: int
    readers: int = 0
    gone: bool = False


@dataclass(slots=True)
class Family:
    """The blocks of an array. seconds, nbytes: of all that were read and decoded: of one alone it would be noise. by_uses: entries by how
    often they were used, those that were used longest ago first."""

    last: int = 0
    seconds: float = 0.0
    nbytes: int = 0
    by_uses: dict[int, OrderedDict[Key, Entry]] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Seconds that a byte takes to be had again."""
        return self.seconds / max(self.nbytes, 1)

    def add(self, entry: Entry, *, first: bool = False) -> None:
        entries = self.by_uses.setdefault(entry.uses, OrderedDict())
        entries[entry.key] = entry
        entries.move_to_end(entry.key, last=not first)

    def remove(self, entry: Entry) -> None:
        del self.by_uses[entry.uses][entry.key]
        if not self.by_uses[entry.uses]:
            del self.by_uses[entry.uses]

    def oldest(self) -> Iterator[Entry]:
        """For each number of uses the entry that was used longest ago, of those that nobody reads."""
        for entries in self.by_uses.values():
            found = next((entry for entry in entries.values() if not entry.readers), None)
            if found is not None:
                yield found
