"""One result whatever the grouping, and an error rather than a wrong total."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuflow.reductions.moments import Moments
from gpuflow.reductions.tree import collapse, root


@st.composite
def partitions(draw: st.DrawFn) -> tuple[int, list[list[int]]]:
    size = draw(st.integers(1, 40))
    owner = draw(st.lists(st.integers(0, 5), min_size=size, max_size=size))
    groups: dict[int, list[int]] = {}
    for chunk in draw(st.permutations(range(size))):
        groups.setdefault(owner[chunk], []).append(chunk)
    return size, list(groups.values())


def join(left: str, right: str) -> str:
    return f"({left} {right})"


@settings(deadline=None)
@given(partitions())
def test_the_order_of_merging_is_fixed(case: tuple[int, list[list[int]]]) -> None:
    size, groups = case
    united: dict[tuple[int, int], str] = {}
    for group in groups:
        united |= collapse({(0, chunk): str(chunk) for chunk in group}, size, join)
    assert root(united, size, join) == root({(0, chunk): str(chunk) for chunk in range(size)}, size, join)


@settings(deadline=None)
@given(partitions(), st.integers(0, 2**32))
def test_moments_come_out_the_same_to_the_bit(case: tuple[int, list[list[int]]], seed: int) -> None:
    size, groups = case
    chunks = np.random.default_rng(seed).normal(1e3, 1, (size, 7)).astype("f4")
    leaves = {(0, chunk): Moments.of(chunks[chunk], ()) for chunk in range(size)}
    united: dict[tuple[int, int], Moments] = {}
    for group in groups:
        united |= collapse({(0, chunk): leaves[0, chunk] for chunk in group}, size, Moments.merge)
    one, other = root(united, size, Moments.merge), root(leaves, size, Moments.merge)
    assert one.mean.tobytes() == other.mean.tobytes()
    assert one.m2.tobytes() == other.m2.tobytes()
    assert one.count == size * 7


def test_the_tree_is_the_documented_one() -> None:
    assert root({(0, chunk): str(chunk) for chunk in range(5)}, 5, join) == "(((0 1) (2 3)) 4)"
    assert collapse({(0, 0): "0", (0, 1): "1", (0, 3): "3"}, 5, join) == {(1, 0): "(0 1)", (0, 3): "3"}
    assert collapse({(0, 4): "4"}, 5, join) == {(2, 1): "4"}
    assert root({(0, 0): "0"}, 1, join) == "0"


def test_collapsing_again_changes_nothing() -> None:
    once = collapse({(0, chunk): str(chunk) for chunk in (0, 1, 2, 5, 6)}, 7, join)
    assert collapse(once, 7, join) == once


@pytest.mark.parametrize("missing", range(6))
def test_a_missing_chunk_is_an_error(missing: int) -> None:
    with pytest.raises(ValueError, match="incomplete"):
        root({(0, chunk): "x" for chunk in range(6) if chunk != missing}, 6, join)


@pytest.mark.parametrize("size", [0, 1, 3])
def test_no_nodes_have_no_root(size: int) -> None:
    with pytest.raises(ValueError, match="incomplete"):
        root({}, size, join)


def test_a_chunk_counted_twice_is_an_error() -> None:
    with pytest.raises(ValueError, match="twice"):
        root({(0, 0): "0", (0, 1): "1", (1, 0): "01"}, 2, join)
    with pytest.raises(ValueError, match="twice"):
        root({(2, 0): "all", (0, 3): "3"}, 4, join)


@pytest.mark.parametrize("node", [(0, 4), (0, -1), (1, 2), (3, 0), (-1, 0)])
def test_a_node_outside_the_tree_is_an_error(node: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="outside"):
        collapse({node: "x"}, 4, join)


@settings(deadline=None)
@given(partitions(), st.integers(0, 40), st.integers(0, 40))
def test_what_is_kept_of_the_first_chunks_serves_a_longer_array(case: tuple[int, list[list[int]]], whole: int, more: int) -> None:
    """In any grouping: nodes over the first `whole` chunks, merged with the rest in a tree over however many, make what one pass does."""
    size, groups = case
    whole = min(whole, size)
    parts: dict[tuple[int, int], str] = {}
    for group in groups:
        parts |= collapse({(0, chunk): str(chunk) for chunk in group}, size, join, whole)
    parts = collapse(parts, size, join, whole)
    leaves = {(0, chunk): str(chunk) for chunk in range(size)}
    assert root(parts, size, join) == root(leaves, size, join)
    kept = {node: value for node, value in parts.items() if (node[1] + 1) << node[0] <= whole}
    covered = {chunk for level, position in kept for chunk in range(position << level, (position + 1) << level)}
    assert covered == set(range(whole))
    assert len(kept) == bin(whole).count("1")
    longer = size + more
    rest = {(0, chunk): str(chunk) for chunk in range(longer) if chunk not in covered}
    assert root(kept | rest, longer, join) == root({(0, chunk): str(chunk) for chunk in range(longer)}, longer, join)
