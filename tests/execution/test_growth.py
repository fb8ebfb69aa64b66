"""What is made of a source that grows: only what is new is done, and what comes out is what the whole would have made."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpuflow.cluster.connection import Connection
from gpuflow.datasets import catalog
from gpuflow.datasets.snapshots import delete_snapshot, take_snapshot
from gpuflow.errors import NameTaken
from gpuflow.execution import run as run_module
from gpuflow.execution.receipt import Receipt
from gpuflow.execution.run import run_pipeline
from gpuflow.objectstore.append import append_sources
from gpuflow.objectstore.repair import scrub_dataset
from gpuflow.objectstore.sources import open_source
from gpuflow.pipelines.load import from_dict
from tests.helpers import read_back
from tests.objectstore.test_append import Killed, write
from tests.objectstore.test_repair import file_of, flip, roots_of

_names = (f"source-{number}" for number in itertools.count())


def run(connection: Connection, source: str, output: Any, *steps: Any) -> dict[str, Any]:
    receipt = run_pipeline(connection, from_dict({"source": source, "steps": list(steps), "output": output}))
    assert receipt.status == "done", receipt.outcome.tally.failures
    return counts(receipt)


def counts(receipt: Receipt) -> dict[str, Any]:
    chunks: dict[str, Any] = receipt.to_dict()["chunks"]
    return chunks


def rows(connection: Connection, path: Path, name: str, start: int, stop: int) -> None:
    assert append_sources(connection, [open_source(write(path / f"{name}-{start}.zarr", start, stop))], name).status == "done"


def same(connection: Connection, one: str, other: str, *arrays: str) -> None:
    for array in arrays:
        np.testing.assert_array_equal(read_back(roots_of(connection), one, array), read_back(roots_of(connection), other, array))


@pytest.mark.parametrize(
    ("steps", "output", "done", "again"),
    [
        ([{"map": "x + 1"}], {}, 5 + 3, 3 + 2),  # t2m: 2 more and the partial one; time: 1 more
        ([{"map": "x + 1"}], {"chunks": {"time": 1}}, 11 + 3, 11),
        ([{"gaussian": {"sigma": {"time": 1}}}], {}, 5 + 3, 4 + 2),
    ],
    ids=["map", "cut otherwise", "neighbours"],
)
def test_only_what_is_new_is_done(
    three_nodes: Connection, tmp_path: Path, steps: list[Any], output: dict[str, Any], done: int, again: int
) -> None:
    source = next(_names)
    rows(three_nodes, tmp_path, source, 0, 10)
    run(three_nodes, source, {"dataset": f"{source}-out", **output}, *steps)
    rows(three_nodes, tmp_path, source, 10, 18)
    grown = run(three_nodes, source, {"dataset": f"{source}-out", **output}, *steps)
    whole = run(three_nodes, source, {"dataset": f"{source}-whole", **output}, *steps)
    same(three_nodes, f"{source}-out", f"{source}-whole", "t2m", "time", "y")
    print(grown, whole)
    assert run(three_nodes, source, {"dataset": f"{source}-out", **output}, *steps)["done"] == 0
