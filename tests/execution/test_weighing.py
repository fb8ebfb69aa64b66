"""`standardize` with weights is NumPy's average, keeps what it took for the pipelines that follow, and refuses what does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import gpuflow
from gpuflow.cluster.connection import Connection
from gpuflow.errors import ConfigError, StatisticsError
from gpuflow.execution.receipt import Receipt
from gpuflow.execution.run import run_pipeline
from gpuflow.execution.summary import run_statistics
from gpuflow.pipelines.load import any_from_dict, from_dict
from gpuflow.pipelines.pipeline import Pipeline
from tests.execution.test_growth import rows
from tests.execution.test_run import ingest

AREA = "cos(radians(lat))"
LAT = np.linspace(-75, 85, 25, dtype="f4")


def write(folder: Path, values: Any, lat: Any = LAT) -> Path:
    """`t2m` and `u10`, each (time, lat, lon), and `lat`."""
    group = zarr.create_group(folder)
    for number, name in enumerate(("t2m", "u10")):
        dims = ["time", "lat", "lon"]
        array = group.create_array(name, shape=values.shape, chunks=(4, 10, 12), dtype="f4", dimension_names=dims)
        array[...] = values + 100 * number
    group.create_array("lat", shape=lat.shape, dtype="f4", dimension_names=["lat"])[...] = lat
    return folder


@pytest.fixture(scope="module")
def values(three_nodes: Connection, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(time, lat, lon) with gaps; ingested as `earth`."""
    rng = np.random.default_rng(3)
    values = (rng.normal(280, 12, (10, 25, 12)) + 20 * np.cos(np.deg2rad(LAT))[:, None]).astype("f4")
    values[rng.random(values.shape) < 0.1] = np.nan
    ingest(three_nodes, write(tmp_path_factory.mktemp("earth") / "earth.zarr", values), "earth")
    return values


def run(connection: Connection, output: str, *steps: Any, source: Any = None) -> Receipt:
    source = source or {"dataset": "earth", "arrays": ["t2m"]}
    receipt = run_pipeline(connection, from_dict({"source": source, "steps": list(steps), "output": output}))
    assert receipt.status == "done", receipt.outcome.tally.failures
    return receipt


def made(connection: Connection, name: str, array: str = "t2m") -> Any:
    return gpuflow.open(name, connection=connection)[array][...]


def standard(values: Any, axes: tuple[int, ...], lat: Any = LAT) -> Any:
    """By np.average, over the values that are there."""
    wide = values.astype("f8")
    area = np.cos(np.deg2rad(lat.astype("f8")))
    weights = np.broadcast_to(area[:, None] if lat.ndim == 1 else area, wide.shape)
    valid = np.ma.masked_invalid(wide)
    mean = np.ma.average(valid, axes, weights, keepdims=True)
    std = np.sqrt(np.ma.average((valid - mean) ** 2, axes, weights, keepdims=True))
    return ((wide - mean) / std).filled(np.nan)


@pytest.mark.parametrize(("per", "axes"), [(None, (0, 1, 2)), ("time", (1, 2)), (["time", "lon"], (1,))])
def test_it_is_numpys_average(three_nodes: Connection, values: Any, per: Any, axes: tuple[int, ...]) -> None:
    name = f"std-{len(axes)}"
    spec = Pipeline("earth", "t2m").standardize(per, weights=AREA).to(name).spec
    assert run_pipeline(three_nodes, spec).status == "done"
    np.testing.assert_allclose(made(three_nodes, name), standard(values, axes), rtol=1e-4, atol=1e-5)
    assert not np.allclose(made(three_nodes, name), (values - np.nanmean(values)) / np.nanstd(values), atol=1e-3, equal_nan=True)


def test_a_part_of_what_was_stacked(three_nodes: Connection, values: Any) -> None:
    """The weights are of the arrays' dimensions wherever these have come to lie."""
    source = {"dataset": "earth", "arrays": ["t2m", "u10"], "isel": {"time": [1, 9]}, "sel": {"lat": [-50, 50]}}
    stack = {"stack": {"arrays": ["t2m", "u10"], "along": "channel", "name": "all"}}
    run(three_nodes, "weighed-stacked", stack, {"standardize": {"per": "channel", "weights": AREA}}, source=source)
    inside = (LAT >= -50) & (LAT <= 50)
    wanted = standard(values[1:9, inside], (0, 1, 2), LAT[inside])
    found = made(three_nodes, "weighed-stacked", "all")
    for channel in range(2):
        np.testing.assert_allclose(found[:, channel], wanted, rtol=1e-3, atol=1e-4)


def test_what_it_took_is_kept_for_those_that_follow(three_nodes: Connection, values: Any, tmp_path: Path) -> None:
    ingest(three_nodes, write(tmp_path / "kept.zarr", values), "weighed")
    source = {"dataset": "weighed", "arrays": ["t2m"]}
    first = run(three_nodes, "weighed-1", {"standardize": {"weights": AREA}}, source=source)
    assert first.statistics_chunks == 9
    second = run(three_nodes, "weighed-2", {"standardize": {"weights": AREA}}, {"clip": [-1, 1]}, source=source)
    assert (second.statistics_chunks, second.outcome.tally.done) == (0, 9 + 9 + 1)
    assert any("are kept with weighed" in note for note in second.notes)
    asked = any_from_dict({"source": source, "statistics": {"weights": AREA}})
    assert run_statistics(three_nodes, asked).outcome.tally.done == 0
    assert run(three_nodes, "weighed-3", {"standardize": {}}, source=source).statistics_chunks == 9, "others, without weights"
    again = run(three_nodes, "weighed-1", {"standardize": {"weights": AREA}}, source=source)
    assert (again.statistics_chunks, again.outcome.tally.done) == (0, 0)


