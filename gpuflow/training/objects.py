"""Stored objects, opened to read inner chunks of them: files of this machine, objects that a peer sent, or what it sends of them.

Every read is verified, though the digest of the manifest covers a whole object. That what is read is the object which was committed is seen
to where its file lies (storage/opened.py). That its bytes are as they were committed: an inner chunk which carries a checksum (zstd as
gpuflow writes it, gzip, crc32c) is verified by decoding it. An object whose inner chunks carry none is read whole at its first use, its
digest compared, and the digest of each inner chunk noted, which later reads are compared with; from a peer it is fetched whole. The first
way was chosen for what gpuflow writes because a batch of shuffled samples touches as many objects as it has samples."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import xxhash
from numpy.typing import NDArray

from gpuflow.errors import ChunkCorrupt
from gpuflow.storage.buffers import Buffer
from gpuflow.storage.byte_codecs import Bytes
from gpuflow.storage.disk import digest
from gpuflow.storage.manifest import Replica
from gpuflow.storage.shards import ABSENT, Shard

_GAP_NBYTES = 64 * 2**10
"""Between inner chunks that are read together: skipping so little costs more than reading it."""
_RUN_NBYTES = 4 * 2**20  # read at once, so that buffers stay small

ReadAt = Callable[[int, int, Buffer], Bytes]
"""Bytes of a stored object from one offset to another, in a buffer or not."""
Frame = tuple[int, Bytes | None]
"""Number of an inner chunk and its encoded bytes; None where it is not stored, being fill value."""


class WholeWanted(Exception):
    """An object cannot be read in parts from a peer. unchecked: because its inner chunks carry no checksums."""

    def __init__(self, *, unchecked: bool) -> None:
        super().__init__(unchecked)
        self.unchecked = unchecked


class _Place(Buffer):
    """Memory that is there."""

    def __init__(self, place: NDArray[np.uint8]) -> None:
        super().__init__()
        self._memory = place


class StoredObject:
    """A shard that can be read in parts. Thread-safe. node: who has it, for messages. CodecError when its index is not one."""

    def __init__(
        self,
        name: str,
        node: str,
        replica: Replica,
        shard: Shard,
        read_at: ReadAt,
        *,
        verified: bool,
        held_nbytes: int = 0,
        is_far: bool = False,
    ) -> None:
        """verified: whether all its bytes are already. held_nbytes: of memory that it holds. is_far: whether `read_at` asks a peer."""
        self.name, self.node, self.held_nbytes = name, node, held_nbytes
        self._replica, self._read_at, self._chain = replica, read_at, shard.inner
        self._sums: NDArray[np.uint64] | None = None
        self._verified, self.is_far, self._lock = verified, is_far, threading.Lock()
        place = shard.index_place(replica.nbytes)
        index = read_at(*place, Buffer())
        self.frames = shard.frames(index, replica.nbytes)
        if is_far:
            self.held_nbytes = self.frames.nbytes

    def read(self, numbers: Sequence[int], buffer: Buffer, whole: Buffer) -> Iterator[Frame]:
        """The inner chunks `numbers`, verified or to be verified by decoding them, in the order in which they lie; neighbours with one
        read. The bytes are in `buffer` until the next one is asked for; `whole` is for the object, where it is verified. ChunkCorrupt
        when they are not those that were committed, WholeWanted when a peer's cannot be verified."""
        wanted = self.frames[np.array(numbers, np.int64)]
        stored = [(start, size, number) for (start, size), number in zip(wanted.tolist(), numbers, strict=True)]
        yield from ((number, None) for start, _, number in stored if start == ABSENT)
        held: Bytes | None = None  # the object, when it was verified here: nothing of it is read again
        for run in _runs(sorted(frame for frame in stored if frame[0] != ABSENT)):
            begin = run[0][0]
            data = self._read_at(begin, run[-1][0] + run[-1][1], buffer) if held is None else held[begin:]
            for start, size, number in run:
                frame = data[start - begin : start - begin + size]
                if held is None and not self._is_checked(number, frame):
                    held = self._verified_whole(whole)
                    if held is None:  # another thread has verified it
                        self._is_checked(number, frame)
                    else:
                        data = held[begin:]
                        frame = data[start - begin : start - begin + size]
                yield number, frame

    @property
    def is_known(self) -> bool:
        """Whether it was verified as a whole, so that each of its inner chunks is verified as it is read."""
        return self._verified or self._sums is not None

    def read_into(self, number: int, place: NDArray[np.uint8]) -> bool:
        """The same of an object that `is_known`: one inner chunk as it is stored, of the size of `place`, to there. False when it is not
        stored, or has another size."""
        start, size = self.frames[number].tolist()
        if start == ABSENT or size != len(place):
            return False
        data = self._read_at(start, start + size, _Place(place))
        self._is_checked(number, data)
        if not np.may_share_memory(data, place):  # it is held in memory
            place[...] = data
        return True

    def _is_checked(self, number: int, frame: Bytes) -> bool:
        """Whether what was read is right, or decoding it will tell; not before the whole was verified, where it has no checksum."""
        if self._verified or (self._sums is None and self._chain.is_checked(frame)):
            return True
        if self.is_far:
            raise WholeWanted(unchecked=True)
        if self._sums is not None and xxhash.xxh3_64_intdigest(frame.data) != int(self._sums[number]):
            raise self.corrupt(f"inner chunk {number} is not what it was when the whole was verified")
        return self._sums is not None

    def _verified_whole(self, buffer: Buffer) -> Bytes | None:
        """The object, and the digest of each inner chunk noted; None when that is known."""
        with self._lock:
            if self._sums is not None:
                return None
            data = self._read_at(0, self._replica.nbytes, buffer)
            found = digest(data.data)
            if found != self._replica.digest:
                raise self.corrupt(f"digest {found.hex()}, committed was {self._replica.digest.hex()}")
            sums = [
                0 if start == ABSENT else xxhash.xxh3_64_intdigest(data[start : start + size].data)
                for start, size in self.frames.tolist()
            ]
            self._sums = np.array(sums, np.uint64)
            return data

    def corrupt(self, reason: str) -> ChunkCorrupt:
        """What to raise for it."""
        return ChunkCorrupt(self.name, self.node, reason)


