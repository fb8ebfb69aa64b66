"""The main job as a user types it: real commands in real processes, on an embedded cluster and on a running one."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage
import zarr

from tests.helpers import read_embedded

PHOTOS = Path(skimage.__file__).parent / "data"
QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"


def gpuflow(*arguments: object, root: Path, status: int = 0, **environment: str) -> str:
    """Output of a command (stdout, then stderr) that has to end with `status`."""
    command = [sys.executable, "-m", "gpuflow", *map(str, arguments)]
    environment = {**os.environ, "GPUFLOW_ROOT": str(root), **environment}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=90)
    assert result.returncode == status, f"{command} ended with {result.returncode}\n{result.stdout}\n{result.stderr}"
    assert "Traceback (most recent call last)" not in result.stderr
    return result.stdout + result.stderr


def photos_reference(root: Path) -> Any:
    """The quickstart's result by NumPy alone, from the ingested photographs."""
    source = read_embedded(root, "photos", "image").astype("float64")
    return np.clip((source - source.mean((0, 1, 2))) / source.std((0, 1, 2)), -3, 3)


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """A few real photographs in two labelled folders."""
    for label, names in {"things": ["coffee.png", "rocket.jpg"], "animals": ["chelsea.png"]}.items():
        (tmp_path / "images" / label).mkdir(parents=True)
        for name in names:
            (tmp_path / "images" / label / name).write_bytes((PHOTOS / name).read_bytes())
    return tmp_path / "images"


def test_quickstart_with_one_node_then_with_three(tmp_path: Path) -> None:
    root = tmp_path / "root"
    gpuflow("ingest", PHOTOS, "photos", "--tile", 128, "--chunk-samples", 16, root=root)
    gpuflow("run", QUICKSTART, root=root)
    plain = zarr.open_group(root / "datasets" / "photos-train", mode="r")["image"]
    assert plain.dtype == np.float16
    np.testing.assert_allclose(plain[...], photos_reference(root), atol=2e-3)
    three = tmp_path / "three.yaml"
    three.write_text(QUICKSTART.read_text().replace("output: photos-train", "output: photos-three"))
    receipt = json.loads(gpuflow("run", three, "--nodes", 3, "--json", root=root))
    assert all(node["chunks"] for node in receipt["nodes"].values())
    assert len(receipt["nodes"]) == 3
    assert receipt["bytes"]["shipped"] == receipt["bytes"]["sent"] > 0
    assert receipt["locality"]["reasons"]["hot_node"] == receipt["locality"]["remote_chunks"] > 0
    np.testing.assert_array_equal(read_embedded(root, "photos-three", "image"), plain[...])


def test_three_nodes_from_the_start_ship_nothing(tmp_path: Path) -> None:
    root, report = tmp_path / "root", tmp_path / "r.json"
    gpuflow("ingest", PHOTOS, "photos", "--tile", 128, "--chunk-samples", 16, "--nodes", 3, root=root)
    gpuflow("run", QUICKSTART, "--nodes", 3, "--report", report, root=root)
    receipt = json.loads(report.read_text())
    assert receipt["bytes"]["shipped"] == 0
    assert receipt["locality"]["remote_chunks"] == 0
    assert all(node["chunks"] for node in receipt["nodes"].values())
    np.testing.assert_allclose(read_embedded(root, "photos-train", "image"), photos_reference(root), atol=2e-3)
    shown = gpuflow("show", "photos-train", root=root)
    assert "float16" in shown
    assert "node2" in shown
    rows = json.loads(gpuflow("datasets", "--json", root=root))
    assert [(row["name"], row["state"], len(row["nodes"])) for row in rows] == [
        ("photos", "ready", 3),
        ("photos-train", "ready", 3),
    ]
    plan = json.loads(gpuflow("plan", QUICKSTART, "--json", root=root))
    assert plan["arrays"]["image"]["compute"] == "standardize, clip, cast: one pass"
    assert plan["arrays"]["image"]["chunks"] == {"total": 26, "pending": 0, "skipped": 26, "lost": 0}


def test_labels_are_carried_and_remove_asks(tmp_path: Path, photographs: Path) -> None:
    root = tmp_path / "root"
    gpuflow("ingest", photographs, "photos", "--size", "64x96", "--chunk-samples", 1, root=root)
    gpuflow("run", QUICKSTART, root=root)
    group = zarr.open_group(root / "datasets" / "photos-train", mode="r")
    assert group["label"][...].tolist() == [0, 1, 1]
    assert group["label"].attrs["classes"] == ["animals", "things"]
    assert group["image"].shape == (3, 64, 96, 3)
    assert group["image"].metadata.dimension_names == ("sample", "y", "x", "channel")
    assert "Aborted" in gpuflow("remove", "photos", root=root, status=1)
    gpuflow("remove", "photos", "--yes", root=root)
    assert "photos-train" in gpuflow("datasets", root=root)
    assert "no dataset 'photos'" in gpuflow("show", "photos", root=root, status=1)


