"""Blocks of CuPy: made by the workers that have a device, and the same values."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpuflow
from gpuflow.backends.devices import why_no_cuda
from gpuflow.cluster.connection import connect
from gpuflow.explore.dataset import Dataset
from tests.explore.conftest import VALUES

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(bool(why_no_cuda("cupy")), reason=why_no_cuda("cupy") or "there is a device"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, source: Path) -> Path:
    """The root of a node that holds dataset `field`."""
    folder: Path = tmp_path_factory.mktemp("device")
    with connect(nodes=1, root=folder, device="cuda") as connection:
        gpuflow.ingest(source, "field", connection=connection)
    return folder


@pytest.fixture(params=["cluster", "here"])
def field(request: pytest.FixtureRequest, folder: Path) -> Iterator[Dataset]:
    if request.param == "here":
        with gpuflow.open("field", root=folder) as found:
            yield found
        return
    with connect(nodes=1, root=folder, device="cuda") as connection, gpuflow.open("field", connection=connection) as found:
        yield found


def kind(block: Any) -> Any:
    return np.full((1, 1, 1), type(block).__module__.partition(".")[0], "U8")


def test_blocks_are_cupys_with_the_values_of_the_dataset(field: Dataset) -> None:
    lazy = field.to_dask(device="cuda")
    assert set(lazy.map_blocks(kind, dtype="U8", chunks=(1, 1, 1)).compute().ravel()) == {"cupy"}
    values = lazy.map_blocks(lambda block: block.get(), dtype=lazy.dtype, meta=np.empty((0, 0, 0), lazy.dtype))
    assert np.array_equal(values.compute(), VALUES)
    assert float(lazy.mean().compute()) == pytest.approx(float(VALUES.mean()), rel=1e-5)