def _runs(frames: Sequence[tuple[int, int, int]]) -> Iterator[list[tuple[int, int, int]]]:
    """(offset, nbytes, number) in the order of offsets, as they are to be read together."""
    run: list[tuple[int, int, int]] = []
    for frame in frames:
        if run and (frame[0] - sum(run[-1][:2]) > _GAP_NBYTES or frame[0] + frame[1] - run[0][0] > _RUN_NBYTES):
            yield run
            run = []
        run.append(frame)
    if run:
        yield run


def held(data: Bytes) -> ReadAt:
    """How to read parts of bytes in memory."""
    return lambda start, stop, buffer: data[start:stop]


class Opened:
    """The objects that are open: the most recently used ones, bounded in number and in the bytes that they hold."""

    def __init__(self, most: int, most_nbytes: int) -> None:
        self._most, self._most_nbytes, self._nbytes = most, most_nbytes, 0
        self._objects: OrderedDict[tuple[str, int], StoredObject] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[str, int]) -> StoredObject | None:
        """If it is open."""
        with self._lock:
            found = self._objects.get(key)
            if found is not None:
                self._objects.move_to_end(key)
            return found

    def put(self, key: tuple[str, int], opened: StoredObject) -> None:
        """Keep it; the least recently used go."""
        with self._lock:
            self._forget(key)
            self._objects[key] = opened
            self._nbytes += opened.held_nbytes
            while len(self._objects) > 1 and (len(self._objects) > self._most or self._nbytes > self._most_nbytes):
                self._forget(next(iter(self._objects)))

    def drop(self, key: tuple[str, int]) -> None:
        """It is not to be used again."""
        with self._lock:
            self._forget(key)

    def clear(self) -> None:
        """None is."""
        with self._lock:
            self._objects.clear()
            self._nbytes = 0

    def _forget(self, key: tuple[str, int]) -> None:
        gone = self._objects.pop(key, None)
        if gone is not None:
            self._nbytes -= gone.held_nbytes
