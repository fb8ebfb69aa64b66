"""Statistics weighted by coordinates are those of xarray's `weighted`, kept for these weights alone, and right when the source grows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
import zarr

import gpuflow
from gpuflow.cluster.connection import Connection
from gpuflow.datasets import catalog
from gpuflow.errors import ConfigError
from gpuflow.execution.receipt import Receipt
from gpuflow.execution.run import run_pipeline
from gpuflow.execution.summary import run_statistics
from gpuflow.pipelines import weights as weights_module
from gpuflow.pipelines.load import any_from_dict, from_dict
from tests.cli.commands import command
from tests.execution.test_growth import rows
from tests.execution.test_run import ingest

AREA = "cos(radians(lat))"


@pytest.fixture(scope="module")
def globe(three_nodes: Connection, tmp_path_factory: pytest.TempPathFactory) -> xarray.Dataset:
    """t2m (time, lat, lon) with gaps over a ragged grid, from pole to pole; ingested as `globe`."""
    path, rng = tmp_path_factory.mktemp("globe") / "globe.zarr", np.random.default_rng(2)
    group = zarr.create_group(path)
    dims = {"time": np.arange(10), "lat": np.linspace(90, -90, 25, dtype="f4"), "lon": np.arange(12) * 30.0}
    values = rng.normal(280, 12, (10, 25, 12)).astype("f4") + 20 * np.cos(np.deg2rad(dims["lat"]))[:, None]
    values[rng.random(values.shape) < 0.1] = np.nan
    array = group.create_array("t2m", shape=values.shape, chunks=(4, 10, 12), dtype="f4", dimension_names=list(dims))
    array[...] = values
    thick = np.linspace(1, 2, 10)
    for name, of, dim in [*((name, of, name) for name, of in dims.items()), ("thick", thick, "time")]:
        group.create_array(name, shape=of.shape, dtype=of.dtype, dimension_names=[dim])[...] = of
    group.create_array("mask", shape=(25, 12), dtype="f4", dimension_names=["lat", "lon"])[...] = 1
    group.create_array("level", shape=(4,), dtype="f4", dimension_names=["level"])[...] = np.arange(4)
    group.create_array("station", shape=(12,), dtype=str, dimension_names=["lon"])[...] = np.array(["here"] * 12)
    group.create_array("loose", shape=(12,), dtype="f4")[...] = 1
    group.create_array("many", shape=(2001,), dtype="f4", dimension_names=["many"])[...] = 1
    ingest(three_nodes, path, "globe")
    return xarray.Dataset({"t2m": (list(dims), values)}, {**dims, "thick": ("time", thick)})


def ask(connection: Connection, *steps: Any, source: Any = "globe", **statistics: Any) -> tuple[Any, Receipt]:
    source = {"dataset": source, "arrays": ["t2m"]} if isinstance(source, str) else {"arrays": ["t2m"], **source}
    receipt = run_statistics(connection, any_from_dict({"source": source, "steps": list(steps), "statistics": statistics}))
    assert receipt.status == "done", receipt.outcome.tally.failures
    return json.loads(json.dumps(receipt.to_dict(), allow_nan=False))["statistics"]["arrays"]["t2m"], receipt


def assert_is(found: Any, field: Any, weights: Any, over: list[str]) -> None:
    """What xarray's `weighted` gives."""
    field = field.astype("f8")
    reference = field.weighted(weights)
    np.testing.assert_allclose(found["mean"], reference.mean(over), rtol=1e-9)
    np.testing.assert_allclose(found["std"], reference.std(over), rtol=1e-7)
    np.testing.assert_allclose(found["sum"], reference.sum(over), rtol=1e-9)
    np.testing.assert_allclose(found["weight"], reference.sum_of_weights(over), rtol=1e-9)
    np.testing.assert_array_equal(found["count"], field.count(over))
    np.testing.assert_allclose([found["min"], found["max"]], [field.min(over), field.max(over)])


def area(globe: xarray.Dataset) -> Any:
    return np.cos(np.deg2rad(globe.lat.astype("f8")))


@pytest.mark.parametrize("over", [["time", "lat", "lon"], ["lat", "lon"], ["time", "lon"], ["lat"]])
def test_they_are_xarrays(three_nodes: Connection, globe: xarray.Dataset, over: list[str]) -> None:
    found, receipt = ask(three_nodes, over=over, weights=AREA)
    assert_is(found, globe.t2m, area(globe), over)
    assert receipt.to_dict()["chunks"]["done"] == 9
    again, receipt = ask(three_nodes, over=over, weights=AREA)
    assert (again, receipt.to_dict()["bytes"]["read"]) == (found, 0)


