"""What has been done and what lies where, in figures for who looks: a dashboard, a metrics server.

Pure: time is an argument. Bounded, whatever the number of chunks, runs and seconds; counting takes a few additions a task."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass

from gpuflow.cluster.inventory import ArrayName
from gpuflow.cluster.messages import ChunkGroup

SECONDS = 300
"""Of the past that is kept, second by second."""
_RUNS = 20  # the last ones
_WATCHES = 100  # those that told last
WATCH_SECONDS = 5.0
"""A watcher tells how it fares at least so often."""


@dataclass(slots=True)
class RunFigures:
    """Of one run. chunks: handed to the scheduler so far, and those of tasks that have ended; local: those that were done where they lie.
    began, ended: seconds by the clock that was given; ended is None while it has tasks."""

    run: str
    array: ArrayName
    began: float
    ended: float | None = None
    chunks: int = 0
    done: int = 0
    local: int = 0

    def seconds(self, now: float) -> float:
        """How long it has been running, or ran."""
        return (self.ended if self.ended is not None else now) - self.began


@dataclass(frozen=True, slots=True)
class WatchFigures:
    """Of the pipeline that writes dataset `name`, as its watcher told last, at second `told` of the given clock. runs, chunks: since it was
    first watched; left: chunks of `source` that are known to be due; given_up: chunks; problem: what holds it up, or ""."""

    name: str
    source: str
    told: float
    runs: int = 0
    chunks: int = 0
    left: int = 0
    given_up: int = 0
    problem: str = ""

    def is_watched(self, now: float) -> bool:
        """Whether its watcher tells still."""
        return now - self.told < 3 * WATCH_SECONDS


class Figures:
    """local: chunks and encoded bytes that tasks read where they lie; shipped: those that came from other nodes."""

    def __init__(self) -> None:
        self.runs: OrderedDict[str, RunFigures] = OrderedDict()
        self.local, self.shipped = Counter[str](), Counter[str]()
        self.watches: OrderedDict[str, WatchFigures] = OrderedDict()
        self.done = 0
        """Chunks of all tasks that have ended."""
        self._seconds: deque[tuple[int, float, float]] = deque(
            maxlen=SECONDS
        )  # second, local bytes, shipped bytes; none without any

    def entered(self, group: ChunkGroup, now: float) -> None:
        """A task was handed to the scheduler."""
        run = self.runs.get(group.run)
        if run is None:
            run = self.runs[group.run] = RunFigures(group.run, (group.dataset, group.array), now)
            while len(self.runs) > _RUNS:
                del self.runs[next((name for name, one in self.runs.items() if one.ended is not None), next(iter(self.runs)))]
        run.array, run.ended = (group.dataset, group.array), None
        run.chunks += len(group.chunks)

    def finished(self, group: ChunkGroup, now: float, *, local: bool) -> None:
        """A task has ended. local: where its chunks lie."""
        self.done += len(group.chunks)
        run = self.runs.get(group.run)
        if run is not None:
            run.done += len(group.chunks)
            run.local += len(group.chunks) if local else 0
        if local:
            nbytes = 0 if group.homes else group.nbytes  # else that is what would have to be shipped
            self.local.update(chunks=len(group.chunks), nbytes=nbytes)
            self._add(now, float(nbytes), 0.0)

    def received(self, chunks: int, nbytes: int, now: float) -> None:
        """So much went from node to node."""
        if chunks or nbytes:
            self.shipped.update(chunks=chunks, nbytes=nbytes)
            self._add(now, 0.0, float(nbytes))

    def ended(self, run: str, now: float) -> None:
        """A run has no task any more, for now."""
        if run in self.runs:
            self.runs[run].ended = now

    def watched(self, watch: WatchFigures) -> None:
        """A watcher told how it fares."""
        self.watches[watch.name] = watch
        self.watches.move_to_end(watch.name)
        while len(self.watches) > _WATCHES:
            self.watches.popitem(last=False)

    def _add(self, now: float, local: float, shipped: float) -> None:
        second = int(now)
        if self._seconds and self._seconds[-1][0] >= second:
            second, local_before, shipped_before = self._seconds.pop()
            local, shipped = local + local_before, shipped + shipped_before
        self._seconds.append((second, local, shipped))

    def history(self, now: float) -> tuple[list[int], list[float], list[float]]:
        """Seconds before now, the last ones last; bytes read where they lie, and shipped, in each. The second that runs is left out."""
        last = int(now) - 1
        local, shipped = [0.0] * SECONDS, [0.0] * SECONDS
        for second, here, sent in self._seconds:
            place = SECONDS - 1 - (last - second)
            if 0 <= place < SECONDS:
                local[place], shipped[place] = here, sent
        return list(range(-SECONDS, 0)), local, shipped


@dataclass(frozen=True, slots=True)
class Held:
    """Chunks whose newest generation a node has: alone, or others too."""

    alone: int = 0
    copied: int = 0


def census(counts: Iterable[Mapping[frozenset[str], int]], live: Set[str]) -> tuple[dict[str, Held], int]:
    """Of the live nodes that have chunks, by node; and the number of chunks that no live node has. counts: chunks by holder set."""
    alone, copied, away = Counter[str](), Counter[str](), 0
    for of_array in counts:
        for holders, count in of_array.items():
            there = holders & live
            away += 0 if there else count
            for node in there:
                (alone if len(there) == 1 else copied)[node] += count
    nodes = sorted({*alone, *copied})
    return {node: Held(alone[node], copied[node]) for node in nodes}, away
