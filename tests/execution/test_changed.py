"""Runs on what changed alone, on a real cluster: the same as a whole run, of which nothing is left to do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import zarr

import gpuflow
from gpuflow.cluster.connection import Connection
from gpuflow.datasets import catalog
from gpuflow.execution.changed import decide, parameters_of, run_changed
from gpuflow.execution.run import run_pipeline
from gpuflow.pipelines.load import from_dict
from gpuflow.pipelines.plan import Plan
from gpuflow.triggers.feed import events
from tests.execution.test_run import roots_of
from tests.helpers import read_back

SHAPE = (12, 24, 20)


@pytest.fixture(scope="module")
def source(three_nodes: Connection, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("changed") / "in.zarr"
    group = zarr.create_group(path)
    for seed, name in enumerate("uv"):
        array = group.create_array(name, shape=SHAPE, chunks=(3, 12, 20), dtype="float32", dimension_names=["time", "y", "x"])
        array[...] = np.random.default_rng(seed).normal(size=SHAPE).astype("float32")
    gpuflow.ingest(path, "changed-in", connection=three_nodes)
    return "changed-in"


def _write(connection: Connection, array: str, time: int, value: float) -> None:
    dataset = gpuflow.open("changed-in", connection=connection, mode="r+")
    dataset[array][time, :12] = np.float32(value)
    dataset.close()


STEPS: dict[str, list[Any]] = {
    "map": [{"map": "x * 2"}],
    "halo": [{"gaussian": {"sigma": {"time": 1}, "truncate": 1}}],
    "joined": [{"map": {"sum": "u + v"}}, {"drop": "v"}],
}


@pytest.mark.parametrize("name", STEPS)
def test_only_what_is_touched_is_done_and_nothing_is_left(three_nodes: Connection, source: str, name: str) -> None:
    spec = from_dict({"source": source, "steps": STEPS[name], "output": f"changed-{name}"})
    assert run_changed(three_nodes, spec, {"u": [0]}) is None, "the output is not there yet"
    whole = run_pipeline(three_nodes, spec)
    for chunk, value in ((2, 7.0), (6, -3.0)):
        _write(three_nodes, "u", chunk // 2 * 3, value + len(name))
        receipt = run_changed(three_nodes, spec, {"u": [chunk]})
        assert receipt is not None
        assert receipt.status == "done"
        assert 1 <= receipt.outcome.tally.done < whole.outcome.tally.done / 2
        assert receipt.total == receipt.outcome.tally.done + receipt.planned_skips
    again = run_pipeline(three_nodes, spec)
    assert again.outcome.tally.done == 0, "a whole run finds nothing more to do"
    assert again.planned_skips == again.total
    receipt = run_changed(three_nodes, spec, {"u": [2, 6]})
    assert receipt is not None
    assert receipt.outcome.tally.done == 0
    if name == "map":
        mine = read_back(roots_of(three_nodes), "changed-map", "u")
        np.testing.assert_array_equal(mine, 2 * read_back(roots_of(three_nodes), source, "u"))


def test_parameters_stay_as_they_were_fitted(three_nodes: Connection, source: str) -> None:
    spec = from_dict({"source": {"dataset": source, "arrays": "u"}, "steps": [{"standardize": None}], "output": "changed-std"})
    plans: list[Plan] = []
    run_pipeline(three_nodes, spec, resolved=plans.append)
    before = read_back(roots_of(three_nodes), "changed-std", "u")
    fitted = parameters_of(plans[-1])
    _write(three_nodes, "u", 9, 100.0)
    assert decide(three_nodes, spec, {"u": [6]}) is None, "the statistics of what there is now are not known"
    receipt = run_changed(three_nodes, spec, {"u": [6]}, fitted)
    assert receipt is not None
    assert receipt.outcome.tally.done == 1
    after = read_back(roots_of(three_nodes), "changed-std", "u")
    assert (after[:9] == before[:9]).all(), "all others are as they were"
    assert after[9, :12].min() > 10


def test_in_place(three_nodes: Connection) -> None:
    dataset = gpuflow.open("changed-place", connection=three_nodes, mode="a")
    zarr.create_group(dataset.store).create_array("data", shape=(6, 4), chunks=(1, 4), dtype="float32")[...] = 1
    dataset.close()
    spec = from_dict({"source": "changed-place", "steps": [{"map": "x + 1"}], "output": {"in_place": True}})
    assert run_changed(three_nodes, spec, {"data": [1]}) is None, "it was never applied"
    run_pipeline(three_nodes, spec)
    dataset = gpuflow.open("changed-place", connection=three_nodes, mode="r+")
    dataset["data"][0] = 5.0
    dataset.close()
    for done in (1, 0):
        receipt = run_changed(three_nodes, spec, {"data": range(6)})
        assert receipt is not None
        assert receipt.outcome.tally.done == done, "once, whatever is said to have changed"
    assert read_back(roots_of(three_nodes), "changed-place", "data")[0].tolist() == [6.0] * 4


def test_what_is_made_again_has_its_replicas(three_nodes: Connection, source: str) -> None:
    output = {"dataset": "changed-two", "replicas": {"min": 2}}
    spec = from_dict({"source": {"dataset": source, "arrays": "u"}, "steps": [{"map": "x * 2"}], "output": output})
    run_pipeline(three_nodes, spec)
    _write(three_nodes, "u", 0, 77.0)
    with events("now", connection=three_nodes) as feed:
        cursor = feed.cursor
    receipt = run_changed(three_nodes, spec, {"u": [0]})
    assert receipt is not None
    assert receipt.outcome.tally.done == 1
    found = catalog.generations(three_nodes, "changed-two", "u", 0)
    assert sorted(found.values()) == [[], [2], [2]]
    with events(cursor, connection=three_nodes, dataset="changed-two") as feed:
        assert [(event.chunk, event.generation) for event in feed] == [(0, 2)], "once, whatever the number of copies"
