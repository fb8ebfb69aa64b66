"""The simulated cluster is one that could be: no chunk is done twice or forgotten, and nothing is faster than its threads."""

from __future__ import annotations

from typing import Any

import pytest

from ci.benchmarks.simulation import Result, Scenario, Simulation


def simulated(**options: Any) -> Result:
    return Simulation(Scenario(**({"nodes": 10, "chunks": 2000} | options))).run()


@pytest.mark.parametrize(
    "happens",
    [
        {},
        {"threads": 3},
        {"noise": 0.5},
        {"skew": 0.5},
        {"skew": 0.5, "replicas": 2},
        {"slow": 0.2},
        {"joins": ((1.0, 2), (3.0, 1))},
        {"replicas": 2, "losses": ((1.0, 2),)},
        {"chunks": 1},
        {"nodes": 1},
    ],
)
def test_every_chunk_is_done_and_nobody_works_faster_than_he_can(happens: dict[str, Any]) -> None:
    result = simulated(**happens)
    assert result.lost == 0
    assert result.ratio >= 1.0
    assert 0.0 <= result.local <= 1.0
    again = simulated(**happens)
    assert (again.seconds, again.tasks) == (result.seconds, result.tasks)


def test_a_healthy_cluster_ships_nothing_and_wastes_little() -> None:
    result = simulated(nodes=20, chunks=20_000)
    assert result.local == 1.0
    assert result.ratio <= 1.05


def test_a_hot_tenth_is_relieved() -> None:
    result = simulated(skew=0.5, noise=0.0)
    alone = 2000 * (0.5 + 0.05) * 0.05  # seconds that the hot node would take by itself
    assert result.seconds < alone / 2
    assert result.local < 1.0


def test_chunks_without_a_live_node_are_lost_and_the_others_done() -> None:
    result = simulated(losses=((1.0, 1),))
    assert 0 < result.lost <= 200


def test_nodes_that_join_are_given_work() -> None:
    assert simulated(joins=((0.5, 10),)).seconds < 0.8 * simulated().seconds


def test_a_scheduler_that_is_too_slow_is_what_bounds() -> None:
    quick, slow = simulated(nodes=50), simulated(nodes=50, task_seconds=0.05)
    assert slow.seconds > 2 * quick.seconds
    assert slow.seconds >= 0.9 * 0.05 * slow.tasks