def test_a_step_that_raises_fails_its_chunk_and_no_other(tmp_path: Path) -> None:
    root, report = tmp_path / "root", tmp_path / "r.json"
    np.save(tmp_path / "a.npy", np.arange(40))
    gpuflow("ingest", tmp_path / "a.npy", "numbers", "--chunk-samples", 10, root=root)
    pipeline = tmp_path / "p.yaml"
    pipeline.write_text(
        'source: numbers\nsteps:\n  - map: "x ** (x - 3)"\noutput: powers\n'
    )  # NumPy refuses integers to negative powers
    shown = gpuflow("run", pipeline, "--report", report, root=root, status=1)
    assert "numbers/data/c.0" in shown
    assert "negative integer powers" in shown
    receipt = json.loads(report.read_text())
    assert receipt["chunks"] == {"total": 4, "done": 3, "skipped": 0, "failed": 1}
    assert "ValueError" in receipt["failures"][0]["traceback"]
    again = json.loads(gpuflow("run", pipeline, "--json", root=root, status=1))
    assert again["chunks"] == {"total": 4, "done": 0, "skipped": 3, "failed": 1}
    assert "writing" in gpuflow("datasets", root=root)


def test_ctrl_c_ends_cleanly_and_the_next_run_continues(tmp_path: Path) -> None:
    root = tmp_path / "root"
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(1000, 5000)).astype("float32"))
    gpuflow("ingest", tmp_path / "a.npy", "wide", "--chunk-samples", 1, root=root)
    pipeline = tmp_path / "p.yaml"
    pipeline.write_text('source: wide\nsteps:\n  - map: "exp(-abs(x))"\noutput: narrow\n')
    # A shell that starts the tests in the background has its children ignore Ctrl-C.
    start = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from gpuflow.cli import main; main()"
    command = [sys.executable, "-c", start, "run", str(pipeline), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "GPUFLOW_ROOT": str(root)}) as process:
        while not list((root / "datasets" / "narrow" / "data").glob("c.*")):
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        receipt = json.loads(process.communicate(timeout=30)[0])
    assert process.returncode == 130
    assert receipt["status"] == "interrupted"
    assert receipt["failures"] == []
    final = json.loads(gpuflow("run", pipeline, "--json", root=root))
    assert final["chunks"]["skipped"] >= receipt["chunks"]["done"]
    assert final["chunks"]["skipped"] > 0
    assert final["chunks"]["done"] > 0
    expected = np.exp(-np.abs(np.load(tmp_path / "a.npy")))
    np.testing.assert_allclose(zarr.open_array(root / "datasets/narrow/data", mode="r")[...], expected, rtol=1e-6)


@contextmanager
def running(*arguments: object, log: Path = Path(os.devnull), **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A `gpuflow` command that runs until it is stopped; it has to end on SIGTERM. log: for what it says."""
    command = [sys.executable, "-m", "gpuflow", *map(str, arguments)]
    with log.open("wb") as opened:
        process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=opened, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(timeout=20)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_nodes(address: str, count: int, root: Path) -> None:
    """Until a command sees `count` nodes on the cluster."""
    code = f"import gpuflow; c = gpuflow.connect({address!r}); print(len(c.nodes())); c.close()"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
        if result.stdout.strip() == str(count):
            return
        time.sleep(0.2)
    raise AssertionError(f"{count} nodes did not join: {result.stdout}{result.stderr}")


def test_scheduler_and_nodes_as_on_a_cluster(tmp_path: Path, photographs: Path) -> None:
    address = f"tcp://127.0.0.1:{(port := free_port())}"
    roots = [tmp_path / "n1", tmp_path / "n2"]
    options = ("--port", port, "--dashboard", "none")
    with (
        running("node", "--scheduler", address, "--root", roots[0], "--name", "n1", log=tmp_path / "log"),
        running("node", "--root", roots[1], "--name", "n2", GPUFLOW_SCHEDULER=address),
    ):
        with running("scheduler", *options):
            wait_for_nodes(address, 2, tmp_path)
            assert f"{roots[0]} holds no store: this is a new node" in (tmp_path / "log").read_text()
            gpuflow("ingest", photographs, "photos", "--tile", 64, "--chunk-samples", 8, "--scheduler", address, root=tmp_path)
            receipt = json.loads(gpuflow("run", QUICKSTART, "--json", root=tmp_path, GPUFLOW_SCHEDULER=address))
            assert receipt["bytes"]["shipped"] == 0
            assert {node.rsplit("-", 1)[0] for node in receipt["nodes"]} == {"n1", "n2"}
        with running("scheduler", *options):  # a new one at the same address: nothing survives in it
            wait_for_nodes(address, 2, tmp_path)
            listed = gpuflow("datasets", "--scheduler", address, root=tmp_path)
            assert "photos" in listed
            assert "photos-train" in listed
            again = json.loads(gpuflow("run", QUICKSTART, "--json", "--scheduler", address, root=tmp_path))
            assert again["chunks"]["skipped"] == again["chunks"]["total"] > 0
