"""A field with coordinates, as climate data has them, on a cluster of four nodes, and on one machine without a cluster."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zarr

import gpuflow
from gpuflow.cluster.connection import Connection, connect

SHAPE, SHARD, INNER = (48, 24, 18), (4, 12, 18), (2, 12, 18)
VALUES = np.random.default_rng(5).normal(280, 10, SHAPE).astype("float32")
PACKED = np.random.default_rng(6).integers(-100, 100, SHAPE[1:]).astype("int16")


def write_source(path: Path) -> Path:
    group = zarr.create_group(path, attributes={"title": "a field"})
    field = group.create_array(
        "t2m", shape=SHAPE, shards=SHARD, chunks=INNER, dtype="float32", dimension_names=["time", "lat", "lon"]
    )
    field[...] = VALUES
    field.attrs.update(units="K", long_name="2 metre temperature")
    packed = group.create_array("height", data=PACKED, chunks=(24, 18), dimension_names=["lat", "lon"])
    packed.attrs.update(scale_factor=0.5, add_offset=100.0, units="m")
    for name, values, attributes in (
        ("time", np.arange(48) * 6, {"units": "hours since 2020-01-01", "calendar": "standard"}),
        ("lat", np.linspace(-60, 60, 24), {"units": "degrees_north"}),
        ("lon", np.linspace(0, 340, 18), {"units": "degrees_east"}),
    ):
        axis = group.create_array(name, data=values, chunks=values.shape, dimension_names=[name])
        axis.attrs.update(attributes)
    return path


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("source") / "field.zarr")


@pytest.fixture(scope="session")
def four_nodes(tmp_path_factory: pytest.TempPathFactory, source: Path) -> Iterator[Connection]:
    """Four nodes that hold dataset `field`."""
    with connect(nodes=4, workers=1, root=tmp_path_factory.mktemp("four")) as connection:
        gpuflow.ingest(source, "field", connection=connection)
        yield connection


@pytest.fixture(scope="session")
def root(four_nodes: Connection) -> Path:
    """The root of these nodes, to be read without a cluster."""
    return min((Path(worker["root"]) for worker in four_nodes.info()["workers"].values()), key=lambda path: len(path.parts))