def test_other_coordinates_are_other_weights(three_nodes: Connection, values: Any, tmp_path: Path) -> None:
    ingest(three_nodes, write(tmp_path / "moved.zarr", values), "weighed-moved")
    source, step = {"dataset": "weighed-moved", "arrays": ["t2m"]}, {"standardize": {"weights": AREA}}
    run(three_nodes, "moved-out", step, source=source)
    lat = np.linspace(0, 89, 25, dtype="f4")
    with gpuflow.open("weighed-moved", mode="r+", connection=three_nodes) as dataset:
        dataset["lat"][...] = lat
    run(three_nodes, "moved-out", step, source=source)
    np.testing.assert_allclose(made(three_nodes, "moved-out"), standard(values, (0, 1, 2), lat), rtol=1e-4, atol=1e-5)


def test_in_place_and_once(three_nodes: Connection, values: Any, tmp_path: Path) -> None:
    ingest(three_nodes, write(tmp_path / "own.zarr", values), "own-weighed")
    source, step = {"dataset": "own-weighed", "arrays": ["t2m"]}, {"standardize": {"weights": AREA}}
    for _ in range(2):
        run(three_nodes, {"in_place": True}, step, source=source)  # type: ignore[arg-type]
    found = made(three_nodes, "own-weighed")
    np.testing.assert_allclose(found, standard(values, (0, 1, 2)), rtol=1e-4, atol=1e-5)


def test_a_source_that_grows_keeps_the_fit(three_nodes: Connection, tmp_path: Path) -> None:
    rows(three_nodes, tmp_path, "longer", 0, 10)
    source, step = {"dataset": "longer", "arrays": ["t2m"]}, {"standardize": {"weights": "y + time + 1"}}
    run(three_nodes, "longer-out", step, source=source)
    before = made(three_nodes, "longer-out")
    rows(three_nodes, tmp_path, "longer", 10, 18)
    grown = run(three_nodes, "longer-out", step, source=source)
    assert any("standardize keeps the fit that it began with (refit: never)" in note for note in grown.notes)
    np.testing.assert_array_equal(made(three_nodes, "longer-out")[:10], before)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (
            [{"clip": [0, 1]}, {"standardize": {"weights": "cos(latt)"}}],
            r"steps\[1\].standardize.weights: there is no coordinate `latt`; did you mean `lat`\?",
        ),
        ([{"standardize": {"weights": "t2m"}}], r"steps\[0\].standardize.weights: `t2m` has 3 dimensions, not one"),
        (
            [{"standardize": {"weights": "lat"}}],
            r"steps\[0\].standardize.weights: cannot be applied to array 't2m': `lat` gives -75 where lat is -75; weights are finite",
        ),
        (
            [{"crop": {"to": {"lat": [0, 9]}}}, {"standardize": {"weights": AREA}}],
            r"steps\[1\].standardize.weights: .* a step makes 9 places along `lat` of the 25",
        ),
        ([{"select": "u10"}, {"standardize": {"only": "u10", "weights": "lat * 0"}}], r"array 'u10': `lat \* 0` is 0 everywhere"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_runs(
    three_nodes: Connection, values: Any, steps: list[Any], message: str
) -> None:
    source = {"dataset": "earth", "arrays": ["t2m", "u10"]}
    with pytest.raises(ConfigError, match=message):
        run(three_nodes, "never", *steps, source=source)
    with pytest.raises(ConfigError, match=message):
        gpuflow.plan(from_dict({"source": source, "steps": steps, "output": "never"}), connection=three_nodes)


def test_a_channel_without_weight(three_nodes: Connection, values: Any) -> None:
    with pytest.raises(StatisticsError, match="cannot standardize lat 0: all its values have the weight 0"):
        run(three_nodes, "weightless", {"standardize": {"per": "lat", "weights": "lat > 0"}})


def test_it_is_planned_and_previewed(three_nodes: Connection, values: Any) -> None:
    spec = Pipeline("earth", "t2m").standardize("lon", weights=AREA).to("seen").spec
    planned = gpuflow.plan(spec, connection=three_nodes)
    try:
        assert planned.details["arrays"]["t2m"]["waits_for_statistics"]
        assert planned.details["arrays"]["t2m"]["steps"] == [{"standardize": {"per": 2, "weights": AREA}}]
        after = planned.preview(4, "t2m").sides[1]  # of the statistics of this chunk alone
    finally:
        planned.close()
    wanted = standard(values[4:8, 10:20], (0, 1), LAT[10:20])
    np.testing.assert_allclose(after.block, wanted, rtol=1e-4, atol=1e-5)
