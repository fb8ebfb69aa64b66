"""Shipped chunks that stay: a dataset that lay on one node spreads as far as it may, and what is kept never passes for what is newer."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ci.benchmarks.routing import ARRAY, lay
from gpuflow.cluster.connection import Connection, connect
from gpuflow.cluster.launch import node_roots
from gpuflow.datasets.catalog import chunk_table, find, publish
from gpuflow.execution.lane import Lane
from gpuflow.execution.passes import Run
from gpuflow.execution.run import run_pipeline
from gpuflow.execution.submit import Outcome
from gpuflow.objectstore.ingest import ingest_source
from gpuflow.objectstore.sources import open_source
from gpuflow.pipelines.load import from_dict
from gpuflow.storage.node import NodeStore
from gpuflow.storage.record import DatasetRecord
from tests.helpers import read_embedded

CHUNKS, SIZE = 48, 1024


@dataclass(frozen=True)
class Slow:
    """Reads a chunk and takes its time, so that waiting for the one holder costs more than shipping."""

    records: tuple[DatasetRecord, ...]
    durable: bool = False

    def prepare(self, array: str) -> None: ...

    def process(self, lane: Lane, chunk: int) -> None:
        lane.read(chunk)
        time.sleep(0.02)
        lane.keep(chunk, None)

    def result(self, lane: Lane) -> None: ...


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three nodes; each dataset lies wholly on the first."""
    base = tmp_path_factory.mktemp("replicas")
    for name in ("one", "two", "three", "changed", "full"):
        lay(node_roots(base, 3), name, CHUNKS, 4 * SIZE, lambda chunk: [0])
    return base


@pytest.fixture(scope="module")
def nodes(root: Path) -> Iterator[Connection]:
    with connect(nodes=3, workers=1, root=root) as connection:
        yield connection


def allow(connection: Connection, dataset: str, most: int) -> None:
    assert publish(connection, find(connection, dataset).keeping({"min": 1, "max": most}))


def read_all(connection: Connection, dataset: str) -> Outcome:
    """One run over all chunks, which has to succeed."""
    record = find(connection, dataset)
    run = Run(connection, record)
    table = chunk_table(connection, dataset, ARRAY, CHUNKS)
    outcome = run.submit("read", run.batches(Slow((record,)), ARRAY, range(CHUNKS), table))
    assert (outcome.tally.failures, outcome.tally.done) == ([], CHUNKS)
    return outcome


def copies(connection: Connection, dataset: str) -> list[int]:
    """How many nodes have the newest generation of each chunk: by their manifests, and the scheduler knows it."""
    holders = chunk_table(connection, dataset, ARRAY, CHUNKS).holder_sets
    known = connection.ask("gf_holders", dataset=dataset, array=ARRAY, count=CHUNKS)
    assert list(map(set, known)) == list(map(set, holders))
    return [len(nodes) for nodes in holders]


def double(dataset: str, output: Any) -> Any:
    return from_dict({"source": dataset, "steps": [{"map": "x * 2"}], "output": output})


def values() -> Any:
    return np.repeat(280 + np.arange(CHUNKS) % 7, SIZE).astype("float32")


def test_by_default_nothing_is_kept(nodes: Connection) -> None:
    tally = read_all(nodes, "one").tally
    assert tally.remote_chunks > CHUNKS // 4
    assert tally.kept == 0
    assert copies(nodes, "one") == [1] * CHUNKS


def test_a_shipped_task_says_why_and_need_not_ask_where_its_chunks_are(nodes: Connection) -> None:
    nodes.client.run_on_scheduler(_count_locates)
    outcome = read_all(nodes, "one")
    assert nodes.client.run_on_scheduler(_locates) == 0
    assert outcome.tally.shipped_why == {"hot_node": 4 * SIZE * outcome.tally.remote_chunks}
    chunks, nbytes, seconds = outcome.transferred
    assert chunks >= outcome.tally.remote_chunks
    assert nbytes >= outcome.tally.shipped > 0
    assert seconds > 0


def _count_locates(dask_scheduler: Any) -> None:
    locate, dask_scheduler.gf_located = dask_scheduler.handlers["gf_locate"], 0

    async def counted(**question: Any) -> Any:
        dask_scheduler.gf_located += 1
        return await locate(**question)

    dask_scheduler.handlers["gf_locate"] = counted


def _locates(dask_scheduler: Any) -> int:
    return int(dask_scheduler.gf_located)


