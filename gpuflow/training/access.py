"""Where the chunks of a dataset are read: in a store of this machine, else from another node.

Another node sends an object whole, or its index and those inner chunks that are wanted: what that decides is `_is_wanted_in_parts`. Where
parts do not come, or could not be verified, the object is fetched whole. A replica that turns out to be damaged is left for another one;
when none is left, its error is raised."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from contextlib import suppress
from math import prod

import numpy as np

from gpuflow.errors import ChunkCorrupt, ChunkLost, DatasetChanged, GpuflowError
from gpuflow.storage.buffers import Buffer, Slot
from gpuflow.storage.byte_codecs import Bytes, CodecError
from gpuflow.storage.codecs import ArrayCodec
from gpuflow.storage.locator import Found, Locator, PartLocator, Parts
from gpuflow.storage.manifest import Replica
from gpuflow.storage.node import EMPTY, NodeStore
from gpuflow.storage.opened import open_committed
from gpuflow.training.content import Content
from gpuflow.training.objects import Opened, ReadAt, StoredObject, WholeWanted, held

logger = logging.getLogger(__name__)

_OPEN_OBJECTS = 256
"""Of a file each: a process may usually have 1,024 of them."""
_HELD_NBYTES = 256 * 2**20
"""Of objects that others sent, while parts of them may still be wanted."""
_INDEXES, _INDEX_NBYTES = 2**16, 64 * 2**20
"""Of objects that others send in parts."""
_WHOLE_NBYTES = 256 * 2**10
"""Of an object that is fetched whole in any case. Measured over loopback, samples of 110 KB in shuffled order: where an object has two of
them, parts were as fast as the whole; where it has four, 1.25 to 1.6 times as fast."""


class Access:
    """The chunks of `content`. Thread-safe. here: of the stores that are read directly; others: the way to the rest; reach: how many stored
    objects of an array lie between two samples that follow one another, None for any number.

    opened: how many objects were opened "here", and "elsewhere", whole or in parts; received_nbytes: how many bytes came from there."""

    def __init__(self, content: Content, here: Locator, others: PartLocator, reach: int | None = None) -> None:
        self._content, self._here, self._others = content, here, others
        self._codecs = {path: ArrayCodec(content.record.array(path)) for path in content.tables}
        self._open, self._far = Opened(_OPEN_OBJECTS, _HELD_NBYTES), Opened(_INDEXES, _INDEX_NBYTES)
        self._unchecked: set[str] = set()  # arrays whose inner chunks carry no checksums
        self._comes_back = self._is_held(reach)
        self._damaged: dict[tuple[str, int], dict[str, ChunkCorrupt]] = {}
        self._lock, self._opening = threading.Lock(), [threading.Lock() for _ in range(_OPEN_OBJECTS)]
        self.opened: Counter[str] = Counter()
        self.received_nbytes = 0

    def codec(self, array: str) -> ArrayCodec:
        """Of an array."""
        return self._codecs[array]

    def chunk_name(self, array: str, chunk: int) -> str:
        """As in messages."""
        return self._content.chunk_name(array, chunk)

    def close(self) -> None:
        """Let go of files and of the locators."""
        self._open.clear()
        self._far.clear()
        self._here.close()
        self._others.close()

    def whole(self, array: str, chunk: int, slot: Slot) -> bytes | memoryview[int]:
        """The verified bytes of a stored object, perhaps in `slot.stored`; none when it is all fill value."""
        replica = self._content.replica(array, chunk)
        if replica.digest == EMPTY:
            return b""
        store = self._store(replica)
        if store is not None:
            data = store.read_known(str(store.path(replica.dataset, array, chunk)), replica, slot.stored)
            if data is not None:
                self._count(True)
                return data
        return self._anew(replica, store).data

    def open(self, array: str, chunk: int, wanted: int) -> StoredObject | None:
        """A shard, to read inner chunks of, now `wanted` ones; None when it is all fill value."""
        key = array, chunk
        found = self._open.get(key)
        if found is not None:
            return found
        replica = self._content.replica(array, chunk)
        if replica.digest == EMPTY:
            return None
        # Of two threads that want the same one, the second waits for what the first fetches.
        with self._opening[hash(key) % len(self._opening)]:
            found = self._open.get(key)
            if found is None and (in_parts := self._is_wanted_in_parts(replica, wanted)):
                found = self._far.get(key)
            if found is None:
                found = self._opened(replica, in_parts)
                (self._far if found.is_far else self._open).put(key, found)
        return found

    def is_far(self, array: str, chunk: int) -> bool:
        """Whether parts of a shard that are wanted now will be asked of a peer, as before."""
        return self._far.get((array, chunk)) is not None

    def fetch_whole(self, array: str, chunk: int, why: WholeWanted) -> None:
        """The next `open` has all of it."""
        if why.unchecked:
            self._unchecked.add(array)
        self._far.drop((array, chunk))
        self._open.put((array, chunk), self._opened(self._content.replica(array, chunk), in_parts=False))

    def condemn(self, array: str, chunk: int, error: ChunkCorrupt) -> None:
        """What was read of a chunk is damaged: the next `open` takes another replica, or raises `error` when there is none."""
        self._open.drop((array, chunk))
        self._far.drop((array, chunk))
        with self._lock:
            self._damaged.setdefault((array, chunk), {})[error.node] = error
        here = self._here.local(self._content.name, array, chunk)
        if here is not None and here[0].node_id == error.node:
            with suppress(GpuflowError):
                here[0].read(self._content.name, array, chunk)  # it notes the damage, for scrub

    def _is_wanted_in_parts(self, replica: Replica, wanted: int) -> bool:
        """Whether an object that is elsewhere is better fetched in parts: not when it is small, since parts take a question more; when most
        of it is wanted; when it is still held when the next sample wants of it; or when parts of it could not be verified."""
        shard = self._codecs[replica.array].shard
        assert shard is not None
        if self._comes_back or replica.nbytes <= _WHOLE_NBYTES or replica.array in self._unchecked:
            return False
        return 2 * wanted < prod(shard.counts)

    def _is_held(self, reach: int | None) -> bool:
        """Whether an object that was fetched whole is still there when the next sample wants of it."""
        counts = {path: min(len(table.rows), reach or len(table.rows)) for path, table in self._content.tables.items()}
        nbytes = sum(count * self._content.tables[path].rows["nbytes"].mean() for path, count in counts.items())
        return sum(counts.values()) <= _OPEN_OBJECTS and bool(nbytes <= _HELD_NBYTES)

    def _opened(self, replica: Replica, in_parts: bool) -> StoredObject:
        shard = self._codecs[replica.array].shard
        assert shard is not None
        name = self._content.chunk_name(replica.array, replica.chunk)
        store = self._store(replica)
        if store is not None:
            with suppress(OSError, CodecError):  # the store knows what is wrong, and says it
                file = open_committed(store, replica)
                if file is not None:
                    opened = StoredObject(name, store.node_id, replica, shard, file.read_at, verified=False)
                    self._count(True)
                    return opened
        elif in_parts:
            damaged = frozenset(self._damaged.get((replica.array, replica.chunk), ()))
            parts = self._others.parts(replica, damaged)
            if parts is not None:
                with suppress(CodecError, WholeWanted):
                    opened = StoredObject(name, parts.node, replica, shard, self._far_reader(parts), verified=False, is_far=True)
                    self._count(False)
                    return opened
        found = self._anew(replica, store)
        data = np.frombuffer(found.data, np.uint8)
        return StoredObject(name, found.node, replica, shard, held(data), verified=True, held_nbytes=len(data))

    def _far_reader(self, parts: Parts) -> ReadAt:
        def read_at(start: int, stop: int, buffer: Buffer) -> Bytes:
            try:
                data = parts.read([(start, stop)])
            except OSError as error:
                logger.info("%s does not send parts of an object, which is fetched whole: %s", parts.node, error)
                raise WholeWanted(unchecked=False) from error
            with self._lock:
                self.received_nbytes += len(data)
            return data

        return read_at

    def _store(self, replica: Replica) -> NodeStore | None:
        """One of this machine with just this replica, as far as is known."""
        here = self._here.local(replica.dataset, replica.array, replica.chunk)
        if here is None or here[1].digest != replica.digest:
            return None
        return None if here[0].node_id in self._damaged.get((replica.array, replica.chunk), ()) else here[0]

    def _anew(self, replica: Replica, store: NodeStore | None) -> Found:
        """The whole object, from this machine's store unless that is None, else from wherever else it is.

        DatasetChanged when it is another one now, ChunkLost, ChunkCorrupt."""
        key = replica.array, replica.chunk
        if store is not None:
            try:
                return self._same(replica, Found(*store.read(replica.dataset, *key), store.node_id, True))
            except ChunkCorrupt as error:
                with self._lock:
                    self._damaged.setdefault(key, {})[store.node_id] = error
            except ChunkLost:
                pass
        damaged = self._damaged.get(key, {})
        try:
            return self._same(replica, self._others.fetch(replica.dataset, *key, replica.generation, frozenset(damaged)))
        except ChunkLost as error:
            raise next(iter(damaged.values()), error) from error

    def _same(self, replica: Replica, found: Found) -> Found:
        if found.replica.digest != replica.digest:
            name = self._content.chunk_name(replica.array, replica.chunk)
            raise DatasetChanged(name, replica.generation, found.replica.generation)
        is_here = self._here.local(replica.dataset, replica.array, replica.chunk)
        self._count(is_here is not None and is_here[0].node_id == found.node, len(found.data))
        return found

    def _count(self, is_here: bool, nbytes: int = 0) -> None:
        with self._lock:
            self.opened["here" if is_here else "elsewhere"] += 1
            self.received_nbytes += 0 if is_here else nbytes
