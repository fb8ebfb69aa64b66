"""Fixtures that start real processes are shared by the session: a cluster takes a second or two."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zarr

from gpuflow.cluster.connection import Connection, connect


@pytest.fixture(scope="session", autouse=True)
def _own_environment() -> Iterator[None]:
    """Tests neither see nor touch the user's cluster and data; schedulers that they start check their invariants at every transition."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("GPUFLOW_ROOT", "GPUFLOW_SCHEDULER", "GPUFLOW_ROUTING", "GPUFLOW_LIFELINE", "GPUFLOW_ALLOW_EXEC"):
            patch.delenv(name, raising=False)
        for process in ("SCHEDULER", "WORKER"):
            patch.setenv(f"DASK_DISTRIBUTED__{process}__VALIDATE", "True")
        yield


@pytest.fixture(scope="session")
def three_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connection]:
    """An embedded cluster of three nodes. Tests use dataset names of their own."""
    with connect(nodes=3, root=tmp_path_factory.mktemp("three")) as connection:
        yield connection


@pytest.fixture
def field_zarr(tmp_path: Path) -> Path:
    """A small climate-like Zarr v3 group: t2m (time, y, x) float32 over a ragged grid, and its coordinate time."""
    path = tmp_path / "field.zarr"
    group = zarr.create_group(path, attributes={"title": "a field"})
    values = np.random.default_rng(7).normal(280.0, 12.0, (37, 24, 18)).astype("float32")
    array = group.create_array("t2m", shape=values.shape, chunks=(4, 16, 18), dtype="float32", dimension_names=["time", "y", "x"])
    array[...] = values
    array.attrs["units"] = "K"
    time = group.create_array("time", shape=(37,), chunks=(10,), dtype="int64", dimension_names=["time"])
    time[...] = np.arange(37) * 6
    return path
