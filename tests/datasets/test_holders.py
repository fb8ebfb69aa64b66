"""Numbers stand for sets, one for each, for ever."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gpuflow.datasets.holders import HolderSets, newest_wins

some = st.frozensets(st.sampled_from("abcd"))


@given(st.lists(some, max_size=20))
def test_a_set_has_one_number(sets: list[frozenset[str]]) -> None:
    holders = HolderSets()
    numbers = [holders.number(nodes) for nodes in sets]
    assert [holders[number] for number in numbers] == sets
    assert len(holders) == len({frozenset(), *sets})
    assert holders.number(frozenset()) == 0


@given(st.lists(some, max_size=20), st.sampled_from("abcd"))
def test_joined_and_left(sets: list[frozenset[str]], node: str) -> None:
    holders = HolderSets()
    numbers = np.array([holders.number(nodes) for nodes in sets], np.uint32)
    assert [holders[number] for number in holders.joined(numbers, node)] == [nodes | {node} for nodes in sets]
    assert [holders[number] for number in holders.left(numbers, node)] == [nodes - {node} for nodes in sets]
    assert [holders[number] for number in numbers] == sets


def test_a_newer_generation_takes_over_an_equal_one_joins_and_an_older_one_is_passed_over() -> None:
    sets = HolderSets()
    a = sets.number(frozenset("a"))
    known = np.full(3, a, np.uint32), np.full(3, 5, np.uint32)
    newer, (holders, generations) = newest_wins(sets, "b", known, np.array([6, 5, 4], np.uint32))
    assert newer.tolist() == [True, False, False]
    assert [sets[number] for number in holders] == [{"b"}, {"a", "b"}, {"a"}]
    assert generations.tolist() == [6, 5, 5]
    assert known[0].tolist() == [a] * 3
