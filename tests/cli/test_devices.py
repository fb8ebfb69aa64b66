"""`--device` where there is no CUDA device: one line that says why, and nothing is left behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gpuflow.backends.devices import machine
from gpuflow.cluster.connection import Connection
from gpuflow.display.nodes import device_text
from tests.cli.commands import command as gpuflow

pytestmark = pytest.mark.skipif(bool(machine().devices), reason="there are CUDA devices")

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
NO_DRIVER = "there is no NVIDIA driver (libnvidia-ml.so.1 is not found)"


@pytest.mark.parametrize("word", ["cuda", "cuda:1"])
@pytest.mark.parametrize("name", ["run", "plan"])
def test_cuda_is_refused_before_anything_starts(tmp_path: Path, name: str, word: str) -> None:
    shown = gpuflow(name, QUICKSTART, "--device", word, root=tmp_path / "root", status=2)
    assert shown == f"error: {word} cannot be used: {NO_DRIVER}; use device: auto or cpu\n"
    assert not (tmp_path / "root").exists()


def test_a_word_that_names_no_device(tmp_path: Path) -> None:
    shown = gpuflow("run", QUICKSTART, "--device", "gpu", root=tmp_path / "root", status=2)
    assert "there is no device 'gpu'; write auto, cpu, cuda or cuda:0" in shown


def test_a_step_for_a_device(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("def twice(torch, block):\n    return block * 2\n")
    file = tmp_path / "p.yaml"
    file.write_text("source: photos\nsteps:\n  - apply: {function: own:twice, device: cuda}\noutput: x\n")
    shown = gpuflow("run", file, root=tmp_path / "root", status=2)
    assert shown.startswith(f"error: step apply: own:twice needs a CUDA device: {NO_DRIVER}")
    file.write_text(file.read_text().replace("device: cuda", "device: gpu"))
    shown = gpuflow("validate", file, root=tmp_path, status=2)
    assert "p.yaml:3:42: steps[0].apply.device: must not be the text 'gpu'; known: auto, cuda" in shown


def test_a_node_for_a_device(tmp_path: Path) -> None:
    options = ("--scheduler", "tcp://127.0.0.1:1", "--device", "cuda")
    shown = gpuflow("node", *options, root=tmp_path / "root", status=2)
    assert shown == f"error: cuda cannot be used: {NO_DRIVER}; use device: auto or cpu\n"
    assert not (tmp_path / "root").exists()


def test_the_workers_of_a_cluster_and_why_they_have_no_device(three_nodes: Connection, tmp_path: Path) -> None:
    assert three_nodes.embedded is not None
    address = three_nodes.embedded.address
    shown = gpuflow("nodes", "--scheduler", address, root=tmp_path)
    assert shown.count(f"cpu: {NO_DRIVER}") == three_nodes.embedded.worker_count
    rows = json.loads(gpuflow("nodes", "--scheduler", address, "--json", root=tmp_path))
    assert {row["node"] for row in rows} == set(three_nodes.nodes())
    refused = gpuflow("plan", QUICKSTART, "--device", "cuda", "--scheduler", address, root=tmp_path, status=2)
    assert all(f"node {node}: {NO_DRIVER}" in refused for node in three_nodes.nodes())
    assert "scheduler's address is missing" in gpuflow("nodes", root=tmp_path, status=1)


def test_how_a_device_is_shown() -> None:
    worker = {
        "device": "cuda:0",
        "device_name": "NVIDIA H200",
        "device_nbytes": 139 * 2**30,
        "why_cpu": "",
        "lacks": {"cupy": "it is old"},
    }
    assert device_text(worker) == "cuda:0, NVIDIA H200 with 139.0 GiB; without cupy: it is old"
