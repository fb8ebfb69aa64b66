"""The bytes that a plan says will be shipped are those that are: for statistics, and for what is made, by cut and by halo."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import zarr

import gpuflow
from gpuflow.cluster.connection import Connection, connect
from gpuflow.execution.run import run_pipeline
from gpuflow.pipelines.load import from_dict
from tests.execution.test_run import ingest

CASES: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "cut": ([], {"shards": [12, 16, 16]}),
    "cut, with statistics": ([{"standardize": {}}], {"shards": [12, 16, 16]}),
    "halo, with statistics": ([{"gaussian": {"sigma": {"y": 1, "x": 1}}}, {"standardize": {}}], {}),
    "halo, statistics, cut": (
        [{"transpose": ["y", "x", "t"]}, {"gaussian": {"sigma": {"x": 1}}}, {"standardize": {"per": "t"}}],
        {"shards": [16, 16, 12]},
    ),
}


@pytest.fixture(scope="module")
def three_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connection]:
    """Whose tasks stay with the holders: what an idle worker takes over, no plan knows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPUFLOW_ROUTING", "strict")
        with connect(nodes=3, root=tmp_path_factory.mktemp("three")) as connection:
            yield connection


@pytest.fixture(scope="module")
def source(three_nodes: Connection, tmp_path_factory: pytest.TempPathFactory) -> str:
    """(t, y, x) float32, raw, as `shipped`."""
    values = np.random.default_rng(0).normal(size=(24, 64, 64)).astype("f4")
    path = tmp_path_factory.mktemp("ships") / "s.zarr"
    zarr.create_array(path, data=values, chunks=(4, 32, 32), compressors=None, dimension_names=["t", "y", "x"])
    ingest(three_nodes, path, "shipped")
    return "shipped"


@pytest.mark.parametrize("case", CASES)
def test_as_planned(three_nodes: Connection, source: str, case: str) -> None:
    steps, output = CASES[case]
    varied = [{"map": f"x + {list(CASES).index(case)}"}, *steps]  # so that no statistics are kept
    spec = from_dict(
        {
            "source": source,
            "steps": varied,
            "output": {"dataset": f"ships-{list(CASES).index(case)}", "compressor": "none", **output},
        }
    )
    planned = gpuflow.plan(spec, connection=three_nodes)
    details = planned.details
    planned.close()
    before, own = details.get("statistics_ship_nbytes", 0), details["arrays"]["data"]["ship_nbytes"]
    receipt = run_pipeline(three_nodes, spec)
    assert receipt.status == "done", receipt.outcome.tally.failures
    assert own > 0
    assert (before > 0) == ("halo" in case and "statistics" in case), "where each chunk is read as it lies nothing travels"
    assert receipt.outcome.tally.shipped == pytest.approx(before + own, rel=0.05), receipt.outcome.reasons
    assert ("will be shipped before, to compute them" in repr(planned)) == (before > 0)
