"""The pipelines in `configs/`, each over small data of the kind that it is for, against NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import zarr

from gpuflow.cluster.connection import Connection
from gpuflow.datasets import catalog
from gpuflow.execution.run import run_pipeline
from gpuflow.execution.summary import run_statistics
from gpuflow.pipelines.load import load_any, load_pipeline
from gpuflow.pipelines.statistics import StatisticsPipeline
from tests.execution.test_run import ingest, roots_of
from tests.helpers import read_back

CONFIGS = Path(__file__).parents[2] / "configs"


def test_satellite(three_nodes: Connection, tmp_path: Path) -> None:
    packed = np.random.default_rng(5).integers(1, 9000, (3, 50, 40)).astype("int16")
    packed[:, 10:20, 5:9] = 0  # clouds
    packed[1] //= 3
    group = zarr.create_group(tmp_path / "scene.zarr")
    array = group.create_array("sr", shape=packed.shape, chunks=(1, 16, 40), dtype="int16", dimension_names=["band", "y", "x"])
    array[...] = packed
    ingest(three_nodes, tmp_path / "scene.zarr", "scene")

    receipt = run_pipeline(three_nodes, load_pipeline(CONFIGS / "satellite.yaml"))
    assert receipt.status == "done", receipt.outcome.tally.failures
    missing = packed == 0
    reflectance = np.where(missing, np.nan, packed * 0.0001 - 0.1)
    low, high = (extremum(reflectance, axis=(1, 2), keepdims=True) for extremum in (np.nanmin, np.nanmax))
    expected = np.where(missing, -1, (reflectance - low) / (high - low) * 2 - 1)
    result = read_back(roots_of(three_nodes), "scene-train", "sr")
    assert result.dtype == np.float16
    np.testing.assert_allclose(result, expected, atol=1e-3)
    again = run_pipeline(three_nodes, load_pipeline(CONFIGS / "satellite.yaml")).to_dict()
    assert again["chunks"] == {"total": 12, "done": 0, "skipped": 12, "failed": 0}


def test_inplace_standardize(three_nodes: Connection, field_zarr: Path) -> None:
    ingest(three_nodes, field_zarr, "era5")
    receipt = run_pipeline(three_nodes, load_pipeline(CONFIGS / "inplace-standardize.yaml"))
    assert receipt.status == "done", receipt.outcome.tally.failures
    values = zarr.open_group(field_zarr, mode="r")["t2m"][...].astype("float64")
    result = read_back(roots_of(three_nodes), "era5", "t2m")
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, (values - values.mean()) / values.std(), atol=1e-4)
    assert (read_back(roots_of(three_nodes), "era5", "time") == np.arange(37) * 6).all()
    assert "raw" in catalog.find(three_nodes, "era5").snapshots


def test_statistics(three_nodes: Connection, field_zarr: Path) -> None:
    ingest(three_nodes, field_zarr, "looked-at")
    before = read_back(roots_of(three_nodes), "looked-at", "t2m").astype("float64")
    pipeline = load_any(CONFIGS / "statistics.yaml", ["source.dataset=looked-at"])
    assert isinstance(pipeline, StatisticsPipeline)
    found = run_statistics(three_nodes, pipeline).to_dict()["statistics"]["arrays"]["t2m"]
    values = before[before >= 100]
    assert found["count"] == values.size
    np.testing.assert_allclose([found["mean"], found["std"]], [values.mean(), values.std()], rtol=1e-6)
    np.testing.assert_allclose(list(found["quantiles"].values()), np.quantile(values, [0.01, 0.5, 0.99]), rtol=1e-3)
    assert run_statistics(three_nodes, pipeline).to_dict()["bytes"]["read"] == 0


def test_exec(allowed: Connection, field_zarr: Path, tmp_path: Path) -> None:
    ingest(allowed, field_zarr, "era5")
    receipt = run_pipeline(allowed, load_pipeline(CONFIGS / "exec.yaml"))
    assert receipt.status == "done", receipt.outcome.tally.failures
    values = zarr.open_group(field_zarr, mode="r")["t2m"][...]
    np.testing.assert_array_equal(read_back(roots_of(allowed), "era5-checked", "t2m"), values)


def test_apply(three_nodes: Connection, tmp_path: Path) -> None:
    photos = np.random.default_rng(1).integers(0, 256, (6, 16, 16, 3)).astype("uint8")
    group = zarr.create_group(tmp_path / "photos.zarr")
    array = group.create_array("image", shape=photos.shape, chunks=(2, 16, 16, 3), dtype="uint8")
    array[...] = photos
    ingest(three_nodes, tmp_path / "photos.zarr", "pictures")
    pipeline = load_pipeline(CONFIGS / "apply.yaml", ["source=pictures", "output=pictures-gray"])
    receipt = run_pipeline(three_nodes, pipeline)
    assert receipt.status == "done", receipt.outcome.tally.failures
    sharp = photos.astype("float32") / 255
    mean = sharp.mean(axis=(1, 2), keepdims=True)
    expected = np.clip((sharp - mean) * 1.5 + mean, 0, 1).astype("float16")
    np.testing.assert_allclose(read_back(roots_of(three_nodes), "pictures-gray", "image"), expected, atol=1e-3)


def test_all_are_run_by_a_test() -> None:
    """By one here, or by name elsewhere."""
    tests = (
        "".join(path.read_text() for path in (CONFIGS.parent / "tests").rglob("*.py"))
        + (CONFIGS.parent / "ci/quickstart").read_text()
    )
    assert [path.name for path in sorted(CONFIGS.glob("*.yaml")) if path.name not in tests] == []
