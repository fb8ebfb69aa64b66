"""Which worker has which chunks decoded in its memory.

Pure, and a hint: what is out of date costs a preference, never a wrong block, since a worker asks its node's manifest before it takes one.
Rebuilt from the workers' reports."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Set

from gpuflow.cluster.inventory import ArrayName

_MOST_OF = 0.5
"""Of a task's chunks, that a worker has: else where it goes makes no difference."""


class Residence:
    """As large as what is told: some bytes for each chunk that is in some memory."""

    def __init__(self) -> None:
        self._chunks: dict[ArrayName, dict[str, set[int]]] = {}  # no set is empty
        self.changes = 0
        """Another number after every change: what was looked up at the same one still holds."""

    def report(self, worker: str, array: ArrayName, came: Iterable[int], went: Iterable[int]) -> None:
        """What changed on a worker."""
        of_array = self._chunks.setdefault(array, {})
        chunks = of_array.setdefault(worker, set())
        chunks.update(came)
        chunks.difference_update(went)
        self._prune(array, worker)

    def forget(self, worker: str) -> None:
        """A worker is gone, or is about to tell all that it has."""
        for array in list(self._chunks):
            self._chunks[array].pop(worker, None)
            self._prune(array, worker)

    def changed(self, array: ArrayName, chunks: Iterable[int]) -> None:
        """There is a newer generation of `chunks`."""
        for worker in list(self._chunks.get(array, ())):
            self._chunks[array][worker].difference_update(chunks)
            self._prune(array, worker)

    def drop(self, dataset: str, path: str | None = None) -> set[str]:
        """A dataset was removed, or an array of it. The workers that had some of it."""
        gone = [array for array in self._chunks if array[0] == dataset and path in (None, array[1])]
        self.changes += len(gone)
        return {worker for array in gone for worker in self._chunks.pop(array)}

    def _prune(self, array: ArrayName, worker: str) -> None:
        self.changes += 1
        of_array = self._chunks[array]
        if not of_array.get(worker, True):
            del of_array[worker]
        if not of_array:
            del self._chunks[array]

    def home(self, array: ArrayName, chunks: Iterable[int]) -> str:
        """The worker that has most of `chunks`, if that is more than half of them; else an empty text."""
        of_array = self._chunks.get(array)
        if not of_array:
            return ""
        wanted = set(chunks)
        found = Counter({worker: len(wanted & there) for worker, there in of_array.items()})
        worker, count = max(found.items(), key=lambda item: (item[1], item[0]))
        return worker if count > _MOST_OF * len(wanted) else ""

    def of(self, array: ArrayName, among: Set[int] | None = None) -> dict[str, list[int]]:
        """By worker, the chunks of an array that it has. among: of these alone, which takes no longer for an array of many chunks."""
        found = self._chunks.get(array, {})
        return {worker: sorted(chunks if among is None else chunks & among) for worker, chunks in found.items()}


def by_chunk(found: Iterable[tuple[str, Iterable[int]]]) -> dict[int, set[str]]:
    """The nodes where each chunk is in some memory. found: a node, and chunks that a worker of it has."""
    nodes: dict[int, set[str]] = {}
    for node, chunks in found:
        for chunk in chunks:
            nodes.setdefault(chunk, set()).add(node)
    return nodes
