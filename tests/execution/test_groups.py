"""Every chunk in one task, with others of its holders, and not too many."""

from __future__ import annotations

from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuflow.cluster.messages import ChunkGroup
from gpuflow.execution.groups import LEAST_SECONDS, MOST_CHUNKS, MOST_NBYTES, MOST_SECONDS, Cutter, by_holders, in_turn, part_of


def group_of(count: int, nbytes: int = 1) -> ChunkGroup:
    """Chunks 10 and on, of `nbytes` each."""
    chunks = tuple(range(10, 10 + count))
    return ChunkGroup("r", "d", "a", chunks, tuple(c + 1 for c in chunks), tuple(c + 2 for c in chunks), nbytes * count, count)


@given(
    st.dictionaries(st.integers(0, 500), st.sampled_from("abc")),
    st.dictionaries(st.sampled_from("abc"), st.integers(0, 4)),
    st.integers(0, 8),
    st.randoms(use_true_random=False),
)
def test_chunks_with_the_same_holders_come_together(
    table: dict[int, str], slots: dict[str, int], threads: int, random: object
) -> None:
    chunks = list(table)
    random.shuffle(chunks)  # type: ignore[attr-defined]
    found = by_holders(chunks, [table[c] for c in chunks], slots, threads)
    assert sorted(chunk for _, part, _ in found for chunk in part) == sorted(table)
    for key, part, busy in found:
        assert part == sorted(chunk for chunk in table if table[chunk] == key)
        assert busy >= max(1, slots.get(key, 0))


def test_a_hot_key_is_cut_for_all_who_will_help() -> None:
    assert by_holders(range(100), ["a"] * 100, {"a": 1}, 8) == [("a", list(range(100)), 8)]
    assert {busy for _, _, busy in by_holders(range(100), ["ab"[i % 2] for i in range(100)], {"a": 4, "b": 4}, 8)} == {4}


@settings(deadline=None)
@given(
    st.integers(0, 5000),
    st.integers(1, 9),
    st.sampled_from([1, 2**16, MOST_NBYTES // 3, MOST_NBYTES, 2 * MOST_NBYTES]),
    st.none() | st.floats(1e-6, 100.0),
)
def test_cutting_leaves_out_nothing(count: int, slots: int, nbytes: int, seconds: float | None) -> None:
    whole = group_of(count, nbytes)
    cutter = Cutter(whole, slots)
    groups = [*cutter.first(), *cutter.rest(seconds)]
    for name in ("chunks", "generations", "newest"):
        assert tuple(chain.from_iterable(getattr(group, name) for group in groups)) == getattr(whole, name)
    for group in groups:
        assert 1 <= len(group.chunks) <= MOST_CHUNKS
        assert len(group.chunks) == 1 or group.nbytes <= MOST_NBYTES
        assert group.nbytes == nbytes * len(group.chunks)
    assert list(cutter.rest(seconds)) == []


def test_slow_chunks_come_in_small_tasks_and_quick_ones_in_large() -> None:
    def sizes(seconds: float) -> list[int]:
        cutter = Cutter(group_of(10_000), 2)
        first = list(cutter.first())
        assert len(first) == 4
        return [len(group.chunks) for group in cutter.rest(seconds)]

    assert max(sizes(0.5)) * 0.5 <= MOST_SECONDS
    assert sizes(100.0) == [1] * len(sizes(100.0))
    quick = sizes(1e-4)
    assert len(quick) < 40
    assert quick == sorted(quick, reverse=True)
    assert min(quick[:-1]) >= 600


def test_with_many_threads_tasks_are_long_enough_for_the_scheduler_to_keep_up() -> None:
    def least(threads: int) -> float:
        cutter = Cutter(group_of(10_000), 2, threads)
        list(cutter.first())
        return 0.001 * min([len(group.chunks) for group in cutter.rest(0.001)][:-1])

    assert least(2) == least(60) == pytest.approx(LEAST_SECONDS)
    for threads in (100, 1000):
        assert threads / least(threads) <= 2000, "tasks a second"


def test_the_last_tasks_are_a_small_part_of_a_thread_s_share() -> None:
    cutter = Cutter(group_of(256), 2)
    sizes = [len(group.chunks) for group in (*cutter.first(), *cutter.rest(0.003))]
    assert max(sizes[-2:]) * 0.003 <= LEAST_SECONDS
    assert len(sizes) < 25


def test_batches_take_turns() -> None:
    groups = [[group_of(1)] * count for count in (3, 1, 2)]
    assert [number for number, _ in in_turn([iter(part) for part in groups])] == [0, 1, 2, 0, 2, 0]


def test_a_part_of_a_group() -> None:
    part = part_of(group_of(4, nbytes=3), [1, 3])
    assert (part.chunks, part.generations, part.newest, part.nbytes, part.work) == ((11, 13), (12, 14), (13, 15), 6, 2)
