"""Moves: as few as may be, to where there is room, and none when it is balanced."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gpuflow.datasets.balance import moves, shares
from gpuflow.datasets.repair import rack_of
from tests.datasets.test_repair import NODES, table_of

SOME = st.lists(st.sets(st.sampled_from(NODES), min_size=1, max_size=3), min_size=1, max_size=60)
DISKS = st.fixed_dictionaries({node: st.integers(1, 5) for node in NODES})


def after(holders: list[set[str]], disks: dict[str, int], racks: dict[str, str]) -> list[set[str]]:
    result = [set(each) for each in holders]
    for move in moves(table_of(holders), disks, racks):
        for chunk in move.chunks:
            assert move.source in result[chunk]
            assert move.target not in result[chunk]
            result[chunk] = result[chunk] - {move.source} | {move.target}
    return result


@given(SOME, DISKS)
def test_as_many_copies_as_before_and_nothing_moves_twice(holders: list[set[str]], disks: dict[str, int]) -> None:
    once = after(holders, disks, {})
    assert [len(each) for each in once] == [len(each) for each in holders]
    moved = [move for move in moves(table_of(holders), disks) for _ in move.chunks]
    share = shares(sum(map(len, holders)), len(holders), disks)
    surplus = {node: max(0, sum(node in each for each in holders) - share[node]) for node in NODES}
    assert all(sum(move.source == node for move in moved) <= surplus[node] for node in NODES)


@given(st.lists(st.sampled_from(NODES), min_size=1, max_size=60), DISKS)
def test_single_copies_end_at_the_shares(holders: list[str], disks: dict[str, int]) -> None:
    once = after([{node} for node in holders], disks, {})
    assert {node: once.count({node}) for node in NODES} == shares(len(holders), len(holders), disks)
    assert moves(table_of(once), disks) == []


@given(SOME, DISKS)
def test_never_on_fewer_racks(holders: list[set[str]], disks: dict[str, int]) -> None:
    racks = {"n0": "a", "n1": "a", "n2": "b"}
    for before, now in zip(holders, after(holders, disks, racks), strict=True):
        assert len({rack_of(node, racks) for node in now}) >= len({rack_of(node, racks) for node in before})


@given(st.integers(0, 100), st.integers(1, 3), DISKS)
def test_shares_add_up(chunks: int, copies: int, disks: dict[str, int]) -> None:
    share = shares(chunks * copies, chunks, disks)
    assert sum(share.values()) == chunks * copies
    assert all(0 <= part <= chunks for part in share.values())
