"""What tasks that gather will ship: what their chunks share counts once, and some tasks speak for all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpuflow.datasets.catalog import ChunkTable, merge
from gpuflow.pipelines import shipping
from gpuflow.pipelines.load import from_dict
from gpuflow.pipelines.memory import Sharing
from gpuflow.pipelines.plan import ChunkPlan, make_plan, plan_chunks
from gpuflow.pipelines.shipping import ship_nbytes
from gpuflow.storage.manifest import REPLICA_DTYPE
from gpuflow.storage.metadata import ArrayMetadata
from gpuflow.storage.record import DatasetRecord

STORED = 7
"""Encoded bytes of a chunk."""


def planned(shape: tuple[int, ...], steps: list[Any], output: dict[str, Any], halves: bool = True) -> ChunkPlan:
    """Of float32 in chunks of 4 x 4 on two nodes: the upper and the lower half, or in turn."""
    metadata = ArrayMetadata.create(shape, (4, 4), np.dtype("f4"), dims=("y", "x"))
    source = DatasetRecord("d", state="ready", arrays={"a": metadata.document})
    count = metadata.grid.size
    spec = from_dict({"source": "d", "steps": steps, "output": {"dataset": "e", **output}})
    (array,) = make_plan(spec, source).arrays

    def held(node: int) -> Any:
        mine = [chunk for chunk in range(count) if (chunk >= count // 2 if halves else chunk % 2) == node]
        return np.array([(chunk, 1, STORED, chunk.to_bytes(16), bytes(16), bytes(16)) for chunk in mine], REPLICA_DTYPE)

    table: ChunkTable = merge({"n0": held(0), "n1": held(1)}, count)
    return plan_chunks(array, array.made_by(None), {"a": table}, merge({}, array.target.grid.size))


def test_neighbours_of_a_task_take_a_border_once() -> None:
    """8 x 16: a row of four chunks on each node, which needs one row of values of the other."""
    part = planned((8, 16), [{"median": {"size": {"y": 3, "x": 3}}}], {})
    assert ship_nbytes(part, Sharing(100, 1), {}) == 2 * 16 * 4
    assert ship_nbytes(part, Sharing(1, 1), {}) == part.ship_nbytes == 2 * (5 + 6 + 6 + 5) * 4, "one by one they overlap"
    assert ship_nbytes(part, Sharing(100, 1), {"n0": 2, "n1": 2}) == 2 * (9 + 9) * 4


def test_the_other_end_is_one_border_more() -> None:
    """8 x 16: of each node's row of four chunks its first and its last row of values."""
    part = planned((8, 16), [{"median": {"size": {"y": 3, "x": 3}, "mode": "wrap"}}], {})
    assert ship_nbytes(part, Sharing(100, 1), {}) == 2 * 2 * 16 * 4
    assert ship_nbytes(part, Sharing(1, 1), {}) == part.ship_nbytes == 2 * 4 * 2 * 6 * 4, "one by one they overlap"


def test_what_is_wanted_whole_goes_as_it_is_stored() -> None:
    part = planned((8, 4), [], {"shards": [8, 4]})
    assert part.ship_nbytes == 4 * 4 * 4
    assert ship_nbytes(part, Sharing(100, 1), {}) == STORED


def test_where_nothing_travels() -> None:
    part = planned((8, 16), [{"median": {"size": {"x": 3}}}], {})
    assert (part.gathers is None, ship_nbytes(part, Sharing(100, 1), {})) == (False, 0)
    assert ship_nbytes(planned((8, 16), [{"clip": [0, 1]}], {}), Sharing(100, 1), {}) == 0


@pytest.mark.parametrize("halves", [True, False])
def test_some_tasks_speak_for_all(halves: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    part = planned((160, 160), [{"gaussian": {"sigma": {"y": 0.5, "x": 0.5}}}], {}, halves)
    exact = ship_nbytes(part, Sharing(10, 1), {})
    monkeypatch.setattr(shipping, "_PARTS", 2500)
    assert ship_nbytes(part, Sharing(10, 1), {}) == pytest.approx(exact, rel=0.3)
    assert 0 < exact <= part.ship_nbytes
