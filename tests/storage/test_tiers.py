"""Tiers: what is read from them is what was put, of just the version that was asked for, within the budget, whatever happens meanwhile."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gpuflow.storage.tier_entries import Key, Version
from gpuflow.storage.tier_memory import HostMemory
from gpuflow.storage.tiers import Held, Tier

PAGE = 4096


def version(generation: int = 1) -> Version:
    return Version(generation, bytes([generation]) * 16, b"form")


def block(chunk: int, generation: int = 1, pages: int = 1) -> Any:
    return np.full((2, pages * PAGE // 8), 1000 * generation + chunk, np.float32)


def read(tier: Tier, chunk: int, generation: int = 1, dataset: str = "d") -> bool:
    """As the lane does: take it, or make it and put it. Whether it was there."""
    key = Key(dataset, "x", chunk)
    held = tier.take(key, version(generation))
    if held is None:
        tier.put(key, version(generation), block(chunk, generation), 0.01)
        return False
    with held as found:
        np.testing.assert_array_equal(found, block(chunk, generation))
    return True


def hits(tier: Tier, chunks: Any, dataset: str = "d") -> int:
    return sum(read(tier, chunk, dataset=dataset) for chunk in chunks)


def test_what_fits_is_read_once() -> None:
    tier = Tier(HostMemory(), 10 * PAGE)
    assert [hits(tier, range(10)) for _ in range(3)] == [0, 10, 10]


def test_a_cyclic_scan_of_twice_the_budget_hits_half() -> None:
    tier = Tier(HostMemory(), 50 * PAGE)
    assert [hits(tier, range(100)) for _ in range(20)] == [0] + [50] * 19


def test_the_order_of_a_scan_may_vary() -> None:
    """As threads that work side by side make it."""
    tier, random = Tier(HostMemory(), 50 * PAGE), np.random.default_rng(3)
    found = [hits(tier, np.argsort(np.arange(100) + 20 * random.random(100)).tolist()) for _ in range(20)]
    assert min(found[1:]) >= 45


@pytest.mark.parametrize("times", [3, 10])
def test_a_scan_of_many_budgets_hits_its_part(times: int) -> None:
    tier = Tier(HostMemory(), 50 * PAGE)
    assert [hits(tier, range(50 * times)) for _ in range(6)][1:] == [50] * 5


def test_what_is_hot_stays_while_a_scan_passes() -> None:
    tier = Tier(HostMemory(), 20 * PAGE)
    for _ in range(4):
        hits(tier, range(20))
    for chunk in range(100, 300):
        read(tier, chunk)
        read(tier, chunk % 20)
    assert hits(tier, range(20)) == 20


def test_another_dataset_gets_the_room_of_one_that_nobody_reads() -> None:
    tier = Tier(HostMemory(), 40 * PAGE)
    for _ in range(5):
        hits(tier, range(40), "before")
    hits(tier, range(40), "now")
    assert hits(tier, range(40), "now") >= 30
    hits(tier, range(40), "now")
    assert hits(tier, range(40), "now") == 40


def test_two_datasets_that_are_read_in_turn_do_not_drive_each_other_out() -> None:
    tier = Tier(HostMemory(), 40 * PAGE)
    for _ in range(6):
        found = sum(read(tier, chunk, dataset=name) for chunk in range(40) for name in ("a", "b"))
    assert found == 40


def test_what_takes_longer_to_be_had_again_stays() -> None:
    tier = Tier(HostMemory(), 10 * PAGE)
    for _ in range(3):
        for chunk in range(10):
            for name, seconds in (("cheap", 0.001), ("dear", 0.1)):
                held = tier.take(Key(name, "x", chunk), version())
                if held is None:
                    tier.put(Key(name, "x", chunk), version(), block(chunk), seconds)
                else:
                    held.close()
    assert {name: len(chunks) for (name, _), chunks in tier.contents().items()} == {"dear": 10}


def test_a_block_larger_than_the_budget_is_not_kept() -> None:
    tier = Tier(HostMemory(), 3 * PAGE)
    read(tier, 0)
    assert not tier.put(Key("d", "x", 1), version(), block(1, pages=4), 1.0)
    assert read(tier, 0)


def test_another_version_is_never_read() -> None:
    tier = Tier(HostMemory(), 10 * PAGE)
    for generation in (1, 2, 1):  # the last: removed, and made again under its name
        assert not read(tier, 0, generation)
        assert read(tier, 0, generation)
    assert len(tier) == 1
    other = version()._replace(form=b"other")
    assert tier.take(Key("d", "x", 0), other) is None


def test_what_was_forgotten_is_free_again() -> None:
    tier = Tier(HostMemory(), 4 * PAGE)
    hits(tier, range(2), "a")
    hits(tier, range(2), "b")
    tier.forget("a")
    assert tier.contents() == {("b", "x"): [0, 1]}
    hits(tier, range(2), "c")
    assert hits(tier, range(2), "c") == 2


def test_memory_is_not_used_again_under_a_reader() -> None:
    tier = Tier(HostMemory(), 2 * PAGE)
    read(tier, 0)
    held = tier.take(Key("d", "x", 0), version())
    assert held is not None
    tier.forget("d")
    for chunk in range(1, 20):
        read(tier, chunk)
        assert tier.nbytes <= 2 * PAGE
    np.testing.assert_array_equal(held.block, block(0))
    with pytest.raises(ValueError, match="read-only"):
        held.block[0, 0] = 1
    held.close()
    hits(tier, range(2), "e")
    assert tier.nbytes <= 2 * PAGE


def test_what_is_trimmed_goes_back_to_the_system_cheapest_first() -> None:
    tier = Tier(HostMemory(), 10 * PAGE)
    hits(tier, range(10))
    hits(tier, range(5))
    assert tier.trim(4 * PAGE) == 4 * PAGE
    assert tier.nbytes == 6 * PAGE
    assert hits(tier, range(5)) == 5
    tier.resize(2 * PAGE)
    assert tier.nbytes == 2 * PAGE


def test_blocks_of_other_sizes_find_room() -> None:
    tier = Tier(HostMemory(), 8 * PAGE)
    hits(tier, range(8), "small")
    for _ in range(3):
        for chunk in range(2):
            key = Key("large", "x", chunk)
            if (held := tier.take(key, version())) is not None:
                held.close()
                continue
            tier.put(key, version(), block(chunk, pages=4), 1.0)
            assert tier.nbytes <= 8 * PAGE
    assert len(tier.contents()["large", "x"]) == 2


def test_what_is_evicted_goes_to_the_tier_below_and_comes_up_again() -> None:
    below = Tier(HostMemory(), 10 * PAGE)
    tier = Tier(HostMemory(), 4 * PAGE, below)
    hits(tier, range(10))
    assert (len(tier), len(below)) == (4, 6)
    for _ in range(4):
        assert hits(tier, range(10)) == 10
    tier.resize(2 * PAGE)
    tier.forget("d")
    assert (len(tier), len(below)) == (0, 0)


def test_without_memory_a_block_is_not_kept(caplog: pytest.LogCaptureFixture) -> None:
    class Full(HostMemory):
        def allocate(self, nbytes: int) -> Any:
            raise OSError("no memory")

    tier = Tier(Full(), 10 * PAGE)
    assert hits(tier, [0, 0]) == 0
    assert tier.nbytes == 0
    assert "cannot have 4096 more (no memory)" in caplog.text


def test_changes_are_told_once() -> None:
    tier = Tier(HostMemory(), 2 * PAGE)
    hits(tier, range(2))
    assert tier.news() == {("d", "x"): {0: True, 1: True}}
    tier.forget("d")
    assert tier.news() == {("d", "x"): {0: False, 1: False}}
    assert tier.news() == {}


def test_readers_and_writers_side_by_side() -> None:
    """Each block says which version of which chunk it is, all over."""
    tier, wrong = Tier(HostMemory(), 12 * PAGE, Tier(HostMemory(), 6 * PAGE)), list[Any]()

    def work(seed: int) -> None:
        random = np.random.default_rng(seed)
        for _ in range(400):
            chunk, generation = int(random.integers(24)), int(random.integers(1, 3))
            key = Key("d", "x", chunk)
            held = tier.take(key, version(generation))
            if held is None:
                tier.put(key, version(generation), block(chunk, generation, int(random.integers(1, 3))), 0.01)
                continue
            with held as found:
                if random.random() < 0.05:
                    tier.trim(2 * PAGE)
                if not (found == 1000 * generation + chunk).all():
                    wrong.append((chunk, generation, found))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert tier.nbytes <= 12 * PAGE


class Cache(RuleBasedStateMachine):
    """Against the newest version of each chunk."""

    def __init__(self) -> None:
        super().__init__()
        self.tier, self.budget = Tier(HostMemory(), 6 * PAGE), 6
        self.newest: dict[int, int] = {}
        self.held: list[tuple[Held, int, int]] = []

    @rule(chunk=st.integers(0, 7), pages=st.integers(1, 4), seconds=st.floats(0, 1))
    def put(self, chunk: int, pages: int, seconds: float) -> None:
        generation = self.newest.setdefault(chunk, 1)
        self.tier.put(Key("d", "x", chunk), version(generation), block(chunk, generation, pages), seconds)

    @rule(chunk=st.integers(0, 7))
    def take(self, chunk: int) -> None:
        generation = self.newest.get(chunk, 1)
        held = self.tier.take(Key("d", "x", chunk), version(generation))
        if held is not None:
            self.held.append((held, chunk, generation))

    @rule(chunk=st.integers(0, 7))
    def change(self, chunk: int) -> None:
        self.newest[chunk] = self.newest.get(chunk, 1) + 1

    @precondition(lambda self: self.held)
    @rule(number=st.integers(0, 100))
    def close(self, number: int) -> None:
        self.held.pop(number % len(self.held))[0].close()

    @rule()
    def forget(self) -> None:
        self.tier.forget("d")
        assert len(self.tier) == 0

    @precondition(lambda self: not self.held)
    @rule(pages=st.integers(0, 8))
    def resize(self, pages: int) -> None:
        self.budget = pages
        self.tier.resize(pages * PAGE)

    @invariant()
    def within_budget(self) -> None:
        assert self.tier.nbytes <= self.budget * PAGE

    @invariant()
    def what_is_held_is_what_was_put(self) -> None:
        for held, chunk, generation in self.held:
            assert (held.block == 1000 * generation + chunk).all()


TestCache = Cache.TestCase
TestCache.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
