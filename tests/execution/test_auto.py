"""`compressor: auto` on a real cluster: chosen by what the nodes measured, once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from gpuflow.cluster.connection import Connection, connect
from gpuflow.datasets import catalog
from gpuflow.execution.run import look, prepare, run_pipeline
from gpuflow.objectstore.ingest import ingest_source, remove_dataset
from gpuflow.objectstore.sources import open_source
from gpuflow.pipelines.compressor import Choice
from gpuflow.pipelines.load import from_dict
from gpuflow.storage.calibration import FILE_NAME, keep
from tests.helpers import read_embedded
from tests.storage.calibrations import calibration


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Connection, Path]]:
    """Two nodes, and `field`: zstd at a ratio that is better than the calibration's."""
    folder = tmp_path_factory.mktemp("auto")
    values = np.arange(16 * 64 * 64, dtype="float32").reshape(16, 64, 64) // 64
    zarr.create_array(folder / "field.zarr", data=values, chunks=(2, 64, 64), compressors=zarr.codecs.ZstdCodec(level=1))
    with connect(nodes=2, root=folder / "root") as connection:
        ingest_source(connection, open_source(folder / "field.zarr"), "field")
        yield connection, folder / "root"


def calibrate(root: Path, *writes: float | None) -> None:
    """Keep figures of disks with these rates, by node."""
    for place, write in zip((root, root / "nodes" / "1"), writes, strict=True):
        (place / FILE_NAME).unlink(missing_ok=True)
        if write is not None:
            keep(place, calibration(write))


def pipeline(name: str) -> Any:
    return from_dict({"source": "field", "steps": [{"map": "x + 1"}], "output": {"dataset": name, "compressor": "auto"}})


def choice_for(connection: Connection, name: str = "new") -> Choice:
    choice = prepare(look(connection, pipeline(name)), pipeline(name))[0].compressor
    assert choice is not None
    return choice


def test_chosen_once(cluster: tuple[Connection, Path]) -> None:
    connection, root = cluster
    calibrate(root, 50.0, 50.0)
    assert choice_for(connection, "once").name == "none"
    assert run_pipeline(connection, pipeline("once")).to_dict()["chunks"]["done"] == 8
    calibrate(root, 0.1, 0.1)
    assert str(choice_for(connection, "once")) == "none - chosen when 'once' was begun"
    assert run_pipeline(connection, pipeline("once")).to_dict()["chunks"]["skipped"] == 8
    assert catalog.find(connection, "once").origin["compressor"] == "none"
    assert (read_embedded(root, "once", "data").ravel() == np.arange(16 * 64 * 64) // 64 + 1).all()
    remove_dataset(connection, "once")
    assert choice_for(connection, "once").name == "zstd", "what was removed is forgotten"


def test_the_slowest_node_and_the_data_itself(cluster: tuple[Connection, Path]) -> None:
    connection, root = cluster
    calibrate(root, 50.0, 0.5)
    choice = choice_for(connection)
    assert choice.name == "zstd"
    assert choice.why.startswith("the disk (0.5 GB/s) is slower than zstd (2 threads x 0.8 GB/s, ratio ")
    assert float(choice.why.partition("ratio ")[2].rstrip(")")) > 10


def test_without_and_with_a_damaged_calibration(cluster: tuple[Connection, Path]) -> None:
    connection, root = cluster
    calibrate(root, None, None)
    assert str(choice_for(connection)) == "zstd - the default: no node is calibrated; run `gpuflow calibrate`"
    calibrate(root, 0.1, None)
    assert "1 of 2 nodes are not calibrated" in choice_for(connection).why
    (root / "nodes" / "1" / FILE_NAME).write_text("{}")
    assert "is damaged (it is not of format 2); run `gpuflow calibrate`" in choice_for(connection).why
