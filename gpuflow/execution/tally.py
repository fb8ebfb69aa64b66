"""What chunk tasks count: chunks, bytes and seconds. Tallies add up, from task to run to receipt."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

_COUNTS = (
    "done",
    "skipped",
    "read",
    "written",
    "shipped",
    "kept",
    "ram",
    "ram_chunks",
    "vram",
    "vram_chunks",
    "local_chunks",
    "remote_chunks",
    "dropped",
)
STAGES = ("read", "decode", "compute", "encode", "commit", "transfer")
"""What a task's time is spent on; seconds of threads, so that they may add up to more than the run's wall time."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A chunk that could not be done. retry: another try may succeed (a node was gone); a user's error is not retried. damaged: the chunk
    whose bytes are not those that were committed."""

    chunk: str
    index: int
    node: str
    error: str
    traceback: str = ""
    retry: bool = False
    damaged: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As it stands in a receipt."""
        return {"chunk": self.chunk, "node": self.node, "error": self.error, "traceback": self.traceback}


@dataclass(frozen=True, slots=True)
class Healed:
    """A chunk that was damaged on a node, and how it was made good."""

    chunk: str
    node: str
    how: str


@dataclass(slots=True)
class Tally:
    """read: encoded bytes; ram: those that were not read, as the chunks were in memory; vram: of these, in a device's. shipped: chunk bytes
    that entered a worker from another node; shipped_why: the same by reason. kept: bytes of them that stay as further replicas. by_node:
    chunks done on each node. healed: damaged chunks that were made good on the way. dropped: replicas that were given up."""

    done: int = 0
    skipped: int = 0
    read: int = 0
    written: int = 0
    shipped: int = 0
    kept: int = 0
    ram: int = 0
    ram_chunks: int = 0
    vram: int = 0
    vram_chunks: int = 0
    local_chunks: int = 0
    remote_chunks: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    by_node: Counter[str] = field(default_factory=Counter)
    shipped_why: Counter[str] = field(default_factory=Counter)
    dropped: int = 0
    healed: list[Healed] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    @property
    def ended(self) -> int:
        """Chunks that were done, skipped, or failed."""
        return self.done + self.skipped + len(self.failures)

    def add(self, other: Tally) -> None:
        """Take over everything that `other` counted."""
        for name in _COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.seconds = {stage: self.seconds[stage] + other.seconds[stage] for stage in STAGES}
        self.by_node.update(other.by_node)
        self.shipped_why.update(other.shipped_why)
        self.healed += other.healed
        self.failures += other.failures

    def timed(self, stage: str) -> _Clock:
        """Adds the time of a `with` block to `stage`."""
        return _Clock(self.seconds, stage)


class _Clock:
    """A context manager of our own: contextlib's costs 1.5 us, six times a chunk."""

    __slots__ = ("_began", "_seconds", "_stage")

    def __init__(self, seconds: dict[str, float], stage: str) -> None:
        self._seconds, self._stage = seconds, stage

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self._seconds[self._stage] += time.perf_counter() - self._began
