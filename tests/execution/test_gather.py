"""Chunks that are computed from parts of several, on a real cluster of three nodes, against NumPy and SciPy."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from scipy import ndimage

from gpuflow.cluster.connection import Connection, connect
from gpuflow.datasets import catalog
from gpuflow.errors import ConfigError
from gpuflow.execution.receipt import Receipt
from gpuflow.execution.run import run_pipeline
from gpuflow.execution.summary import run_statistics
from gpuflow.objectstore.healing import run_and_heal
from gpuflow.objectstore.ingest import ingest_source
from gpuflow.objectstore.sources import open_source
from gpuflow.pipelines.load import any_from_dict, from_dict
from tests.helpers import read_back, read_embedded

SHAPE = (20, 96, 80)


@pytest.fixture(scope="module")
def fields(three_nodes: Connection, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """Dataset `gathered-in`: u and v over different grids, and their coordinate time."""
    path = tmp_path_factory.mktemp("gather") / "in.zarr"
    group = zarr.create_group(path)
    values = {}
    for seed, (name, chunks) in enumerate({"u": (4, 48, 40), "v": (20, 16, 80)}.items()):
        array = group.create_array(name, shape=SHAPE, chunks=chunks, dtype="float32", dimension_names=["time", "y", "x"])
        values[name] = (np.random.default_rng(seed).normal(size=SHAPE) * 20 + 270).astype("float32")
        array[...] = values[name]
    time = group.create_array("time", shape=SHAPE[:1], chunks=(10,), dtype="int64", dimension_names=["time"])
    time[...] = np.arange(SHAPE[0])
    time.attrs["units"] = "days since 2020-01-01"
    assert ingest_source(three_nodes, open_source(path), "gathered-in").status == "done"
    return values


def roots_of(connection: Connection) -> list[Path]:
    return [Path(worker["root"]) for worker in connection.info()["workers"].values()]


def run(connection: Connection, name: str, steps: list[Any], arrays: Any = None, **output: Any) -> Receipt:
    source = {"dataset": "gathered-in"} | ({"arrays": arrays} if arrays else {})
    return run_pipeline(connection, from_dict({"source": source, "steps": steps, "output": {"dataset": name, **output}}))


def stored(connection: Connection, name: str, array: str) -> np.ndarray:
    return read_back(roots_of(connection), name, array)


@pytest.mark.parametrize(
    ("name", "output"),
    [
        ("samples", {"chunks": {"time": 1}, "shards": [4, 96, 80]}),
        ("series", {"chunks": {"time": -1, "y": 8, "x": 8}, "shards": [20, 24, 80]}),
        ("odd", {"shards": [7, 33, 21], "chunks": "whole", "compressor": "none"}),
    ],
)
def test_rechunked_it_is_the_same(three_nodes: Connection, fields: dict[str, np.ndarray], name: str, output: Any) -> None:
    receipt = run(three_nodes, name, [], **output).to_dict()
    assert (receipt["status"], receipt["chunks"]["failed"]) == ("done", 0)
    for array, values in fields.items():
        np.testing.assert_array_equal(stored(three_nodes, name, array), values)
    assert receipt["bytes"]["shipped"] == receipt["bytes"]["sent"] > 0
    assert receipt["bytes"]["shipped"] <= sum(values.nbytes for values in fields.values()), "no byte is shipped twice"
    assert (stored(three_nodes, name, "time") == np.arange(20)).all()
    record = catalog.find(three_nodes, name)
    assert record.array("u").grid.chunks == tuple(output["shards"])
    opened = zarr.open_array(roots_of(three_nodes)[0] / "datasets" / name / "u", mode="r")
    assert opened.metadata.dimension_names == ("time", "y", "x")
    again = run(three_nodes, name, [], **output).to_dict()["chunks"]
    assert (again["done"], again["skipped"]) == (0, again["total"])


def test_only_borders_travel_for_a_filter(three_nodes: Connection, fields: dict[str, np.ndarray]) -> None:
    steps = [{"gaussian": {"sigma": {"y": 1, "x": 1}, "mode": "mirror"}}, {"cast": "float16"}]
    receipt = run(three_nodes, "blurred", steps, "u").to_dict()
    assert receipt["status"] == "done"
    expected = ndimage.gaussian_filter(fields["u"], (0, 1, 1), mode="mirror")
    np.testing.assert_allclose(stored(three_nodes, "blurred", "u"), expected, rtol=1e-3)
    # Each chunk of 4 x 48 x 40 needs 4 values around it: of a node that holds a third, not more than these come from others.
    borders = 20 * 4 * (4 * (56 * 48 - 48 * 40))
    assert 0 < receipt["bytes"]["shipped"] <= borders
    assert set(receipt["locality"]["shipped_bytes"]) == {"gathered"}


def test_only_borders_travel_where_the_field_wraps(three_nodes: Connection, fields: dict[str, np.ndarray]) -> None:
    """u lies in 5 x 2 x 2 chunks of 4 x 48 x 40, v in 6 chunks of 20 x 16 x 80: each takes so many values from around it."""
    steps = [{"median": {"size": {"y": 5, "x": 3}, "mode": "wrap"}}]
    for name, most in {"u": 20 * 4 * (52 * 42 - 48 * 40), "v": 6 * 20 * 4 * 80}.items():
        receipt = run(three_nodes, f"wrapped-{name}", steps, name).to_dict()
        assert receipt["status"] == "done"
        expected = ndimage.median_filter(fields[name], (1, 5, 3), mode="wrap")
        np.testing.assert_array_equal(stored(three_nodes, f"wrapped-{name}", name), expected)
        assert 0 < receipt["bytes"]["shipped"] <= 4 * most


def test_variables_become_the_channels_of_samples(three_nodes: Connection, fields: dict[str, np.ndarray]) -> None:
    steps = [
        {"stack": {"arrays": ["u", "v"], "along": "channel", "name": "tensor"}},
        {"standardize": "channel"},
        {"crop": {"to": {"y": 64, "x": [8, 72]}}},
    ]
    receipt = run(three_nodes, "tensors", steps, chunks={"time": 1}).to_dict()
    assert receipt["status"] == "done", receipt["failures"]
    both = np.stack([fields["u"], fields["v"]], 1).astype("float64")
    expected = (both - both.mean((0, 2, 3), keepdims=True)) / both.std((0, 2, 3), keepdims=True)
    np.testing.assert_allclose(stored(three_nodes, "tensors", "tensor"), expected[:, :, 16:80, 8:72], atol=1e-5)
    record = catalog.find(three_nodes, "tensors")
    assert sorted(record.arrays) == ["tensor", "time"]
    assert record.array("tensor").dims == ("time", "channel", "y", "x")
    again = run(three_nodes, "tensors", steps, chunks={"time": 1})
    assert (again.statistics_chunks, again.to_dict()["chunks"]["done"]) == (0, 0)


def test_a_coordinate_that_does_not_fit_any_more_is_left_out_and_said(
    three_nodes: Connection, fields: dict[str, np.ndarray]
) -> None:
    receipt = run(three_nodes, "first-hours", [{"crop": {"to": {"time": [0, 6]}}}], ["u", "v"])
    assert receipt.status == "done"
    assert receipt.notes == ("time is not carried over: a dimension of it has another length now",)
    assert sorted(catalog.find(three_nodes, "first-hours").arrays) == ["u", "v"]
    np.testing.assert_array_equal(stored(three_nodes, "first-hours", "v"), fields["v"][:6])


def test_a_part_of_the_source(three_nodes: Connection, fields: dict[str, np.ndarray]) -> None:
    source = {
        "dataset": "gathered-in",
        "arrays": ["u", "v"],
        "isel": {"y": [8, -16]},
        "sel": {"time": ["2020-01-06", "2020-01-12"]},
    }
    steps = [{"median": {"size": {"y": 3}}}]
    receipt = run_pipeline(three_nodes, from_dict({"source": source, "steps": steps, "output": "part"}))
    assert receipt.status == "done", receipt.outcome.tally.failures
    for name in "uv":
        expected = ndimage.median_filter(fields[name][5:12, 8:-16], (1, 3, 1))
        np.testing.assert_array_equal(stored(three_nodes, "part", name), expected)
    np.testing.assert_array_equal(stored(three_nodes, "part", "time"), np.arange(5, 12))
    again = run_pipeline(three_nodes, from_dict({"source": source, "steps": steps, "output": "part"}))
    assert (again.outcome.tally.done, again.status) == (0, "done")
    wanted = from_dict({"source": {**source, "sel": {"time": ["2019", "2019"]}}, "steps": steps, "output": "never"})
    with pytest.raises(ConfigError, match=r"source.sel.time: coordinate `time` has no value from 2019 to 2019"):
        run_pipeline(three_nodes, wanted)
    asked = any_from_dict({"source": {**source, "arrays": ["u"]}, "statistics": {}})
    results = run_statistics(three_nodes, asked).results
    assert results["u"]["count"] == 7 * 72 * 80
    assert results["u"]["min"] == fields["u"][5:12, 8:-16].min()


def test_a_step_that_raises_fails_its_chunks_alone(three_nodes: Connection, fields: dict[str, np.ndarray]) -> None:
    steps = [{"rolling": {"size": {"time": 3}}}, {"map": "where(x > 340, 1e9, x)"}, {"cast": {"dtype": "uint8", "strict": True}}]
    low = run(three_nodes, "strict", [*steps[:1], {"clip": [0, 255]}, *steps[1:]], "u").to_dict()
    assert low["status"] == "done"
    receipt = run(three_nodes, "strict-not", steps, "u").to_dict()
    assert receipt["status"] == "failed"
    assert receipt["chunks"]["failed"] == 20
    assert "does not fit uint8" in receipt["failures"][0]["error"]
    assert receipt["failures"][0]["chunk"].startswith("strict-not/u/c.")


def test_a_damaged_chunk_of_the_source_is_named_and_the_others_go_on(
    three_nodes: Connection, fields: dict[str, np.ndarray], tmp_path: Path
) -> None:
    path = tmp_path / "one.zarr"
    array = zarr.create_group(path).create_array("a", shape=(64, 64), chunks=(16, 16), dtype="float32")
    array[...] = np.arange(64 * 64).reshape(64, 64)
    assert ingest_source(three_nodes, open_source(path), "gather-damaged").status == "done"
    victim = next(file for root in roots_of(three_nodes) for file in (root / "datasets/gather-damaged/a").glob("c/1/1"))
    victim.write_bytes(victim.read_bytes()[:-1])
    spec = from_dict({"source": "gather-damaged", "steps": [{"median": {"size": {0: 3, 1: 3}}}], "output": "gather-rest"})
    receipt = run_pipeline(three_nodes, spec).to_dict()
    assert (receipt["chunks"]["done"], receipt["chunks"]["failed"]) == (7, 9)
    assert all("gather-damaged/a/c/1/1" in failure["error"] for failure in receipt["failures"])


def test_of_a_damaged_chunk_a_copy_is_taken(three_nodes: Connection, tmp_path: Path) -> None:
    path = tmp_path / "one.zarr"
    array = zarr.create_group(path).create_array("a", shape=(64, 64), chunks=(16, 16), dtype="float32")
    values = np.random.default_rng(8).normal(size=(64, 64)).astype("float32")
    array[...] = values
    assert ingest_source(three_nodes, open_source(path), "gather-copied", replicas={"min": 2, "max": 2}).status == "done"
    victims = next(found for root in roots_of(three_nodes) if (found := list((root / "datasets/gather-copied/a").glob("c/2/*"))))
    for victim in victims:  # one node's copies of that row
        victim.write_bytes(victim.read_bytes()[:-1])
    spec = from_dict({"source": "gather-copied", "steps": [{"difference": {"over": {0: 1}}}], "output": "gather-whole"})
    receipt = run_pipeline(three_nodes, spec).to_dict()
    assert receipt["status"] == "done", receipt["failures"]
    np.testing.assert_array_equal(stored(three_nodes, "gather-whole", "a"), np.diff(values, axis=0, prepend=values[:1]))


def test_a_worker_that_is_killed_meanwhile_does_no_harm(tmp_path: Path) -> None:
    values = np.random.default_rng(9).normal(size=(96, 128, 128)).astype("float32")
    np.save(tmp_path / "in.npy", values)
    with connect(nodes=3, root=tmp_path / "root") as connection:
        ingest_source(connection, open_source(tmp_path / "in.npy", chunk_samples=4), "data")
        spec = from_dict({"source": "data", "steps": [{"median": {"size": {1: 9, 2: 9}}}], "output": "out"})
        pids = connection.client.run(os.getpid)
        victim = sorted(pids.values())[1]

        def kill() -> None:
            while not any((tmp_path / "root").rglob("datasets/out/data/c.*")):
                time.sleep(0.01)
            os.kill(victim, signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        receipt = run_pipeline(connection, spec).to_dict()
        killer.join()
        assert receipt["status"] == "done", receipt["failures"]
        assert victim not in connection.client.run(os.getpid).values()
    expected = ndimage.median_filter(values, (1, 9, 9))
    np.testing.assert_array_equal(read_embedded(tmp_path / "root", "out", "data"), expected)


def test_a_damaged_chunk_is_made_good_from_its_origin_on_the_way(three_nodes: Connection, tmp_path: Path) -> None:
    path = tmp_path / "one.zarr"
    array = zarr.create_group(path).create_array("a", shape=(64, 64), chunks=(16, 16), dtype="float32")
    values = np.random.default_rng(8).normal(size=(64, 64)).astype("float32")
    array[...] = values
    assert ingest_source(three_nodes, open_source(path), "gather-healed").status == "done"
    victim = next(file for root in roots_of(three_nodes) for file in (root / "datasets/gather-healed/a").glob("c/2/1"))
    victim.write_bytes(victim.read_bytes()[:-1])
    spec = from_dict({"source": "gather-healed", "steps": [{"difference": {"over": {0: 1}}}], "output": "gather-made-good"})
    receipt = run_and_heal(three_nodes, spec).to_dict()
    assert receipt["status"] == "done", receipt["failures"]
    assert [each["chunk"] for each in receipt["healed"]] == ["gather-healed/a/c/2/1"]
    np.testing.assert_array_equal(stored(three_nodes, "gather-made-good", "a"), np.diff(values, axis=0, prepend=values[:1]))
