"""Where steps are computed is settled, or refused by name, before anything starts or is written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from gpuflow.backends.devices import machine
from gpuflow.cluster.connection import Connection
from gpuflow.datasets import catalog
from gpuflow.errors import DeviceUnavailable
from gpuflow.execution.devices import Chosen, chosen
from gpuflow.execution.run import run_pipeline
from gpuflow.execution.summary import run_statistics
from gpuflow.pipelines.load import any_from_dict, from_dict
from tests.execution.test_run import ingest

without_devices = pytest.mark.skipif(bool(machine().devices), reason="there are CUDA devices")


def worker(node: str, device: str = "cpu", why: str = "no driver", **lacks: str) -> Mapping[str, Any]:
    name = "" if device == "cpu" else "A100"
    return {"node": node, "device": device, "device_name": name, "why_cpu": why if device == "cpu" else "", "lacks": lacks}


MIXED = [worker("a", "cuda:0", cupy="no CuPy"), worker("a"), worker("b")]


@pytest.mark.parametrize(
    ("asked", "backend", "workers", "answer"),
    [
        ("auto", "torch", [worker("a")], Chosen()),
        ("auto", "torch", MIXED, Chosen("auto", "auto", "auto: 1 x A100, cpu on 2 workers")),
        ("auto", "auto", MIXED, Chosen()),
        ("cpu", "torch", MIXED, Chosen()),
        ("cuda", "torch", MIXED, Chosen("cuda", "cuda", "cuda: 1 x A100")),
        ("cuda:0", "torch", MIXED, Chosen("cuda", "cuda:0", "cuda:0: 1 x A100")),
    ],
)
def test_what_a_pipeline_gets(asked: str, backend: str, workers: list[Mapping[str, Any]], answer: Chosen) -> None:
    assert chosen(asked, backend, {}, workers) == answer


@pytest.mark.parametrize(
    ("asked", "backend", "needed", "workers", "message"),
    [
        ("cuda", "torch", {}, [worker("a"), worker("b", why="hidden")], "cuda needs .*: node a: no driver; node b: hidden; use"),
        ("cuda:1", "torch", {}, [worker("a", "cuda:0")], r"needs a worker .*: node a: it has cuda:0 \(A100\)"),
        ("cuda", "auto", {}, MIXED, "backend: auto cannot use .*node a: no CuPy"),
        ("cuda", "torch", {}, [worker("a", "cuda:0", torch="no PyTorch")], "backend: torch cannot use .*node a: no PyTorch"),
        ("auto", "auto", {"torch": "step apply: m:f"}, [worker("a")], "step apply: m:f needs a worker .*node a: no driver"),
        ("auto", "auto", {"cupy": "step apply: m:f"}, MIXED, "step apply: m:f cannot use .*: node a: no CuPy"),
    ],
)
def test_what_it_does_not_get(asked: str, backend: str, needed: Any, workers: list[Mapping[str, Any]], message: str) -> None:
    with pytest.raises(DeviceUnavailable, match=message):
        chosen(asked, backend, needed, workers)


def test_a_step_for_a_device_makes_the_pipeline_one() -> None:
    assert chosen("auto", "auto", {"torch": "step"}, MIXED) == Chosen("auto", "cuda", "cuda: 1 x A100")


def pipeline(source: str, output: str, step: Any = None, **run: Any) -> Any:
    steps = [step or {"clip": {"min": 0}}]
    return from_dict({"source": {"dataset": source, "arrays": ["t2m"]}, "steps": steps, "output": output, "run": run})


@without_devices
def test_cuda_is_refused_by_naming_every_node(three_nodes: Connection, field_zarr: Path) -> None:
    ingest(three_nodes, field_zarr, "no-cuda")
    nodes = sorted(three_nodes.nodes())
    with pytest.raises(DeviceUnavailable, match="no NVIDIA driver") as refused:
        run_pipeline(three_nodes, pipeline("no-cuda", "no-cuda-out", device="cuda", backend="torch"))
    for node in nodes:
        assert f"node {node}: there is no NVIDIA driver (libnvidia-ml.so.1 is not found)" in str(refused.value)
    assert str(refused.value).endswith("use device: auto or cpu")
    statistics = any_from_dict({"source": "no-cuda", "statistics": {}, "run": {"device": "cuda"}})
    with pytest.raises(DeviceUnavailable, match="no NVIDIA driver"):
        run_statistics(three_nodes, statistics)  # type: ignore[arg-type]
    assert "no-cuda-out" not in catalog.records(three_nodes)


@without_devices
def test_a_step_for_a_device_is_refused_by_name(three_nodes: Connection, field_zarr: Path) -> None:
    ingest(three_nodes, field_zarr, "no-step")
    step = {"apply": {"function": "tests.steps.functions:tensor_gradient", "device": "cuda", "returns": "float32"}}
    with pytest.raises(
        DeviceUnavailable, match=r"step apply: tests.steps.functions:tensor_gradient needs a worker with a CUDA device"
    ):
        run_pipeline(three_nodes, pipeline("no-step", "no-step-out", step))
    with pytest.raises(DeviceUnavailable, match=r"tensor_gradient needs a CUDA device, and device is cpu"):
        run_pipeline(three_nodes, pipeline("no-step", "no-step-out", step, device="cpu"))
    assert "no-step-out" not in catalog.records(three_nodes)


@without_devices
@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_auto_and_cpu_run_on_the_cpu(three_nodes: Connection, field_zarr: Path, device: str) -> None:
    ingest(three_nodes, field_zarr, f"on-{device}")
    receipt = run_pipeline(three_nodes, pipeline(f"on-{device}", f"on-{device}-out", device=device, backend="torch"))
    assert receipt.status == "done"
    assert receipt.outcome.tally.done == receipt.total
    for one in three_nodes.info()["workers"].values():
        assert one["device"] == "cpu"
        assert one["why_cpu"] == "there is no NVIDIA driver (libnvidia-ml.so.1 is not found)"
