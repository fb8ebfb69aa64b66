"""Even shares, the same for everybody who asks, and few chunks that move when a node joins."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuflow.datasets.placement import assign

names = st.lists(st.text("abcxyz0123-.", min_size=1, max_size=8), min_size=1, max_size=12, unique=True)


@given(st.integers(0, 300), names, st.randoms())
def test_even_deterministic_and_independent_of_the_order_of_nodes(count: int, nodes: list[str], random: object) -> None:
    placed = assign(count, nodes)
    assert len(placed) == count
    shares = Counter(placed)
    assert set(shares) <= set(nodes)
    assert max(shares[node] for node in nodes) - min(shares[node] for node in nodes) <= 1
    shuffled = list(nodes)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert assign(count, shuffled) == placed


@pytest.mark.parametrize("nodes", [1, 2, 3, 7, 15])
def test_another_node_takes_its_share_and_little_else_moves(nodes: int) -> None:
    count = 4000
    before = assign(count, [f"node-{i}" for i in range(nodes)])
    after = assign(count, [f"node-{i}" for i in range(nodes + 1)])
    moved = sum(old != new for old, new in zip(before, after, strict=True))
    share = count / (nodes + 1)
    assert after.count(f"node-{nodes}") == pytest.approx(share, abs=1)
    assert share - 1 <= moved <= 1.5 * share


def test_a_node_that_leaves_moves_about_its_own_chunks() -> None:
    nodes = [f"node-{i}" for i in range(6)]
    before, after = assign(3000, nodes), assign(3000, nodes[1:])
    moved = sum(old != new for old, new in zip(before, after, strict=True))
    assert 500 <= moved <= 750


def test_neighbours_spread() -> None:
    """No node gets a run of chunks that a reader of one region would then have to queue for."""
    placed = assign(1000, ["a", "b", "c", "d"])
    assert all(len(set(placed[start : start + 20])) >= 3 for start in range(0, 900, 20))


def test_stable_across_versions() -> None:
    """Two clients that place the same dataset must agree: this is a format, not an implementation."""
    assert "".join(assign(24, ["a", "b", "c"])) == "bcababaaaccbcacbbbcbaacc"


def test_no_nodes() -> None:
    with pytest.raises(ValueError, match="no node"):
        assign(3, [])