def test_masks_steps_parts_and_several_coordinates(three_nodes: Connection, globe: xarray.Dataset) -> None:
    warm, both = globe.t2m - 273.15, area(globe) * globe.thick
    found, _ = ask(three_nodes, {"map": "x - 273.15"}, per="lon", where="x > 10", weights=f"{AREA} * thick")
    assert_is(found, warm.where(warm > 10), both, ["time", "lat"])
    part = {"dataset": "globe", "isel": {"time": [1, 9]}, "sel": {"lat": [-45, 45]}}
    found, _ = ask(three_nodes, source=part, weights=f"{AREA} * thick")
    assert_is(found, globe.t2m.isel(time=slice(1, 9)).sel(lat=slice(45, -45)), both, ["time", "lat", "lon"])
    found, _ = ask(three_nodes, {"transpose": ["lon", "time", "lat"]}, per="time", weights="lat > 0")
    assert_is(found, globe.t2m, globe.lat > 0, ["lat", "lon"])
    radians = "cos(lat / 57.29577951)"  # at the poles, rounded, a hair below 0
    assert_is(ask(three_nodes, weights=radians)[0], globe.t2m, area(globe), ["time", "lat", "lon"])


def test_a_weighted_histogram(three_nodes: Connection, globe: xarray.Dataset) -> None:
    found, receipt = ask(three_nodes, per="time", weights=AREA, histogram=8)
    assert receipt.to_dict()["chunks"]["done"] + receipt.to_dict()["chunks"]["skipped"] == 18
    low, high = float(globe.t2m.min()), float(globe.t2m.max())
    every = np.broadcast_to(area(globe).values[:, None], (25, 12))
    for time in range(10):
        counts = np.histogram(globe.t2m.values[time], 8, (low, high), weights=every)[0]
        np.testing.assert_allclose(found["histogram"]["counts"][time], counts, rtol=1e-9)


def test_what_is_kept_is_for_these_weights_alone(three_nodes: Connection, globe: xarray.Dataset, tmp_path: Path) -> None:
    path = tmp_path / "w.zarr"
    globe.chunk({"time": 4}).to_zarr(path, zarr_format=3, consolidated=False)
    ingest(three_nodes, path, "own")
    plain, _ = ask(three_nodes, source="own")
    assert "weight" not in plain
    one, receipt = ask(three_nodes, source="own", weights=AREA)
    other, _ = ask(three_nodes, source="own", weights="lat + 91")
    assert receipt.outcome.tally.done > 0
    assert len({plain["mean"], one["mean"], other["mean"]}) == 3
    spec = from_dict({"source": {"dataset": "own", "arrays": ["t2m"]}, "steps": [{"standardize": {}}], "output": "own-std"})
    run_pipeline(three_nodes, spec)  # of the plain ones
    made = gpuflow.open("own-std", connection=three_nodes)["t2m"][...]
    assert float(np.nanmean(made)) == pytest.approx(0, abs=1e-3)
    with gpuflow.open("own", mode="r+", connection=three_nodes) as dataset:
        dataset["lat"][...] = np.linspace(80, -60, 25, dtype="f4")
    moved, receipt = ask(three_nodes, source="own", weights=AREA)
    assert (receipt.outcome.tally.done, receipt.notes) == (3, ())
    assert_is(
        moved, globe.t2m, np.cos(np.deg2rad(xarray.DataArray(np.linspace(80, -60, 25), dims="lat"))), ["time", "lat", "lon"]
    )


@pytest.mark.parametrize(("weights", "name"), [("y", "across"), ("y * (time + 1)", "along")])
def test_they_grow_with_the_source(three_nodes: Connection, tmp_path: Path, weights: str, name: str) -> None:
    """Along the dimension that grows, too: what was merged stays true, as each chunk's weights stay."""
    rows(three_nodes, tmp_path, name, 0, 14)
    histogram = {"bins": 5, "range": [200, 340]}
    ask(three_nodes, source=name, weights=weights, histogram=histogram)
    rows(three_nodes, tmp_path, name, 14, 26)
    grown, receipt = ask(three_nodes, source=name, weights=weights, histogram=histogram)
    assert "of 3 chunks are kept" in receipt.notes[0]
    assert receipt.outcome.tally.done == 7 - 3
    record = catalog.find(three_nodes, name)
    catalog.publish(three_nodes, record.next(statistics={}))
    whole, receipt = ask(three_nodes, source=name, weights=weights, histogram=histogram)
    assert (receipt.outcome.tally.done, whole) == (7, grown)  # to the last bit
    assert len(record.statistics) == len(catalog.find(three_nodes, name).statistics)


