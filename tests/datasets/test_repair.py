"""What copies are to be made: enough, no more, each on a node of its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuflow.datasets.catalog import ChunkTable, merge
from gpuflow.datasets.repair import copies_to_make
from gpuflow.errors import ClusterError
from gpuflow.storage.manifest import REPLICA_DTYPE

NODES = ["n0", "n1", "n2", "n3"]


def table_of(holders: list[set[str]], nodes: list[str] = NODES) -> ChunkTable:
    """Chunk i on the nodes `holders[i]`."""
    rows: dict[str, list[Any]] = {node: [] for node in nodes}
    for chunk, names in enumerate(holders):
        for node in names:
            rows[node].append((chunk, 1, 100, bytes(16), bytes(16), bytes(16)))
    return merge({node: np.array(found, REPLICA_DTYPE) for node, found in rows.items()}, len(holders))


@given(
    st.lists(st.sets(st.sampled_from(NODES), max_size=4), max_size=40),
    st.integers(1, 4),
    st.sets(st.sampled_from(NODES), max_size=2),
)
def test_enough_and_no_more(holders: list[set[str]], wanted: int, leaving: set[str]) -> None:
    free = dict.fromkeys(NODES, 10**9)
    if wanted > len(NODES) - len(leaving):
        with pytest.raises(ClusterError, match="copies need as many nodes"):
            copies_to_make(table_of(holders), wanted, free, leaving)
        return
    found = copies_to_make(table_of(holders), wanted, free, leaving)
    for chunk, names in enumerate(holders):
        new = [node for node, chunks in found.items() for each in chunks if each == chunk]
        assert not set(new) & (names | leaving)
        assert len(new) == len(set(new)) == (max(0, wanted - len(names - leaving)) if names else 0)


def test_by_free_space_and_few_move_when_a_node_joins() -> None:
    holders = [{"n0"}] * 4000
    free = {"n0": 10**9, "n1": 10**9, "n2": 3 * 10**9}
    before = copies_to_make(table_of(holders), 2, free)
    assert 0.7 < len(before["n2"]) / 3000 < 1.3
    after = copies_to_make(table_of(holders), 2, {**free, "n3": 10**9})
    assert set(after["n1"]) <= set(before["n1"])
    assert set(after["n2"]) <= set(before["n2"])


def test_arrays_of_one_grid_lie_together() -> None:
    free = dict.fromkeys(NODES, 10**9)
    assert copies_to_make(table_of([{"n0"}] * 50), 2, free) == copies_to_make(table_of([{"n0"}] * 50), 2, free)


def test_a_full_node_gets_next_to_nothing() -> None:
    found = copies_to_make(table_of([{"n0"}] * 1000), 2, {"n0": 0, "n1": 0, "n2": 10**9})
    assert len(found["n2"]) == 1000
