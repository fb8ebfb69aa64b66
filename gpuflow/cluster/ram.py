"""The RAM tier of a worker process: how much it may hold while which runs are under way, and what the scheduler learns of it.

It is the first to give memory back: before Dask would begin to spill."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping

import numpy as np
from distributed import Worker
from tornado.ioloop import PeriodicCallback

from gpuflow.cluster.messages import packed_column
from gpuflow.storage.tier_entries import Key
from gpuflow.storage.tier_memory import HostMemory, Memory
from gpuflow.storage.tiers import ArrayName, Tier

_HEARD_SECONDS = 2.0  # after which a run of which no task came counts as ended
_SETTLE_MILLISECONDS = 500
_LOOK_SECONDS = 0.1  # between looks at the process's memory: 20 us each

Told = tuple[str, str, tuple[str, bytes], tuple[str, bytes]]
"""Dataset, array, and the chunks that came and went, as columns."""


class RamTier:
    """tier: the blocks themselves. vram: of the worker's device, if it has one; what is evicted there goes to `tier`. Methods are called
    from task threads."""

    def __init__(self, worker: Worker, device: Memory | None = None, device_nbytes: int = 0) -> None:
        """device: memory of a device, of which the tier may take `device_nbytes`."""
        self.tier = Tier(HostMemory())
        self.vram = Tier(device, device_nbytes, below=self.tier) if device is not None else None
        self._worker = worker
        self._keeps: dict[str, tuple[int, float]] = {}  # run -> what the tier may hold meanwhile, and when a task of it came
        self._lock, self._looked = threading.Lock(), 0.0
        # Also while nothing of ours runs: users' own tasks may need the memory.
        worker.periodic_callbacks["gpuflow-ram"] = PeriodicCallback(self.settle, _SETTLE_MILLISECONDS)

    def begin(self, run: str, keeps_nbytes: int) -> None:
        """A task of `run` begins, whose plan leaves the tier so many bytes. Of several runs at once, the one that leaves least decides."""
        now = time.monotonic()
        with self._lock:
            self._keeps[run] = keeps_nbytes, now
            self._keeps = {name: kept for name, kept in self._keeps.items() if now - kept[1] < _HEARD_SECONDS}
            budget = min(nbytes for nbytes, _ in self._keeps.values())
        if budget != self.tier.budget_nbytes:
            self.tier.resize(budget)

    def settle(self) -> None:
        """Now and then, and when a task ends: give memory back where the process is near its limit, and tell the scheduler what came and
        went."""
        self._give_back()
        news = self._news()
        if news:
            message = {"op": "gf_tiers", "changes": [_told(name, chunks) for name, chunks in news.items()]}
            self._worker.loop.add_callback(self._worker.batched_send, message)

    def _news(self) -> dict[ArrayName, dict[int, bool]]:
        """Of all tiers: a chunk that went from one of them may be in another."""
        news = self.tier.news()
        if self.vram is None:
            return news
        for name, chunks in self.vram.news().items():
            news.setdefault(name, {}).update(chunks)
        tiers = self.vram, self.tier
        return {name: {chunk: any(Key(*name, chunk) in tier for tier in tiers) for chunk in news[name]} for name in news}

    def _give_back(self) -> None:
        limit, now = self._limit_nbytes(), time.monotonic()
        if limit is None or not self.tier.nbytes or now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        over = self._worker.monitor.get_process_memory() - limit
        if over > 0:
            self.tier.trim(int(over))

    def _limit_nbytes(self) -> float | None:
        """Of the process, where Dask begins to spill, or pauses the worker if it never spills."""
        manager = self._worker.memory_manager
        share = manager.memory_spill_fraction or manager.memory_pause_fraction or 1.0
        return manager.memory_limit * share if manager.memory_limit else None

    def forget(self, dataset: str, array: str | None = None) -> None:
        """A dataset was removed, or an array of it."""
        (self.vram or self.tier).forget(dataset, array)
        self.settle()

    def contents(self) -> list[Told]:
        """All that is there, as changes since there was nothing."""
        found: dict[ArrayName, dict[int, bool]] = {}
        for tier in (self.tier, self.vram):
            for name, chunks in tier.contents().items() if tier is not None else ():
                found.setdefault(name, {}).update(dict.fromkeys(chunks, True))
        return [_told(name, chunks) for name, chunks in found.items()]


def _told(name: ArrayName, chunks: Mapping[int, bool]) -> Told:
    came, went = ([chunk for chunk, is_here in chunks.items() if is_here is wanted] for wanted in (True, False))
    return (*name, _packed(came), _packed(went))


def _packed(chunks: Iterable[int]) -> tuple[str, bytes]:
    return packed_column(np.fromiter(chunks, np.int64))
