"""Memory on real workers: the prediction holds, and what does not fit is refused before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from gpuflow.cluster.connection import Connection, connect
from gpuflow.cluster.launch import existing_roots
from gpuflow.datasets import catalog
from gpuflow.datasets.catalog import Nodes, NodesOnDisk
from gpuflow.errors import PlanTooLarge
from gpuflow.execution.memory import check_memory, rooms
from gpuflow.execution.run import look, prepare, run_pipeline
from gpuflow.execution.statistics import compute_moments
from gpuflow.objectstore.ingest import ingest_source
from gpuflow.objectstore.sources import open_source
from gpuflow.pipelines.load import from_dict
from gpuflow.pipelines.memory import Prediction
from gpuflow.pipelines.spec import PipelineSpec

MIB = 2**20


@pytest.fixture(scope="module")
def one_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connection]:
    """One node, and `field`: 6 chunks of 48 MiB; `huge`: one chunk of 149 GiB, of which nothing is stored."""
    folder = tmp_path_factory.mktemp("memory")
    field = np.round(np.random.default_rng(0).normal(280, 9, (6, 3072, 4096)), 1).astype("float32")
    zarr.create_array(folder / "field.zarr", data=field, chunks=(1, 3072, 4096), compressors=zarr.codecs.ZstdCodec(level=1))
    zarr.create_array(folder / "huge.zarr", shape=(200_000, 200_000), chunks=(200_000, 200_000), dtype="float32")
    with connect(nodes=1, root=folder / "root") as connection:
        for name in ("field", "huge"):
            ingest_source(connection, open_source(folder / f"{name}.zarr"), name)
        yield connection


@pytest.fixture
def limited(one_node: Connection) -> Iterator[Callable[[int | None], None]]:
    """Sets what the scheduler was told that a worker may use."""

    def limit(nbytes: int | None, dask_scheduler: Any) -> int | None:
        plugin = dask_scheduler.plugins["gpuflow"]
        address, info = next(iter(plugin.members.nodes.items()))
        plugin.members.nodes[address] = replace(info, usable_nbytes=nbytes)
        return info.usable_nbytes  # type: ignore[no-any-return]

    def set_limit(nbytes: int | None) -> int | None:
        before: int | None = one_node.client.run_on_scheduler(limit, nbytes)
        one_node.info()  # what was seen a moment ago is no longer so
        return before

    before = set_limit(None)
    yield lambda nbytes: set_limit(nbytes) and None
    set_limit(before)


def pipeline(source: str, output: Any) -> Any:
    return from_dict({"source": source, "steps": [{"map": "x / 2 + 1"}], "output": output})


def predict(nodes: Nodes, spec: PipelineSpec) -> Prediction | None:
    found = look(nodes, spec)
    return check_memory(nodes, found, prepare(found, spec)[0])


def peak_nbytes() -> int:
    """On a worker: the most memory it ever had."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024


@pytest.mark.parametrize("output", [{"compressor": "none", "chunks": "whole"}, {}])
def test_the_prediction_holds(one_node: Connection, output: dict[str, str]) -> None:
    spec = pipeline("field", {"dataset": f"out-{len(output)}", **output})
    prediction = predict(one_node, spec)
    assert prediction is not None
    assert run_pipeline(one_node, spec).status == "done"
    peak = max(one_node.client.run(peak_nbytes).values())
    assert 0.75 * prediction.need_nbytes < peak <= prediction.need_nbytes


def test_the_prediction_holds_for_a_filter(one_node: Connection) -> None:
    steps = [{"gaussian": {"sigma": {1: 2, 2: 2}}}]
    spec = from_dict({"source": "field", "steps": steps, "output": "blurred", "run": {"cache": "off"}})
    prediction = predict(one_node, spec)
    assert prediction is not None
    assert run_pipeline(one_node, spec).status == "done"
    peak = max(one_node.client.run(peak_nbytes).values())
    assert 0.65 * prediction.need_nbytes < peak <= prediction.need_nbytes


def test_a_worker_with_too_little(one_node: Connection, limited: Callable[[int | None], None]) -> None:
    limited(300 * MIB)
    spec = pipeline("field", "too-large")
    for refuse in (lambda: run_pipeline(one_node, spec), lambda: compute_moments(one_node, "field", "data")):
        with pytest.raises(
            PlanTooLarge, match=r"array 'data': a chunk of 1 x 3072 x 4096 is 48.0 MiB; worker tcp://.* would fit"
        ):
            refuse()
    assert "too-large" not in catalog.records(one_node)


def test_a_run_that_may_use_less(one_node: Connection) -> None:
    spec = from_dict({"source": "field", "steps": [{"clip": [0, 1]}], "output": "too-large", "run": {"memory": "300MiB"}})
    with pytest.raises(PlanTooLarge, match=r"worker tcp://.*, within run.memory, with .* may use 300.0 MiB; .* would fit"):
        run_pipeline(one_node, spec)
    assert "too-large" not in catalog.records(one_node)
    wide = spec.model_copy(update={"run": spec.run.model_copy(update={"memory": 2**50})})
    prediction = predict(one_node, wide)
    assert prediction is not None
    assert prediction.worker in rooms(one_node), "no more than there is"


def test_a_chunk_larger_than_memory(one_node: Connection) -> None:
    with pytest.raises(PlanTooLarge, match=r"149.0 GiB.*chunks of \d+ x \d+ would fit"):
        run_pipeline(one_node, pipeline("huge", "never"))
    with pytest.raises(PlanTooLarge):
        compute_moments(one_node, "huge", "data")


def test_without_a_cluster_this_machine_counts(one_node: Connection) -> None:
    root = Path(next(iter(one_node.info()["workers"].values()))["root"])
    nodes = NodesOnDisk(tuple(existing_roots(root)))
    with pytest.raises(PlanTooLarge, match="a worker with"):
        predict(nodes, pipeline("huge", "never"))
    assert [(room.threads, room.nbytes) for room in rooms(nodes)] == [(room.threads, room.nbytes) for room in rooms(one_node)]
    several = rooms(nodes, 7)
    assert (len(several), several[0].threads) == (7, 1)


def test_no_limit_is_the_machine(one_node: Connection, limited: Callable[[int | None], None]) -> None:
    before = rooms(one_node)[0].nbytes
    limited(None)
    assert rooms(one_node)[0].nbytes >= before
