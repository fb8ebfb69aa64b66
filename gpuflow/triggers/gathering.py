"""What has changed and is still to be dealt with, when the next run is due, and what is tried again. Pure: time is an argument."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from gpuflow.pipelines.spec import OnSpec

Chunks = dict[str, set[int]]
"""By array of the source."""

LEAST_WAIT_SECONDS, MOST_WAIT_SECONDS = 0.5, 60.0
"""Before what failed is tried again; twice as long each time."""


@dataclass
class Gathering:
    """Changes of one source. fresh: since the last batch; left: of batches that failed, to be tried again. whole: a run over all of the
    source is due, as at the beginning, or when its arrays have changed."""

    on: OnSpec
    fresh: Chunks = field(default_factory=dict)
    left: Chunks = field(default_factory=dict)
    whole: bool = False
    _last: float = -1e9
    _failures: int = 0
    _again: float = 0.0

    def add(self, array: str, chunk: int) -> None:
        """It changed."""
        self.fresh.setdefault(array, set()).add(chunk)

    def clear(self) -> None:
        """The source is gone, and what changed in it."""
        self.fresh, self.left, self.whole = {}, {}, False

    def wait_seconds(self, now: float) -> float | None:
        """Until a batch is due; None when nothing is to be done."""
        if self.fresh:  # what is new does not wait for what failed
            return max(0.0, self._last + self.on.batch_seconds - now)
        if self.left or self.whole:
            return max(0.0, max(self._last + self.on.batch_seconds, self._again) - now)
        return None

    def batch(self, now: float) -> list[Chunks]:
        """All that is to be done, in parts of `batch_chunks` at most; the caller says what came of it."""
        self._last = now
        all_of_it: Chunks = {}
        for chunks in (self.left if now >= self._again else {}, self.fresh):
            for array, numbers in chunks.items():
                all_of_it.setdefault(array, set()).update(numbers)
        self.fresh = {}
        for array, numbers in all_of_it.items():  # until they are done
            self.left.setdefault(array, set()).update(numbers)
        return list(parts(all_of_it, self.on.batch_chunks))

    def succeeded(self, batch: Mapping[str, Iterable[int]]) -> None:
        """These are done, or given up."""
        for array, numbers in batch.items():
            kept = self.left.get(array, set()) - set(numbers)
            self.left = {**self.left, array: kept} if kept else {name: one for name, one in self.left.items() if name != array}

    def must_run_whole(self) -> None:
        """The source is another one than it was: at once, whatever failed before."""
        self.whole, self._again, self._failures = True, 0.0, 0

    def ended(self, now: float, failed: bool) -> None:
        """The batch is over."""
        self._failures = self._failures + 1 if failed else 0
        self._again = now + wait_after(self._failures) if failed else 0.0

    @property
    def count(self) -> int:
        """Chunks that have changed since the last batch."""
        return sum(map(len, self.fresh.values()))

    @property
    def is_idle(self) -> bool:
        return not (self.fresh or self.left or self.whole)


def parts(chunks: Mapping[str, set[int]], most: int) -> Iterable[Chunks]:
    """Cut into parts of so many chunks, in order."""
    rows = [(array, number) for array in sorted(chunks) for number in sorted(chunks[array])]
    for start in range(0, len(rows), most):
        part: Chunks = {}
        for array, number in rows[start : start + most]:
            part.setdefault(array, set()).add(number)
        yield part


def wait_after(failures: int) -> float:
    """Seconds before the next try, after so many failures in a row."""
    return float(min(MOST_WAIT_SECONDS, LEAST_WAIT_SECONDS * 2 ** (failures - 1))) if failures else 0.0
