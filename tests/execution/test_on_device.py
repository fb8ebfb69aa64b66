"""Pipelines on a worker with a CUDA device: the same result as on the CPU, and what is kept in its memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import gpuflow
from gpuflow.backends.devices import why_no_cuda
from gpuflow.cluster.connection import Connection, connect
from gpuflow.execution.run import run_pipeline
from gpuflow.execution.summary import run_statistics
from gpuflow.pipelines.load import any_from_dict, from_dict
from tests.helpers import read_embedded

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(bool(why_no_cuda("cupy")), reason=why_no_cuda("cupy") or "there is a device"),
]

SHAPE = (24, 130, 64)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root: Path = tmp_path_factory.mktemp("device")
    return root


@pytest.fixture(scope="module")
def cluster(root: Path) -> Iterator[Connection]:
    with connect(nodes=1, root=root, device="cuda") as connection:
        yield connection


@pytest.fixture(scope="module")
def values(cluster: Connection, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Of two datasets: shards as gpuflow writes them, which the device decodes, and plain chunks, which the CPU does."""
    values = np.random.default_rng(5).normal(280, 10, SHAPE).round(1).astype("float32")
    path = tmp_path_factory.mktemp("source") / "plain.zarr"
    array = zarr.create_array(path, shape=SHAPE, chunks=(4, 65, 64), dtype="float32")
    array[...] = values
    gpuflow.ingest(path, "plain", connection=cluster)
    receipt = run_pipeline(cluster, from_dict({"source": "plain", "steps": [{"map": "x * 1"}], "output": "shards"}))
    assert receipt.status == "done", receipt.outcome.tally.failures
    return values


def run(connection: Connection, source: str, steps: list[Any], output: Any = "out") -> dict[str, Any]:
    asked = {"source": source, "steps": steps, "output": output, "run": {"device": "cuda", "cache": "64MiB"}}
    receipt = run_pipeline(connection, from_dict(asked), stack=True)
    assert receipt.status == "done", receipt.outcome.tally.failures
    return receipt.to_dict()


@pytest.mark.parametrize("source", ["plain", "shards"])
def test_the_same_as_on_the_cpu(cluster: Connection, root: Path, values: Any, source: str) -> None:
    steps = [{"standardize": {"mean": 280.0, "std": 10.0}}, {"clip": [-1, 1]}, {"cast": "float16"}]
    run(cluster, source, steps, f"{source}-scaled")
    expected = np.clip((values - np.float32(280)) / np.float32(10), -1, 1).astype(np.float16)
    np.testing.assert_array_equal(read_embedded(root, f"{source}-scaled", "data"), expected)


def test_in_place(cluster: Connection, root: Path, values: Any) -> None:
    run(cluster, "shards", [{"map": "x + 0"}], "changed")
    run(cluster, "changed", [{"map": "x - 280"}], {"in_place": True})
    np.testing.assert_array_equal(read_embedded(root, "changed", "data"), values - np.float32(280))


def test_the_second_pass_comes_from_the_device(cluster: Connection, values: Any) -> None:
    tiers = []
    for where in (200, 201):
        asked = {"source": "shards", "statistics": {"where": f"x > {where}"}, "run": {"device": "cuda", "cache": "64MiB"}}
        receipt = run_statistics(cluster, any_from_dict(asked))
        assert receipt.status == "done", receipt.outcome.tally.failures
        tiers.append(receipt.to_dict()["locality"]["tiers"])
    assert tiers[1]["vram"]["chunks"] == sum(tier["chunks"] for tier in tiers[0].values())
    assert tiers[1]["disk"] == {"chunks": 0, "bytes": 0}


def test_a_function_gets_cupy_arrays(cluster: Connection, root: Path, values: Any) -> None:
    run(cluster, "shards", [{"apply": {"function": f"{__name__}:doubled", "device": "cuda", "returns": "float32"}}], "doubled")
    np.testing.assert_array_equal(read_embedded(root, "doubled", "data"), values * 2)


def doubled(xp: Any, block: Any) -> Any:
    assert xp.__name__ == "cupy"
    return block * 2


def test_a_function_that_raises_harms_no_other_chunk(cluster: Connection, values: Any) -> None:
    step = {"function": f"{__name__}:fussy", "device": "cuda", "returns": "float32", "limit": float(values.max()) - 0.05}
    asked = {"source": "shards", "steps": [{"apply": step}], "output": "fussy", "run": {"device": "cuda"}}
    receipt = run_pipeline(cluster, from_dict(asked))
    assert receipt.status == "failed"
    assert 0 < len(receipt.outcome.tally.failures) < receipt.total
    assert "ValueError: too warm" in receipt.outcome.tally.failures[0].error


def fussy(xp: Any, block: Any, limit: float) -> Any:
    if bool((block > limit).any()):
        raise ValueError("too warm")
    return block * 1
