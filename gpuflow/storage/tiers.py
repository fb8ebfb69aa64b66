"""Decoded chunks that are kept in memory: a tier holds some, within its budget, and hands evicted ones to the tier below it.

What is kept is what saves most seconds a byte. A block takes another's place only if it was asked for more often *before*, or nobody reads
the other's array any more: a pass over more than fits thus hits what came first, again and again, where least-recently-used would hit
nothing (after GreedyDual-Size-Frequency, Cherkasova 1998, and TinyLFU's admission, Einziger 2017). Memory is used again, since fresh pages
cost ten times the copy, and never under a reader."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from typing import Any

from gpuflow.backends.block import to_host
from gpuflow.storage.buffers import ALIGNMENT
from gpuflow.storage.tier_entries import Entry, Family, Key, Version
from gpuflow.storage.tier_memory import Memory

logger = logging.getLogger(__name__)

_MOST_USES = 15
"""That are counted, as in TinyLFU: enough to tell what is hot from what was read twice."""
_HALVED_AFTER, _LEFT_AFTER = 4.0, 0.125
"""Budgets of bytes that are asked for until what is not asked for counts half, and until an array that nobody reads counts nothing: a pass
over the next one soon has the room."""
_REMEMBERED = 2**16  # blocks that were asked for and are not here: 10 MB

ArrayName = tuple[str, str]


class Held:
    """A block that somebody reads: it stays what it is until `close`, whatever becomes of the tier. Close it once, or use `with`."""

    __slots__ = ("_entry", "_tier", "block")

    def __init__(self, tier: Tier, entry: Entry, block: Any) -> None:
        self._tier, self._entry, self.block = tier, entry, block

    def close(self) -> None:
        """The block may be anything from now on."""
        self._tier._release(self._entry)

    def __enter__(self) -> Any:
        return self.block

    def __exit__(self, *error: object) -> None:
        self.close()


class Tier:
    """Thread-safe. All memory that it has, of blocks, of what is free, and of what is gone and still read, is within `budget_nbytes`, but
    for the latter when the budget shrinks.

    below: gets what is evicted here, or has no room; what is found there comes up."""

    def __init__(self, memory: Memory, budget_nbytes: int = 0, below: Tier | None = None) -> None:
        self._memory, self._budget, self._below = memory, budget_nbytes, below
        self._lock = threading.Lock()
        self._entries: dict[Key, Entry] = {}
        self._families: dict[ArrayName, Family] = {}
        self._free: dict[int, list[Any]] = {}  # pieces by size
        self._former: OrderedDict[Key, tuple[int, int]] = OrderedDict()  # uses, last; of what is not here
        self._news: dict[ArrayName, dict[int, bool]] = {}
        self._asked = 0
        self._nbytes = 0
        self.hits = self.misses = 0

    @property
    def budget_nbytes(self) -> int:
        """What it may take."""
        return self._budget

    @property
    def nbytes(self) -> int:
        """What it takes."""
        return self._nbytes

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: Key) -> bool:
        return key in self._entries

    # -- reading ----------------------------------------------------------------------------------------------------------------

    def take(self, key: Key, version: Version) -> Held | None:
        """The block of just this version; None when it is not here, and another version of it is forgotten."""
        with self._lock:
            family = self._families.setdefault((key.dataset, key.array), Family())
            family.last = self._asked
            entry = self._entries.get(key)
            if entry is not None and entry.version == version:
                self._used(family, entry)
                self.hits += 1
                return Held(self, entry, self._memory.view(entry.piece, entry.shape, entry.dtype))
            if entry is not None:
                self._remove(entry)
            self.misses += 1
        return self._take_below(key, version)

    def _used(self, family: Family, entry: Entry) -> None:
        self._asked += entry.nbytes
        family.last = self._asked
        family.remove(entry)
        entry.uses, entry.last = min(entry.uses + 1, _MOST_USES), self._asked
        family.add(entry)
        entry.readers += 1

    def _take_below(self, key: Key, version: Version) -> Held | None:
        """What the tier below has, from here if it can come up."""
        held = self._below.take(key, version) if self._below is not None else None
        if held is None or self._below is None:
            return held
        seconds = held.block.nbytes * self._below._rate(key)
        kept = self._keep(key, version, held.block, seconds)
        if kept is None:
            return held
        held.close()
        return kept

    def _rate(self, key: Key) -> float:
        with self._lock:
            family = self._families.get((key.dataset, key.array))
            return family.rate if family is not None else 0.0

    def _release(self, entry: Entry) -> None:
        with self._lock:
            entry.readers -= 1
            if entry.gone and not entry.readers:
                self._recycle(entry)
            self._shrink(self._budget)

    # -- filling ----------------------------------------------------------------------------------------------------------------

    def put(self, key: Key, version: Version, block: Any, seconds: float) -> bool:
        """Keep a copy of a C-contiguous block of host memory, or of this memory, which took `seconds` to be read and decoded, in place of
        any other version. Whether it is worth its place, here or below."""
        kept = self._keep(key, version, block, seconds)
        if kept is not None:
            kept.close()
            return True
        return self._below is not None and self._below.put(key, version, to_host(block), seconds)

    def _keep(self, key: Key, version: Version, block: Any, seconds: float) -> Held | None:
        nbytes = -(-max(block.nbytes, 1) // ALIGNMENT) * ALIGNMENT
        with self._lock:
            self._asked += nbytes
            family = self._families.setdefault((key.dataset, key.array), Family())
            family.last = self._asked
            family.seconds, family.nbytes = family.seconds + seconds, family.nbytes + nbytes
            former = self._entries.get(key)
            if former is not None and former.version == version:
                former.readers += 1
                return Held(self, former, self._memory.view(former.piece, former.shape, former.dtype))
            if former is not None:
                self._remove(former)
            uses, last = self._former.pop(key, (0, self._asked))
            evicted = self._make_room(nbytes, self._worth(family, uses, last))
            if evicted is None:
                self._remember(key, uses + 1, self._asked)
                return None
            fallen = [(entry, self._families[entry.key.dataset, entry.key.array].rate * entry.nbytes) for entry in evicted]
            piece = self._reserve(nbytes, evicted)
        evicted.clear()  # or their memory would be there beside the new
        self._spill(fallen)
        if piece is None and (piece := self._allocated(nbytes)) is None:
            return None
        self._memory.fill(piece, block)
        with self._lock:
            entry = Entry(key, version, piece, nbytes, block.shape, block.dtype, min(uses + 1, _MOST_USES), self._asked, 1)
            self._insert(entry)
            return Held(self, entry, self._memory.view(piece, block.shape, block.dtype))

    def _allocated(self, nbytes: int) -> Any:
        """New memory, which was counted before; None when the system has none: the block is read again when it is asked for again."""
        try:
            return self._memory.allocate(nbytes)
        except (MemoryError, OSError) as error:
            logger.warning("a tier of %d bytes cannot have %d more (%s)", self._nbytes, nbytes, error)
            with self._lock:
                self._nbytes -= nbytes
            return None

    def _spill(self, fallen: list[tuple[Entry, float]]) -> None:
        """Hand what was evicted, and the seconds that it took, to the tier below."""
        while fallen:
            entry, seconds = fallen.pop()
            if self._below is not None:
                values = self._memory.to_host(entry.piece, entry.shape, entry.dtype)
                self._below.put(entry.key, entry.version, values, seconds)

    def _reserve(self, nbytes: int, evicted: list[Entry]) -> Any:
        """Memory for a block: that of one that was evicted for it, or a free piece; None when it is to be allocated. It is counted from
        now on."""
        self._nbytes -= sum(entry.nbytes for entry in evicted)
        self._nbytes += nbytes
        same = next((entry.piece for entry in evicted if entry.nbytes == nbytes), None)
        if same is None and self._free.get(nbytes):
            same = self._free[nbytes].pop()
            if not self._free[nbytes]:
                del self._free[nbytes]
            self._nbytes -= nbytes  # it was counted before
        return same

    def _insert(self, entry: Entry) -> None:
        key = entry.key
        other = self._entries.get(key)
        if other is not None:  # another thread was as far
            self._remove(other)
        self._entries[key] = entry
        self._families.setdefault((key.dataset, key.array), Family()).add(entry)
        self._tell(key, here=True)

    def _make_room(self, nbytes: int, worth: float) -> list[Entry] | None:
        """What is taken out for a block that is worth so much a byte; None when what is here is worth more."""
        if nbytes > self._budget:
            return None
        if self._free.get(nbytes):
            return []
        out = list[Entry]()
        freed = self._budget - self._nbytes
        while freed < nbytes:
            if self._free:
                freed += self._drop_free()
                continue
            victim = self._cheapest()
            if victim is None or self._worth_of(victim) >= worth:
                for entry in reversed(out):
                    self._put_back(entry)
                return None
            out.append(victim)
            self._remove(victim, recycle=False)
            freed += victim.nbytes
        for entry in out:
            self._remember(entry.key, entry.uses, entry.last)
        return out

    def _put_back(self, entry: Entry) -> None:
        entry.gone = False
        self._entries[entry.key] = entry
        self._families[entry.key.dataset, entry.key.array].add(entry, first=True)
        self._tell(entry.key, here=True)

    def _drop_free(self) -> int:
        nbytes = max(self._free)
        self._free[nbytes].pop()
        if not self._free[nbytes]:
            del self._free[nbytes]
        self._nbytes -= nbytes
        return nbytes

    # -- what is worth how much -------------------------------------------------------------------------------------------------

    def _worth(self, family: Family, uses: int, last: int) -> float:
        """Seconds a byte that it saves if it goes on to be used as it was."""
        if self._asked - family.last > _LEFT_AFTER * self._budget:
            return -1.0
        return float(family.rate * uses * 0.5 ** ((self._asked - last) // max(1, int(_HALVED_AFTER * self._budget))))

    def _worth_of(self, entry: Entry) -> float:
        return self._worth(self._families[entry.key.dataset, entry.key.array], entry.uses, entry.last)

    def _cheapest(self) -> Entry | None:
        """The entry that is worth least, of those that nobody reads; among equals the one that was used longest ago."""
        oldest = (entry for family in self._families.values() for entry in family.oldest())
        return min(oldest, key=lambda entry: (self._worth_of(entry), entry.last), default=None)

    def _remember(self, key: Key, uses: int, last: int) -> None:
        self._former[key] = min(uses, _MOST_USES), last
        self._former.move_to_end(key)
        if len(self._former) > _REMEMBERED:
            self._former.popitem(last=False)

    # -- giving up --------------------------------------------------------------------------------------------------------------

    def forget(self, dataset: str, array: str | None = None) -> None:
        """Everything of a dataset that was removed, or of one array of it; here and below."""
        with self._lock:
            for entry in [one for one in self._entries.values() if one.key[0] == dataset and array in (None, one.key[1])]:
                self._remove(entry)
            for key in [key for key in self._former if key[0] == dataset and array in (None, key[1])]:
                del self._former[key]
            for name in [name for name in self._families if name[0] == dataset and array in (None, name[1])]:
                del self._families[name]
        if self._below is not None:
            self._below.forget(dataset, array)

    def resize(self, budget_nbytes: int) -> None:
        """Keep within another budget from now on."""
        with self._lock:
            self._budget = budget_nbytes
            self._shrink(budget_nbytes)

    def trim(self, nbytes: int) -> int:
        """Give up at least `nbytes` bytes if there are so many that nobody reads, the cheapest first. Bytes that were given up."""
        with self._lock:
            before = self._nbytes
            self._shrink(before - nbytes)
            return before - self._nbytes

    def _shrink(self, most: int) -> None:
        while self._nbytes > most:
            if self._free:
                self._drop_free()
                continue
            victim = self._cheapest()
            if victim is None:
                return
            self._remember(victim.key, victim.uses, victim.last)
            self._remove(victim, recycle=False)
            self._nbytes -= victim.nbytes

    def _remove(self, entry: Entry, *, recycle: bool = True) -> None:
        """Nobody finds it from now on; its memory is free as soon as nobody reads it."""
        del self._entries[entry.key]
        self._families[entry.key.dataset, entry.key.array].remove(entry)
        entry.gone = True
        self._tell(entry.key, here=False)
        if recycle and not entry.readers:
            self._recycle(entry)

    def _recycle(self, entry: Entry) -> None:
        if self._nbytes > self._budget:
            self._nbytes -= entry.nbytes
        else:
            self._free.setdefault(entry.nbytes, []).append(entry.piece)

    # -- telling ----------------------------------------------------------------------------------------------------------------

    def _tell(self, key: Key, *, here: bool) -> None:
        self._news.setdefault((key.dataset, key.array), {})[key.chunk] = here

    def news(self) -> dict[ArrayName, dict[int, bool]]:
        """By array the chunks that came (True) or went since this was last asked; another version of one that was here comes anew."""
        with self._lock:
            news, self._news = self._news, {}
            return news

    def contents(self) -> dict[ArrayName, list[int]]:
        """By array the chunks whose blocks are here."""
        found: dict[ArrayName, list[int]] = {}
        with self._lock:
            for key in self._entries:
                found.setdefault((key.dataset, key.array), []).append(key.chunk)
        return found
