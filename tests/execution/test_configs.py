"""The pipelines in `configs/`, each over small data of the kind that it is for, against NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import zarr

from gpuflow.cluster.connection import Connection
from gpuflow.datasets import catalog
from gpuflow.execution.run import run_pipeline
from gpuflow.pipelines.load import load_pipeline
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