@pytest.mark.parametrize("size", [0, 3])
def test_nothing_weighs_nothing(three_nodes: Connection, tmp_path: Path, size: int) -> None:
    group = zarr.create_group(tmp_path / "none.zarr")
    for name, shape, dims in [("t2m", (size, 5), ["time", "lat"]), ("lat", (5,), ["lat"])]:
        group.create_array(name, shape=shape, chunks=(2, 5)[-len(shape) :], dtype="f4", dimension_names=dims)[...] = np.nan
    group["lat"][...] = np.arange(5)
    ingest(three_nodes, tmp_path / "none.zarr", f"none-{size}")
    found, _ = ask(three_nodes, source=f"none-{size}", per="lat", weights="lat", histogram=3)
    assert (found["count"], found["weight"], found["sum"]) == ([0] * 5, [0.0] * 5, [0.0] * 5)
    assert found["mean"] == found["std"] == found["min"] == [None] * 5
    assert found["histogram"]["counts"] == [[0.0] * 3] * 5


@pytest.mark.parametrize(
    ("weights", "steps", "message"),
    [
        (
            "cos(radians(latitude))",
            [],
            "statistics.weights: there is no coordinate `latitude`; known: lat, level, lon, loose, many, station, thick",
        ),
        ("mask", [], "statistics.weights: `mask` has 2 dimensions, not one; known: lat, level, lon, loose, many, station, thick"),
        (
            "level",
            [],
            "weights: cannot be taken of array 't2m': `level`: there is no dimension `level`; its dimensions are `time`, `lat`, `lon`",
        ),
        ("sin(radians(lat))", [], r"gives -0.130526 where lat is -7.5; weights are finite and not negative, as in maximum\(sin"),
        ("1 / lat", [], r"`1 / lat` gives inf where lat is 0"),
        (
            "log(lat + 91)",
            [{"crop": {"to": {"lat": [0, 9]}}}],
            "a step makes 9 places along `lat` of the 25 .* isel or sel of the source",
        ),
        ("lat * 0", [], "`lat \\* 0` is 0 everywhere"),
        ("station", [], "`station` has .*string.* values, which are no numbers; name a coordinate of numbers"),
        ("loose", [], "the dimension of `loose` has no name; ingest the dataset with named dimensions"),
        ("many", [], "`many` has 2001 values; weights may be of 2000 places at most"),
        ("lat ^ 2", [], "does not work on float64 values"),
        ("thick * lon * cos(radians(lat))", [], "gives 3000 weights; at most 2000 can be"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_runs(
    three_nodes: Connection, globe: xarray.Dataset, weights: str, steps: list[Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights_module, "MOST_WEIGHTS", 2000)
    with pytest.raises(ConfigError, match=message):
        ask(three_nodes, *steps, weights=weights)


def test_on_the_command_line(three_nodes: Connection, globe: xarray.Dataset, tmp_path: Path) -> None:
    """As `gpuflow plan` and `gpuflow run` say it."""
    file = tmp_path / "mean.yaml"
    file.write_text(f'source: {{dataset: globe, arrays: [t2m]}}\nstatistics: {{per: time, weights: "{AREA}", histogram: 8}}\n')
    scheduler = ["--scheduler", three_nodes.client.scheduler.address]
    planned = json.loads(command("plan", file, *scheduler, "--json", root=tmp_path))
    assert planned["arrays"]["t2m"]["asked"] == ["moments", "histogram"]
    assert "weight" in command("run", file, *scheduler, root=tmp_path)
    file.write_text("source: {dataset: globe, arrays: [t2m]}\nstatistics: {weights: sin(latt)}\n")
    wrong = command("run", file, *scheduler, root=tmp_path, status=2)
    assert "statistics.weights: there is no coordinate `latt`; did you mean `lat`?" in wrong
    assert "Traceback" not in wrong
