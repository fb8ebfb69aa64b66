"""What tasks return comes with the news that they have ended, on a real cluster."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from distributed import get_worker, wait

from gpuflow.cluster.connection import Connection
from gpuflow.cluster.results import _LARGEST_NBYTES, Results, send


def run_task(*results: Any) -> None:
    for result in results:
        send(get_worker(), get_worker().get_current_task(), result)


@pytest.fixture
def results(three_nodes: Connection) -> Iterator[Results]:
    yield Results(three_nodes.client)
    three_nodes.results = Results(three_nodes.client)  # a client has one receiver


def test_there_before_the_task_has_ended(three_nodes: Connection, results: Results) -> None:
    keys = [("result-of", number) for number in range(50)]
    results.expect(keys)
    wait(three_nodes.client.map(run_task, range(50), key=keys, pure=False))
    assert [results.take(key) for key in keys] == list(range(50))
    assert results.take(keys[0]) is None, "once"


def test_what_nobody_waits_for_is_not_kept(three_nodes: Connection, results: Results) -> None:
    results.expect([("dropped", 0), ("kept", 0)])
    results.drop([("dropped", 0), ("kept", 0)])
    results.expect([("kept", 0)])
    futures = [three_nodes.client.submit(run_task, 1, key=(name, 0), pure=False) for name in ("dropped", "kept", "unknown")]
    wait(futures)
    assert [results.take((name, 0)) for name in ("dropped", "kept", "unknown")] == [None, 1, None]


def test_a_large_result_replaces_the_small_one_of_an_earlier_try(three_nodes: Connection, results: Results) -> None:
    results.expect(["again"])
    wait(three_nodes.client.submit(run_task, 1, bytes(_LARGEST_NBYTES), key="again", pure=False))
    assert results.take("again") is None
