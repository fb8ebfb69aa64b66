"""Chunks of one array, grouped into tasks.

Pure. Chunks of a group have the same holders and are neighbours where they can be. A task costs the scheduler and the worker a
millisecond or two, so tasks should be long; but a thread should get several, the last of them short, so that all end together. How long
a chunk takes is known once the first tasks have ended: those are short, and the rest is cut by what they took."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from gpuflow.cluster.messages import ChunkGroup
from gpuflow.pipelines.memory import Sharing

K = TypeVar("K", bound=Hashable)

MOST_CHUNKS = 1024
MOST_NBYTES = 256 * 2**20
"""Encoded bytes of a group, whatever its number of chunks: what one task may cost when it has to be done again."""
MOST_SECONDS = 1.0
LEAST_SECONDS = 0.06
"""Of a task, by what its chunks are expected to take: from one sign of progress to the next, and against the cost of a task."""
_SCHEDULER_SECONDS = 0.0005
"""Of the one scheduler for a task: 313 to 490 us were measured. With many threads tasks must be longer for it, or they wait for it."""
_FIRST_PER_SLOT = 2  # while the client learns what the first took, a thread has the second
_FIRST_NBYTES = 32 * 2**20  # decoded: ten milliseconds for what is fast
_PARTS = 8  # of a thread's share of what is left: the next task


def by_holders(chunks: Sequence[int], keys: Sequence[K], slots: Mapping[K, int], threads: int) -> list[tuple[K, list[int], int]]:
    """(key, chunks, threads that will work on them). keys: what each chunk's task is routed by; slots: threads that serve a key;
    threads: of the whole cluster, which share the work of a key that has too much."""
    by_key: dict[K, list[int]] = {}
    for chunk, key in sorted(zip(chunks, keys, strict=True), key=lambda row: row[0]):
        by_key.setdefault(key, []).append(chunk)
    share = len(chunks) / max(threads, 1)
    return [(key, part, max(slots.get(key, 1), 1, round(len(part) / share))) for key, part in by_key.items()]


class Cutter:
    """The tasks of one `group` of chunks with the same holders, however many; `slots` threads are there for them, of the `threads` of the
    cluster. together: where the chunks of a task share what they read."""

    def __init__(self, group: ChunkGroup, slots: int, threads: int = 1, together: Sharing | None = None) -> None:
        self._group, self._slots, self._next, self._together = group, slots, 0, together
        self._least_seconds = max(LEAST_SECONDS, _SCHEDULER_SECONDS * threads)
        self._most_seconds = max(MOST_SECONDS, self._least_seconds)

    def first(self) -> Iterator[ChunkGroup]:
        """Short tasks to begin with."""
        if self._together is not None:
            yield from self._shares(self._together)
            return
        size = self._bounded(_FIRST_NBYTES * len(self._group.chunks) // max(self._group.work, 1))
        size = min(size, self._left // (_PARTS * self._slots))
        for _ in range(_FIRST_PER_SLOT * self._slots):
            if self._left:
                yield self._cut(size)

    def rest(self, seconds: float | None) -> Iterator[ChunkGroup]:
        """All others, the shortest last. seconds: what a chunk takes, None when that is not known."""
        least, most = (self._least_seconds / seconds, self._most_seconds / seconds) if seconds else (1, MOST_CHUNKS)
        fair = -(-self._left // self._slots)
        while self._left:
            size = max(self._left // (_PARTS * self._slots), min(round(least), fair))
            yield self._cut(self._bounded(min(size, round(most))))

    def _shares(self, sharing: Sharing) -> Iterator[ChunkGroup]:
        size = sharing.size(self._left, self._slots)
        while self._left:
            yield self._cut(size)

    @property
    def _left(self) -> int:
        return len(self._group.chunks) - self._next

    def _bounded(self, size: int) -> int:
        by_nbytes = MOST_NBYTES * len(self._group.chunks) // max(self._group.nbytes, 1)
        return min(size, MOST_CHUNKS, by_nbytes)

    def _cut(self, size: int) -> ChunkGroup:
        start = self._next
        self._next = min(start + max(size, 1), len(self._group.chunks))
        return part_of(self._group, range(start, self._next))


def part_of(group: ChunkGroup, positions: Sequence[int]) -> ChunkGroup:
    """The same group with the chunks at some positions of it."""
    columns = (tuple(column[i] for i in positions) for column in (group.chunks, group.generations, group.newest))
    chunks, generations, newest = columns
    inputs = tuple(group.inputs[i] for i in positions) if group.inputs else ()
    nbytes, work = (-(-total * len(positions) // len(group.chunks)) for total in (group.nbytes, group.work))
    return replace(group, chunks=chunks, generations=generations, newest=newest, inputs=inputs, nbytes=nbytes, work=work)


def in_turn(cut: Sequence[Iterator[ChunkGroup]]) -> Iterator[tuple[int, ChunkGroup]]:
    """(number of the iterator, its next group), round by round, so that every node has work from the start."""
    left = dict(enumerate(cut))
    while left:
        for number, groups in list(left.items()):
            group = next(groups, None)
            if group is None:
                del left[number]
            else:
                yield number, group
