"""Where the chunks of a dataset are read: in a store of this machine, else from another node.

A replica that turns out to be damaged is left for another one; when none is left, its error is raised."""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import suppress

import numpy as np

from gpuflow.errors import ChunkCorrupt, ChunkLost, DatasetChanged, GpuflowError
from gpuflow.storage.buffers import Slot
from gpuflow.storage.byte_codecs import CodecError
from gpuflow.storage.codecs import ArrayCodec
from gpuflow.storage.locator import Found, Locator
from gpuflow.storage.manifest import Replica
from gpuflow.storage.node import EMPTY, NodeStore
from gpuflow.training.content import Content
from gpuflow.training.objects import Opened, StoredObject, held, open_file

_OPEN_OBJECTS = 256
"""Of a file each: a process may usually have 1,024 of them."""
_HELD_NBYTES = 256 * 2**20
"""Of objects that others sent, while parts of them may still be wanted."""


class Access:
    """The chunks of `content`. Thread-safe. here: of the stores that are read directly; others: the way to the rest. opened: how many
    objects were opened "here" and fetched from "elsewhere"."""

    def __init__(self, content: Content, here: Locator, others: Locator) -> None:
        self._content, self._here, self._others = content, here, others
        self._codecs = {path: ArrayCodec(content.record.array(path)) for path in content.tables}
        self._open = Opened(_OPEN_OBJECTS, _HELD_NBYTES)
        self._damaged: dict[tuple[str, int], dict[str, ChunkCorrupt]] = {}
        self._lock = threading.Lock()
        self.opened: Counter[str] = Counter()

    def codec(self, array: str) -> ArrayCodec:
        """Of an array."""
        return self._codecs[array]

    def chunk_name(self, array: str, chunk: int) -> str:
        """As in messages."""
        return self._content.chunk_name(array, chunk)

    def close(self) -> None:
        """Let go of files and of the locators."""
        self._open.clear()
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
                self._count("here")
                return data
        return self._anew(replica, store).data

    def open(self, array: str, chunk: int) -> StoredObject | None:
        """A shard, to read inner chunks of; None when it is all fill value."""
        found = self._open.get((array, chunk))
        if found is None:
            replica = self._content.replica(array, chunk)
            if replica.digest == EMPTY:
                return None
            found = self._opened(replica)
            self._open.put((array, chunk), found)
        return found

    def condemn(self, array: str, chunk: int, error: ChunkCorrupt) -> None:
        """What was read of a chunk is damaged: the next `open` takes another replica, or raises `error` when there is none."""
        self._open.drop((array, chunk))
        with self._lock:
            self._damaged.setdefault((array, chunk), {})[error.node] = error
        here = self._here.local(self._content.name, array, chunk)
        if here is not None and here[0].node_id == error.node:
            with suppress(GpuflowError):
                here[0].read(self._content.name, array, chunk)  # it notes the damage, for scrub

    def _opened(self, replica: Replica) -> StoredObject:
        shard = self._codecs[replica.array].shard
        assert shard is not None
        name = self._content.chunk_name(replica.array, replica.chunk)
        store = self._store(replica)
        if store is not None:
            try:
                read_at = open_file(str(store.path(replica.dataset, replica.array, replica.chunk)), replica.nbytes)
                if _is_committed(store, replica):
                    opened = StoredObject(name, store.node_id, replica, shard, read_at, verified=False)
                    self._count("here")
                    return opened
            except (OSError, CodecError):
                pass  # the store knows what is wrong, and says it
        found = self._anew(replica, store)
        data = np.frombuffer(found.data, np.uint8)
        return StoredObject(name, found.node, replica, shard, held(data), verified=True, held_nbytes=len(data))

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
        self._count("here" if is_here is not None and is_here[0].node_id == found.node else "elsewhere")
        return found

    def _count(self, where: str) -> None:
        with self._lock:
            self.opened[where] += 1


def _is_committed(store: NodeStore, replica: Replica) -> bool:
    """Whether a file that is open already is this one. The intent comes before the rename and goes with the row, so the order matters: a
    commit that ended since shows in the row."""
    under_way = store.manifest.has_intent(replica.dataset, replica.array, replica.chunk)
    row = store.manifest.replica(replica.dataset, replica.array, replica.chunk)
    return not under_way and row is not None and row.digest == replica.digest
