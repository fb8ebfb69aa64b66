"""The pipelines in `configs/`, each over small data of the kind that it is for, against NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import zarr
from scipy import ndimage

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


def test_era5_normalize(three_nodes: Connection, tmp_path: Path) -> None:
    shape, group = (40, 18, 36), zarr.create_group(tmp_path / "era5.zarr")
    fields = {
        name: np.random.default_rng(seed).normal(size=shape).astype("f4") * 9 for seed, name in enumerate(["t2m", "u10", "v10"])
    }
    dims = ["time", "latitude", "longitude"]
    for name, values in fields.items():
        group.create_array(name, shape=shape, chunks=(40, 6, 12), dtype="f4", dimension_names=dims)[...] = values
    group.create_array("time", shape=(40,), chunks=(40,), dtype="i8", dimension_names=["time"])[...] = np.arange(40)
    ingest(three_nodes, tmp_path / "era5.zarr", "era5-raw")

    receipt = run_pipeline(three_nodes, load_pipeline(CONFIGS / "era5-normalize.yaml"))
    assert receipt.status == "done", receipt.outcome.tally.failures
    wide = {name: values.astype("f8") for name, values in fields.items()}
    tensor = np.stack([*wide.values(), np.sqrt(wide["u10"] ** 2 + wide["v10"] ** 2)], 1)
    expected = (tensor - tensor.mean((0, 2, 3), keepdims=True)) / tensor.std((0, 2, 3), keepdims=True)
    result = read_back(roots_of(three_nodes), "era5-train", "fields")
    assert result.dtype == np.float16
    np.testing.assert_allclose(result, expected, atol=5e-3)
    record = catalog.find(three_nodes, "era5-train")
    assert sorted(record.arrays) == ["fields", "time"]
    opened = zarr.open_array(roots_of(three_nodes)[0] / "datasets/era5-train/fields", mode="r")
    assert (opened.chunks, opened.metadata.dimension_names) == ((1, 4, 18, 36), ("time", "channel", "latitude", "longitude"))
    again = run_pipeline(three_nodes, load_pipeline(CONFIGS / "era5-normalize.yaml")).to_dict()["chunks"]
    assert (again["done"], again["failed"]) == (0, 0)


def test_microscopy(three_nodes: Connection, tmp_path: Path) -> None:
    values = (np.random.default_rng(3).gamma(2.0, 300, (12, 64, 48))).astype("uint16")
    array = zarr.create_group(tmp_path / "v.zarr").create_array(
        "intensity", shape=values.shape, chunks=(6, 16, 16), dtype="uint16", dimension_names=["z", "y", "x"]
    )
    array[...] = values
    ingest(three_nodes, tmp_path / "v.zarr", "volume")

    receipt = run_pipeline(three_nodes, load_pipeline(CONFIGS / "microscopy.yaml"))
    assert receipt.status == "done", receipt.outcome.tally.failures
    even = ndimage.median_filter(values, (1, 3, 3)).astype("f4")
    even = ndimage.gaussian_filter(even, (0.5, 1, 1), mode="nearest")
    low, high = np.quantile(even, [0.01, 0.995])
    result = read_back(roots_of(three_nodes), "volume-train", "intensity")
    assert result.dtype == np.float16
    np.testing.assert_allclose(result, np.clip((even - low) / (high - low), 0, 1), atol=0.02)  # quantiles are those of a sketch
    # Two passes over boxes of at most 10 x 26 x 26, of chunks of 6 x 16 x 16: 8.8 times the volume if each is made on a node that holds
    # nothing of it, as some are while nodes wait for work; 54 times with all of the 27 chunks that a box touches.
    assert receipt.to_dict()["bytes"]["shipped"] < values.nbytes * 9, "boxes, and not chunks"


def test_images(three_nodes: Connection, tmp_path: Path) -> None:
    images = np.random.default_rng(4).integers(0, 256, (20, 64, 96, 3)).astype("uint8")
    labels = np.arange(20, dtype="int16") % 5
    group = zarr.create_group(tmp_path / "pets.zarr")
    dims = ["sample", "y", "x", "channel"]
    group.create_array("image", shape=images.shape, chunks=(4, 64, 96, 3), dtype="uint8", dimension_names=dims)[...] = images
    group.create_array("label", shape=(20,), chunks=(8,), dtype="int16", dimension_names=["sample"])[...] = labels
    ingest(three_nodes, tmp_path / "pets.zarr", "pets")

    receipt = run_pipeline(three_nodes, load_pipeline(CONFIGS / "images.yaml"))
    assert receipt.status == "done", receipt.outcome.tally.failures
    means = images.reshape(20, 32, 2, 32, 3, 3).mean((2, 4))[:, 2:30, 2:30].transpose(0, 3, 1, 2) / 255
    result = read_back(roots_of(three_nodes), "pets-train", "image")
    assert (result.shape, result.dtype) == ((20, 3, 28, 28), np.float16)
    np.testing.assert_allclose(result, means, atol=0.004)  # Pillow rounds to whole numbers
    assert (read_back(roots_of(three_nodes), "pets-train", "label").argmax(1) == labels).all()


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
    """By one here, or elsewhere; or by a script or notebook that is there to be run."""
    root = CONFIGS.parent
    files = [*(root / "tests").rglob("*.py"), *(root / "ci").rglob("*"), *(root / "notebooks").rglob("*.[pi]*")]
    tests = "".join(path.read_text() for path in files if path.is_file() and "__pycache__" not in path.parts)
    assert [path.name for path in sorted(CONFIGS.glob("*.yaml")) if path.name not in tests] == []
