"""Statistics as a pipeline: those of NumPy, kept with the source, and found again by whoever needs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from gpuflow.cluster.connection import Connection
from gpuflow.datasets import catalog
from gpuflow.errors import ConfigError
from gpuflow.execution.run import run_pipeline
from gpuflow.execution.summary import run_statistics
from gpuflow.facade import run as run_anything
from gpuflow.pipelines.load import any_from_dict, from_dict
from gpuflow.pipelines.pipeline import Pipeline
from tests.execution.test_run import ingest, roots_of
from tests.helpers import read_back


def asked(name: str, *steps: Any, **statistics: Any) -> Any:
    return any_from_dict({"source": {"dataset": name, "arrays": ["t2m"]}, "steps": list(steps), "statistics": statistics})


def values_of(field_zarr: Path) -> Any:
    return zarr.open_group(field_zarr, mode="r")["t2m"][...].astype("float64")


def numbers(receipt: Any) -> Any:
    return json.loads(json.dumps(receipt.to_dict(), allow_nan=False))["statistics"]["arrays"]["t2m"]


def test_they_are_numpys_and_are_kept(three_nodes: Connection, field_zarr: Path) -> None:
    ingest(three_nodes, field_zarr, "counted")
    spec = asked("counted", per="y", quantiles=[0.01, 0.5, 0.99], histogram={"bins": 10, "range": [250, 310]})
    receipt = run_statistics(three_nodes, spec)
    assert receipt.to_dict()["chunks"] == {"total": 20, "done": 20, "skipped": 0, "failed": 0}
    found, values = numbers(receipt), values_of(field_zarr)
    assert (found["per"], found["shape"], found["count"]) == (["y"], [24], [37 * 18] * 24)
    for name, expected in [
        ("mean", values.mean),
        ("std", values.std),
        ("min", values.min),
        ("max", values.max),
        ("sum", values.sum),
    ]:
        np.testing.assert_allclose(found[name], expected(axis=(0, 2)), rtol=1e-12)
    for share in (0.01, 0.5, 0.99):
        np.testing.assert_allclose(found["quantiles"][f"{share:g}"], np.quantile(values, share, axis=(0, 2)), atol=2.0)
    counts = [np.histogram(values[:, y], 10, (250, 310))[0] for y in range(24)]
    np.testing.assert_array_equal(found["histogram"]["counts"], counts)

    again = run_statistics(three_nodes, spec)
    assert again.to_dict()["chunks"] == {"total": 20, "done": 0, "skipped": 20, "failed": 0}
    assert again.to_dict()["bytes"]["read"] == 0
    assert again.notes == ("t2m: moments, quantiles, histogram are kept with counted",)
    assert numbers(again) == found
    more = run_statistics(three_nodes, asked("counted", per="y", quantiles=[0.25]))
    assert more.to_dict()["bytes"]["read"] == 0  # a sketch answers for every quantile


def test_the_parameters_of_steps_are_found_there_and_that_is_said(three_nodes: Connection, field_zarr: Path) -> None:
    ingest(three_nodes, field_zarr, "reused")
    run_statistics(three_nodes, asked("reused", {"map": "x - 273.15"}, per="y", quantiles=[0.5]))
    for name, step in [("std", {"standardize": "y"}), ("robust", {"normalize": {"per": "y", "quantiles": [0.01, 0.99]}})]:
        steps = [{"map": "x - 273.15"}, step]
        spec = from_dict({"source": {"dataset": "reused", "arrays": ["t2m"]}, "steps": steps, "output": f"reused-{name}"})
        receipt = run_pipeline(three_nodes, spec).to_dict()
        assert receipt["statistics"]["chunks"] == 0
        kind = {"std": "moments", "robust": "quantiles"}[name]
        assert receipt["notes"] == [f"t2m: its {kind} are kept with reused, and were not computed again"]
    celsius = values_of(field_zarr) - 273.15
    low, high = np.quantile(celsius, [0.01, 0.99], axis=(0, 2), keepdims=True)
    result = read_back(roots_of(three_nodes), "reused-robust", "t2m")
    np.testing.assert_allclose(result, (celsius - low) / (high - low), atol=0.05)
    other = from_dict(
        {"source": {"dataset": "reused", "arrays": ["t2m"]}, "steps": [{"standardize": "y"}], "output": "reused-other"}
    )
    assert run_pipeline(three_nodes, other).to_dict()["statistics"]["chunks"] == 20  # of other steps they are others


def test_only_values_for_which_it_holds(three_nodes: Connection, field_zarr: Path, tmp_path: Path) -> None:
    ingest(three_nodes, field_zarr, "masked")
    values = values_of(field_zarr)
    warm = values[values > 280]
    found = numbers(run_statistics(three_nodes, asked("masked", where="x > 280", over=["time", "y", "x"])))
    assert found["count"] == warm.size
    np.testing.assert_allclose([found["mean"], found["std"], found["min"]], [warm.mean(), warm.std(), warm.min()], rtol=1e-6)
    whole = np.arange(12, dtype="int16").reshape(3, 4)
    np.save(tmp_path / "whole.npy", whole)
    ingest(three_nodes, tmp_path / "whole.npy", "whole")
    spec = any_from_dict({"source": "whole", "statistics": {"where": "x % 3 == 1", "per": 1}})
    odd = run_statistics(three_nodes, spec).to_dict()["statistics"]["arrays"]["data"]
    assert (odd["count"], odd["min"]) == ([1, 1, 1, 1], [4.0, 1.0, 10.0, 7.0])


def test_a_histogram_between_the_extrema_takes_a_second_pass(three_nodes: Connection, field_zarr: Path) -> None:
    ingest(three_nodes, field_zarr, "between")
    receipt = run_statistics(three_nodes, asked("between", histogram=50))
    values = values_of(field_zarr)
    counts, edges = np.histogram(values, 50)
    np.testing.assert_array_equal(numbers(receipt)["histogram"]["counts"], counts)
    np.testing.assert_allclose(numbers(receipt)["histogram"]["edges"], edges)
    assert receipt.to_dict()["chunks"]["done"] == 40
    assert run_statistics(three_nodes, asked("between", histogram=50)).to_dict()["chunks"] == {
        "total": 40, "done": 0, "skipped": 40, "failed": 0,
    }  # fmt: skip


def test_of_what_a_filter_makes(three_nodes: Connection, field_zarr: Path) -> None:
    """Parts that need their neighbours are gathered; parameters of steps on the way are computed first."""
    ingest(three_nodes, field_zarr, "gathered")
    steps = [{"standardize": {}}, {"difference": {"over": {"x": 1}}}]
    receipt = run_statistics(three_nodes, asked("gathered", *steps, quantiles=0.5))
    assert receipt.status == "done", receipt.outcome.tally.failures
    values = values_of(field_zarr)
    made = np.diff(((values - values.mean()) / values.std()).astype("float32"), axis=2, prepend=np.nan)
    made[:, :, 0] = 0  # the first has none before it
    np.testing.assert_allclose([numbers(receipt)["std"], numbers(receipt)["max"]], [made.std(), made.max()], rtol=1e-5)


@pytest.mark.parametrize(
    ("statistics", "message"),
    [
        (
            {"per": "level"},
            "cannot be taken of array 't2m': per: there is no dimension `level`; its dimensions are `time`, `y`, `x`",
        ),
        ({"over": [7]}, "over: there is no axis 7"),
        ({"per": ["time", "y", "x"]}, "statistics of 15984 indices are too many"),
        (
            {"per": ["time", "y"], "quantiles": [0.5]},
            "quantiles of 888 indices are too many to keep with the dataset; keep fewer",
        ),
        ({"per": ["time", "y"], "histogram": 100}, "are too many to keep"),
        ({"where": "x + 1"}, "where: `x \\+ 1` gives float32 and not true or false"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_runs(
    three_nodes: Connection, field_zarr: Path, statistics: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpuflow.pipelines.statistics.MOST_NUMBERS", 10_000)
    if "unfit" not in catalog.records(three_nodes):
        ingest(three_nodes, field_zarr, "unfit")
    with pytest.raises(ConfigError, match=message):
        run_statistics(three_nodes, asked("unfit", **statistics))


def test_a_damaged_chunk_is_a_failure_and_nothing_is_kept(three_nodes: Connection, field_zarr: Path) -> None:
    ingest(three_nodes, field_zarr, "broken")
    (chunk,) = [path for root in roots_of(three_nodes) if (path := root / "datasets/broken/t2m/c/1/0/0").exists()]
    chunk.write_bytes(chunk.read_bytes()[:-2])
    receipt = run_statistics(three_nodes, asked("broken"))
    assert (receipt.status, receipt.results) == ("failed", None)
    assert "broken/t2m/c/1/0/0" in receipt.outcome.tally.failures[0].chunk
    assert not catalog.find(three_nodes, "broken").statistics


@pytest.mark.parametrize("values", [np.full((4, 3), np.nan), np.full((4, 3), 5.0), np.zeros((0, 3))])
def test_nothing_and_the_same_everywhere(three_nodes: Connection, tmp_path: Path, values: Any) -> None:
    name = f"odd-{len(values)}-{'nan' if np.isnan(values).any() else 'five'}"
    np.save(tmp_path / "a.npy", values)
    ingest(three_nodes, tmp_path / "a.npy", name)
    pipeline = Pipeline(name).statistics(per=1, quantiles=[0.5], histogram=4)
    found = run_anything(pipeline, connection=three_nodes).to_dict()["statistics"]["arrays"]["data"]
    count = int((~np.isnan(values)).sum(axis=0)[0])
    assert found["count"] == [count] * 3
    assert found["mean"] == found["quantiles"]["0.5"] == ([5.0] * 3 if count else [None] * 3)
    assert np.sum(found["histogram"]["counts"]) == 3 * count


def test_infinite_values_have_no_range(three_nodes: Connection, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[1, np.inf], [2, 3]]))
    ingest(three_nodes, tmp_path / "a.npy", "infinite")
    with pytest.raises(ConfigError, match="there are infinite values, so the histogram has no range of its own; give `range`"):
        run_anything(Pipeline("infinite").statistics(histogram=4), connection=three_nodes)
