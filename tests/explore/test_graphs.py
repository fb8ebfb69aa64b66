"""Users' own graphs over four nodes: results as NumPy has them, and the chunks read where they lie, counted by the workers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr

import gpuflow
from gpuflow.cluster import foreign
from gpuflow.cluster.connection import Connection
from gpuflow.cluster.locating import reads_of
from gpuflow.explore.dataset import Dataset
from tests.explore.conftest import VALUES

LOCAL_SHARE = 0.75
"""At the least, on a machine that may be busy. What else comes from peers the router must have shipped, since its node was behind."""


@pytest.fixture(scope="module")
def field(four_nodes: Connection) -> Iterator[Dataset]:
    with gpuflow.open("field", connection=four_nodes) as found:
        yield found


def _reads(connection: Connection) -> Counter[str]:
    total: Counter[str] = Counter(connection.client.run_on_scheduler(_shipped))
    for worker in connection.client.run(reads_of).values():
        total.update(worker)
    return total


def _shipped(dask_scheduler: Any) -> dict[str, int]:
    reasons = dask_scheduler.plugins["gpuflow"].reasons.items()
    users = [counts for run, counts in reasons if run.startswith(foreign.RUN)]
    return {"shipped": sum(count for counts in users for reason, count in counts.items() if reason != "local")}


@contextmanager
def reading(connection: Connection, chunks: int) -> Iterator[None]:
    """What is computed within reads as many chunks as that, at least, and nearly all of them where they lie."""
    before = _reads(connection)
    yield
    now = _reads(connection)
    local, peer = now["local"] - before["local"], now["peer"] - before["peer"]
    assert local + peer >= chunks, "they are read by the workers"
    assert local >= LOCAL_SHARE * (local + peer), f"{local} local, {peer} from peers"
    assert peer <= now["shipped"] - before["shipped"]


WORK: dict[str, tuple[Callable[[Any], Any], int]] = {
    "standardize": (lambda x: ((x - x.mean()) / x.std()).max(), 24),
    "slices": (lambda x: x[5:31:2, 3:20, ::-1].sum(axis=0), 14),
    "rechunk": (lambda x: x.rechunk((48, 6, 18)).std(axis=0), 24),
    "map_blocks": (lambda x: x.map_blocks(lambda block: block * 2).min(axis=(1, 2)), 24),
    "map_overlap": (lambda x: x.map_overlap(lambda block: block - block.mean(), depth=1, boundary="reflect").mean(), 24),
    "index": (lambda x: x[[40, 3, 17]], 6),
}


@pytest.mark.parametrize("work", WORK)
def test_dask_arrays(four_nodes: Connection, field: Dataset, work: str) -> None:
    function, chunks = WORK[work]
    with reading(four_nodes, chunks):
        found = function(field.to_dask()).compute()
    if work != "map_overlap":  # which means something else without blocks
        blocks = da.from_array(VALUES, chunks=(4, 12, 18))
        with dask.config.set(scheduler="synchronous"):
            assert np.allclose(found, function(blocks).compute())


def test_persisted_arrays_are_read_once(four_nodes: Connection, field: Dataset) -> None:
    with reading(four_nodes, 24):
        kept = field.to_dask().persist()
        assert np.isclose(kept.sum().compute(), VALUES.sum(), rtol=1e-4)
    before = _reads(four_nodes)
    assert np.isclose(kept.max().compute(), VALUES.max())
    assert _reads(four_nodes) == before


def test_delayed(four_nodes: Connection, field: Dataset) -> None:
    blocks = field.to_dask().to_delayed().ravel()
    with reading(four_nodes, 24):
        sums = dask.compute(*(dask.delayed(np.sum)(block) for block in blocks))
    assert np.isclose(sum(sums), VALUES.sum(), rtol=1e-4)


def test_xarray(four_nodes: Connection, field: Dataset) -> None:
    t2m = field.to_xarray(chunks={}).t2m
    assert t2m.data.chunksize == (4, 12, 18)
    with reading(four_nodes, 24):
        found = ((t2m - t2m.mean()) / t2m.std()).max().compute()
    assert np.isclose(found, ((VALUES - VALUES.mean()) / VALUES.std()).max(), rtol=1e-4)
    with reading(four_nodes, 6):
        days = t2m.sel(time=slice("2020-01-03", "2020-01-05")).groupby("time.day").mean().compute()
    assert np.allclose(days[0], VALUES[8:12].mean(axis=0), rtol=1e-5)


def test_zarr_arrays_in_a_graph_of_any_origin(four_nodes: Connection, field: Dataset) -> None:
    array = field["t2m"]
    for lazy in (da.from_zarr(array, chunks=(4, 12, 18)), da.from_array(array, chunks=(4, 12, 18), inline_array=True)):
        with reading(four_nodes, 24):
            assert np.isclose(lazy.mean().compute(), VALUES.mean())


def _mean_of(array: zarr.Array[Any], where: tuple[slice, ...]) -> float:
    return float(array[where].mean())


def test_functions_of_an_array_and_slices(four_nodes: Connection, field: Dataset) -> None:
    grid, array = field.record.array("t2m").grid, field["t2m"]
    with reading(four_nodes, 24):
        futures = [four_nodes.client.submit(_mean_of, array, grid.region(chunk)) for chunk in range(grid.size)]
        means = four_nodes.client.gather(futures)
    assert means == pytest.approx([VALUES[grid.region(chunk)].mean() for chunk in range(grid.size)])


def test_xarray_writes_back_to_the_cluster(four_nodes: Connection, field: Dataset) -> None:
    standard = field.to_xarray(chunks={})
    standard["t2m"] = (standard.t2m - standard.t2m.mean()) / standard.t2m.std()
    with gpuflow.open("standard", connection=four_nodes, mode="a") as target:
        standard.drop_encoding().to_zarr(target.store, mode="w")
    with gpuflow.open("standard", connection=four_nodes) as again:
        xr.testing.assert_allclose(again.to_xarray(), standard.compute())
        assert set(again.placement("t2m")) == set(field.placement("t2m"))
