"""xarray's engine `gpuflow`: names, coordinates and decoded values, lazily or as dask arrays, and written back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import gpuflow
from gpuflow.cluster.connection import Connection
from gpuflow.errors import NotFound
from gpuflow.storage.node import NodeStore
from tests.explore.conftest import PACKED, VALUES


@pytest.fixture
def at_root(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUFLOW_ROOT", str(root))


@pytest.mark.usefixtures("at_root")
def test_a_dataset_by_its_name(source: Path) -> None:
    found = xr.open_dataset("gpuflow://field", engine="gpuflow")
    assert dict(found.sizes) == {"time": 48, "lat": 24, "lon": 18}
    assert set(found.coords) == {"time", "lat", "lon"}
    assert found.time.values[4] == np.datetime64("2020-01-02")
    assert np.allclose(found.height, PACKED * 0.5 + 100)
    assert found.t2m.attrs == {"units": "K", "long_name": "2 metre temperature"}
    assert np.array_equal(found.t2m.sel(lat=60, method="nearest").isel(time=[3, 1]), VALUES[[3, 1], 23])
    xr.testing.assert_identical(found.load(), xr.open_zarr(source, consolidated=False).load())


@pytest.mark.usefixtures("at_root")
def test_the_engine_is_guessed_and_raw_values_can_be_had() -> None:
    found = xr.open_dataset("gpuflow://field", mask_and_scale=False, decode_times=False, drop_variables=["lat"], chunks={})
    assert "lat" not in found.variables
    assert (found.height.dtype, found.time.dtype) == (np.dtype("int16"), np.dtype("int64"))
    assert found.t2m.data.chunksize == (4, 12, 18), "a block is a shard"


@pytest.mark.usefixtures("at_root")
def test_a_name_that_is_not_there() -> None:
    with pytest.raises(NotFound, match="no dataset 'feild'; did you mean 'field'"):
        xr.open_dataset("gpuflow://feild", engine="gpuflow")


def test_of_a_cluster_and_of_a_root(four_nodes: Connection, root: Path) -> None:
    for where in ({"connection": four_nodes}, {"root": root}):
        assert np.array_equal(xr.open_dataset("gpuflow://field", engine="gpuflow", **where).t2m[7], VALUES[7])


def test_written_appended_and_read_again(tmp_path: Path, root: Path) -> None:
    NodeStore(tmp_path, name="n").close()
    with gpuflow.open("field", root=root) as field:
        whole = field.to_xarray()[["t2m"]].load()
    with gpuflow.open("copy", root=tmp_path, mode="a") as copy:
        whole.isel(time=slice(0, 20)).drop_encoding().to_zarr(copy.store, mode="w", encoding={"t2m": {"chunks": (4, 12, 18)}})
        whole.isel(time=slice(20, 48)).drop_encoding().to_zarr(copy.store, append_dim="time")
    with gpuflow.open("copy", root=tmp_path) as again:
        xr.testing.assert_equal(again.to_xarray(), whole)
        assert again.record.array("t2m").grid.size == 24
