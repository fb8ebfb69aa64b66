"""The RAM tier of a worker: how much it may hold, and what it gives back."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gpuflow.cluster import ram
from gpuflow.cluster.messages import unpacked_column
from gpuflow.cluster.ram import RamTier
from gpuflow.storage.tier_entries import Key, Version

PAGE = 4096


class FakeWorker:
    """What a tier asks of its worker. sent: what it told the scheduler."""

    def __init__(self, limit: int | None = 1000 * PAGE, spill: float | bool = 0.7) -> None:
        self.sent: list[Any] = []
        self.process_nbytes = 0
        self.periodic_callbacks: dict[str, Any] = {}
        self.memory_manager = SimpleNamespace(memory_limit=limit, memory_spill_fraction=spill, memory_pause_fraction=0.8)
        self.monitor = SimpleNamespace(get_process_memory=lambda: self.process_nbytes)
        self.loop = SimpleNamespace(add_callback=lambda function, *args: function(*args))
        self.batched_send = self.sent.append


def filled(worker: FakeWorker, pages: int) -> RamTier:
    tier: Any = RamTier(worker)  # type: ignore[arg-type]
    tier.begin("r", pages * PAGE)
    for chunk in range(pages):
        tier.tier.put(Key("d", "x", chunk), Version(1, b"digest", b"form"), np.zeros(PAGE // 8), 0.1)
    return tier  # type: ignore[no-any-return]


def test_the_run_that_leaves_least_decides_while_it_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(ram.time, "monotonic", lambda: now)
    tier = filled(FakeWorker(), 8)
    tier.begin("other", 4 * PAGE)
    tier.begin("r", 8 * PAGE)
    assert (tier.tier.budget_nbytes, tier.tier.nbytes) == (4 * PAGE, 4 * PAGE)
    now = 10.0
    tier.begin("r", 8 * PAGE)
    assert tier.tier.budget_nbytes == 8 * PAGE


@pytest.mark.parametrize(("spill", "limit"), [(0.7, 700), (False, 800)])
def test_memory_goes_back_before_dask_spills(spill: Any, limit: int) -> None:
    worker = FakeWorker(spill=spill)
    tier = filled(worker, 8)
    worker.process_nbytes = limit * PAGE
    tier.settle()
    assert tier.tier.nbytes == 8 * PAGE
    tier._looked = 0.0
    worker.process_nbytes = (limit + 3) * PAGE
    tier.settle()
    assert tier.tier.nbytes == 5 * PAGE


def test_without_a_limit_nothing_goes_back() -> None:
    worker = FakeWorker(limit=None)
    tier = filled(worker, 8)
    worker.process_nbytes = 10**12
    tier.settle()
    assert tier.tier.nbytes == 8 * PAGE


def test_changes_are_told_in_one_message() -> None:
    worker = FakeWorker()
    tier = filled(worker, 8)
    tier.settle()
    tier.settle()
    (message,) = worker.sent
    assert message["op"] == "gf_tiers"
    ((*name, came, went),) = message["changes"]
    assert (name, unpacked_column(came).tolist(), unpacked_column(went).tolist()) == (["d", "x"], list(range(8)), [])
    tier.forget("d")
    ((*_, came, went),) = worker.sent[-1]["changes"]
    assert (unpacked_column(came).tolist(), unpacked_column(went).tolist()) == ([], list(range(8)))
    assert tier.contents() == []
