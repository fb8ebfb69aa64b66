"""What is read off a task is found wherever it lies in it."""

from __future__ import annotations

from typing import Any

import pytest
from dask.task_spec import Task

from gpuflow.cluster.tasks import compute_seconds, group_of, is_chunk_task, work_of

from .in_process import group, where


@pytest.mark.parametrize(
    "arguments",
    [(group(1),), ([0, (group(1),)],), ({"a": {"b": group(1)}},), (Task("inner", where, group(1)),), (0, "x", group(1))],
)
def test_the_group_is_found_however_deep(arguments: tuple[Any, ...]) -> None:
    assert group_of(Task("t", where, *arguments)) == group(1)
    assert group_of(Task("t", where, 0, part=arguments)) == group(1)


def test_a_task_without_one() -> None:
    assert group_of(Task("t", where, 1, "gpuflow", [None])) is None


@pytest.mark.parametrize(
    ("key", "ours"), [(("gpuflow-map-r", 1), True), (("map", 1), False), ("gpuflow-map", False), ((1, 2), False)]
)
def test_keys(key: object, ours: bool) -> None:
    assert is_chunk_task(key) is ours


@pytest.mark.parametrize("ahead", [0.0, 3600.0, -1e9])
def test_how_long_a_task_took_does_not_depend_on_how_the_clocks_stand(ahead: float) -> None:
    spent = [{"action": "transfer", "start": 1.0, "stop": 3.0}, {"action": "compute", "start": 3.0, "stop": 3.25}]
    shifted = [{**part, "start": part["start"] + ahead, "stop": part["stop"] + ahead} for part in spent]  # type: ignore[operator]
    assert compute_seconds(shifted) == pytest.approx(0.25, abs=1e-6)


def test_a_tiny_chunk_is_not_a_thousand_times_less_work() -> None:
    small, large = group(1), group(1)
    assert work_of(large) == work_of(small) > large.work
