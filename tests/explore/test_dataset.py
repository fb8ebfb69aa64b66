"""`gpuflow.open`, on a cluster and without one: the same arrays, and what is known of them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpuflow
from gpuflow.backends.devices import why_no_cuda
from gpuflow.cluster.connection import Connection
from gpuflow.cluster.locating import ClientLocator
from gpuflow.cluster.references import ChunkRef
from gpuflow.datasets import catalog
from gpuflow.datasets.here import NodesHere
from gpuflow.errors import ConfigError, DeviceUnavailable, NameTaken, NotFound
from gpuflow.execution import run as run_module
from gpuflow.explore.blocks import Source, read_block, slim
from gpuflow.explore.dataset import Dataset
from gpuflow.storage.metadata import ArrayMetadata
from gpuflow.storage.node import NodeStore
from gpuflow.storage.record import DatasetRecord
from gpuflow.storage.roots import node_roots
from tests.explore.conftest import PACKED, SHAPE, VALUES


@pytest.fixture(params=["cluster", "here"])
def field(request: pytest.FixtureRequest, four_nodes: Connection, root: Path) -> Iterator[Dataset]:
    where: dict[str, Any] = {"connection": four_nodes} if request.param == "cluster" else {"root": root}
    with gpuflow.open("field", **where) as found:
        yield found


def test_arrays_are_zarrs_and_dasks(field: Dataset) -> None:
    assert field.arrays == sorted(field) == ["height", "lat", "lon", "t2m", "time"]
    assert len(field) == 5
    assert "t2m" in field
    assert np.array_equal(field["t2m"][5:9, ::2], VALUES[5:9, ::2])
    assert dict(field["t2m"].attrs) == {"units": "K", "long_name": "2 metre temperature"}
    assert field.attributes == {"title": "a field"}
    lazy = field.to_dask()
    assert (lazy.shape, lazy.dtype, lazy.chunks[0]) == (SHAPE, np.dtype("float32"), (4,) * 12)
    assert np.array_equal(lazy[5:9, ::2].compute(), VALUES[5:9, ::2])
    assert np.array_equal(field.to_dask("height").compute(), PACKED)
    assert "t2m  float32 (48, 24, 18), chunks (4, 12, 18)" in repr(field)


def test_what_is_known_of_a_dataset(field: Dataset) -> None:
    placement = field.placement()
    assert (len(placement), sum(placement.values()), max(placement.values())) == (4, 24, 6)
    assert field.history()["arrays"]["t2m"]["stages"] == {"as made": 24}
    stats = field.stats()
    assert (stats["array"], stats["count"]) == ("t2m", VALUES.size)
    for name in ("mean", "std", "min", "max"):
        assert stats[name] == pytest.approx(getattr(VALUES.astype("float64"), name)())
    sample = field.sample(5, seed=3)
    assert np.array_equal(sample, field.sample(5, seed=3))
    found = [int(np.flatnonzero((one == VALUES).all(axis=(1, 2)))[0]) for one in sample]
    assert len(set(found)) == 5
    assert np.array_equal(field.chunk(3), VALUES[4:8, 12:24])


def test_names_that_are_not_there_are_answered_with_the_nearest(field: Dataset, root: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no dataset 'feild'; did you mean 'field'"):
        gpuflow.open("feild", root=root)
    with pytest.raises(NotFound, match="no array 'field/t2'; did you mean 't2m'"):
        field["t2"]
    with pytest.raises(NotFound, match="no chunk 'field/t2m/24'; it has 24"):
        field.chunk(24)
    with pytest.raises(NotFound, match=r"no store .*; ingest something first"):
        gpuflow.open("field", root=tmp_path)
    with pytest.raises(ConfigError, match="mode 'w'; use r, r\\+ or a"):
        gpuflow.open("field", root=root, mode="w")
    with pytest.raises(ConfigError, match="49 samples of field/t2m, which has shape"):
        field.sample(49)


def test_a_device_that_is_not_there_is_refused(field: Dataset) -> None:
    if not why_no_cuda("cupy"):
        pytest.skip("there is a device")
    of_nodes = r"to_dask\(device='cuda'\) needs a worker with a CUDA device, and there is none: node \S+: .*; node "
    there_is_none = of_nodes if isinstance(field.store.locator, ClientLocator) else "cuda cannot be used: "
    with pytest.raises(DeviceUnavailable, match=rf"{there_is_none}.*leave out device, or use device='cpu'"):
        field.to_dask(device="cuda")
    with pytest.raises(ConfigError, match="device 'gpu', for the blocks of a dask array; use cpu or cuda"):
        field.to_dask(device="gpu")


def test_a_worker_whose_cupy_is_of_no_use_is_refused_by_name(four_nodes: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    info = four_nodes.info()
    says = {"device": "cuda:0", "device_name": "A100", "lacks": {"cupy": "CuPy is not installed: pip install 'gpuflow[cuda]'"}}
    workers = {address: worker | says for address, worker in info["workers"].items()}
    with gpuflow.open("field", connection=four_nodes) as field:
        monkeypatch.setattr(four_nodes, "info", lambda: {**info, "workers": workers})
        with pytest.raises(DeviceUnavailable, match=r"to_dask\(device='cuda'\) cannot use .* node \S+: CuPy is not installed"):
            field.to_dask(device="cuda")
        workers = {address: worker | says | {"lacks": {}} for address, worker in workers.items()}
        lazy = field.to_dask(device="cuda")
        assert (lazy.shape, lazy.chunks) == (SHAPE, field.to_dask().chunks)
        assert lazy.name != field.to_dask().name, "blocks of NumPy are not taken for those of CuPy"


def test_blocks_are_of_one_device_alone(four_nodes: Connection, field: Dataset) -> None:
    """As when the last worker with a device has gone meanwhile: the task says why not."""
    if not why_no_cuda("cupy"):
        pytest.skip("there is a device")
    source = Source(field.store.locator, slim(field.record, "t2m"), "cuda")
    with pytest.raises(DeviceUnavailable, match=r"cuda cannot be used: .*use device='cpu'"):
        read_block(ChunkRef("field", "t2m", (0,), (1,), 1, "cuda"), source)


def test_a_new_dataset_is_written_and_read(root: Path) -> None:
    with gpuflow.open("fresh", root=root, mode="a") as fresh:
        fresh.group.create_array("x", shape=(10,), chunks=(3,), dtype="int32")[...] = np.arange(10)
        assert fresh["x"][...].tolist() == list(range(10))
    with gpuflow.open("fresh", root=root) as again:
        assert again.to_dask().sum().compute() == 45
        with pytest.raises(ValueError, match="read-only"):
            again["x"][0] = 1


def _in_place(connection: Connection) -> Any:
    return gpuflow.run(gpuflow.Pipeline("moving").map("x + 1").in_place(), connection=connection)


def test_an_in_place_pipeline_half_way_is_refused_and_a_view_from_before_never_mixes(
    four_nodes: Connection, source: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpuflow.ingest(source, "moving", connection=four_nodes, arrays=["t2m"])
    before = gpuflow.open("moving", connection=four_nodes)
    assert np.array_equal(before["t2m"][:4], VALUES[:4])
    plan_all = run_module.plan_all_chunks

    def half(*args: Any) -> Any:
        (part,) = plan_all(*args)
        return [replace(part, pending=part.pending[:12])]

    monkeypatch.setattr(run_module, "plan_all_chunks", half)  # as if it had died after twelve chunks
    _in_place(four_nodes)
    reason = "dataset 'moving' is in the middle of in-place pipeline 1, which has done 12 of 24 chunks of 't2m'; run it again"
    for where in ({"connection": four_nodes}, {"root": root}):
        with pytest.raises(NameTaken, match=reason):
            gpuflow.open("moving", **where)
    read, refused = 0, 0
    for chunk in range(24):
        try:
            block = before.chunk(chunk, "t2m")
            index = before.record.array("t2m").grid.region(chunk)
            assert np.array_equal(block, VALUES[index])
            read += 1
        except gpuflow.errors.StaleChunk:
            refused += 1
    assert (read, refused) == (12, 12)
    monkeypatch.undo()
    _in_place(four_nodes)
    with gpuflow.open("moving", connection=four_nodes) as after:
        assert np.array_equal(after.to_dask().compute(), VALUES + 1)
    before.close()


def test_opening_a_million_chunks_reads_none_of_their_rows(tmp_path: Path) -> None:
    (first,) = node_roots(tmp_path, 1)
    NodeStore(first, name="n").close()
    nodes = NodesHere(first)
    metadata = ArrayMetadata.create((4 * 10**6,), (4,), np.dtype("int32"), compressor="none")
    assert catalog.publish(nodes, DatasetRecord("many", 1, "ready", {"x": metadata.document}))
    nodes.close()
    began = time.perf_counter()
    with gpuflow.open("many", root=tmp_path) as many:
        assert many.record.array("x").grid.size == 10**6
    assert time.perf_counter() - began < 1