def test_the_second_run_ships_almost_nothing_and_uses_all_nodes(nodes: Connection) -> None:
    allow(nodes, "three", 3)
    first = read_all(nodes, "three").tally
    assert first.remote_chunks > CHUNKS // 4
    assert sum(copies(nodes, "three")) == CHUNKS + first.remote_chunks
    assert first.kept == first.shipped == 4 * SIZE * first.remote_chunks
    second = read_all(nodes, "three").tally
    assert second.remote_chunks <= CHUNKS // 5  # the router ships a few where a busy machine makes a node late
    assert len(second.by_node) == 3
    assert min(second.by_node.values()) >= CHUNKS // 6


def test_there_are_never_more_than_allowed(nodes: Connection) -> None:
    allow(nodes, "two", 2)
    for _ in range(3):
        read_all(nodes, "two")
    assert Counter(copies(nodes, "two")).keys() <= {1, 2}
    assert max(copies(nodes, "two")) == 2


def test_after_a_change_in_place_every_reader_gets_what_is_new(nodes: Connection, root: Path) -> None:
    allow(nodes, "changed", 3)
    read_all(nodes, "changed")
    assert max(copies(nodes, "changed")) > 1
    receipt = run_pipeline(nodes, double("changed", {"in_place": True})).to_dict()
    assert (receipt["chunks"]["done"], receipt["chunks"]["failed"], receipt["bytes"]["shipped"]) == (CHUNKS, 0, 0)
    assert copies(nodes, "changed") == [1] * CHUNKS, "the copies of what it was are known to be stale"
    np.testing.assert_array_equal(read_embedded(root, "changed", ARRAY), 2 * values())
    assert run_pipeline(nodes, double("changed", "changed-out")).status == "done"
    np.testing.assert_array_equal(read_embedded(root, "changed-out", ARRAY), 4 * values())
    read_all(nodes, "changed")  # and what is kept from now on takes the place of what is stale
    assert max(copies(nodes, "changed")) > 1
    np.testing.assert_array_equal(read_embedded(root, "changed", ARRAY), 2 * values())


def test_where_there_is_no_room_nothing_is_kept_and_nothing_fails(nodes: Connection) -> None:
    allow(nodes, "full", 3)
    nodes.each_node(_fill)
    try:
        assert read_all(nodes, "full").tally.remote_chunks > CHUNKS // 4
    finally:
        nodes.each_node(_empty)
    assert copies(nodes, "full") == [1] * CHUNKS


def _fill(store: NodeStore) -> None:
    """Whatever is staged here from now on finds the disk full."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    store._write = refuse  # type: ignore[method-assign,assignment]


def _empty(store: NodeStore) -> None:
    del store._write  # type: ignore[method-assign]


def test_a_full_receiver_fails_its_chunks_with_one_clear_error(nodes: Connection, root: Path) -> None:
    """Those that are shipped to it as well; what is there stays, and the same run again does the rest."""
    spec = double("one", "one-out")
    nodes.each_node(_fill)
    try:
        receipt = run_pipeline(nodes, spec).to_dict()
    finally:
        nodes.each_node(_empty)
    assert receipt["chunks"]["failed"] == CHUNKS
    assert all("the disk is full; free some space and run again" in failure["error"] for failure in receipt["failures"])
    np.testing.assert_array_equal(read_embedded(root, "one", ARRAY), values())
    assert run_pipeline(nodes, spec).status == "done"
    np.testing.assert_array_equal(read_embedded(root, "one-out", ARRAY), 2 * values())


def test_the_policy_is_given_when_it_is_ingested_and_may_be_changed(nodes: Connection, tmp_path: Path) -> None:
    np.save(tmp_path / "source.npy", np.zeros((8, 4), "float32"))
    source = open_source(tmp_path / "source.npy", chunk_samples=2)
    for given, known in ((None, 1), (3, 3), (None, 3), (2, 2)):
        ingest_source(nodes, source, "policy", replicas=given and {"min": 1, "max": given})
        assert find(nodes, "policy").replicas == {"min": 1, "max": known}


def test_a_pipeline_gives_its_output_a_policy_and_may_change_it(nodes: Connection) -> None:
    assert run_pipeline(nodes, double("one", {"dataset": "spread"})).status == "done"
    for given, known in (({"max": 3}, 3), (None, 3), ({}, 1)):
        output = {"dataset": "spread"} if given is None else {"dataset": "spread", "replicas": given}
        assert run_pipeline(nodes, double("one", output)).to_dict()["chunks"]["skipped"] == CHUNKS  # the same pipeline
        assert find(nodes, "spread").replicas == {"min": 1, "max": known}
    assert run_pipeline(nodes, double("one", {"dataset": "spread-new", "replicas": {"max": 2}})).status == "done"
    assert find(nodes, "spread-new").replicas == {"min": 1, "max": 2}
