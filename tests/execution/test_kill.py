"""kill -9 of real processes in the middle of real runs: of one worker, and of everything at once.

GPUFLOW_KILLS: how many times everything is killed (default 3; ten and more by hand)."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from gpuflow.cluster.connection import connect
from gpuflow.cluster.launch import existing_roots
from gpuflow.execution.run import run_pipeline
from gpuflow.objectstore.ingest import ingest_source
from gpuflow.objectstore.sources import open_source
from gpuflow.pipelines.load import from_dict
from gpuflow.storage.manifest import Manifest
from tests.helpers import read_embedded

KILLS = int(os.environ.get("GPUFLOW_KILLS", "3"))
CHUNKS = 96
STEPS = [{"standardize": {"per": 1}}, {"clip": [-2, 2]}, {"map": "x * 3 + 1"}]


@pytest.fixture
def values(tmp_path: Path) -> np.ndarray:
    """(samples, channels, pixels) float32, saved as source.npy in CHUNKS chunks."""
    values = np.random.default_rng(5).normal(10, 4, (CHUNKS * 4, 3, 4096)).astype("float32")
    np.save(tmp_path / "source.npy", values)
    return values


def expected(values: np.ndarray) -> np.ndarray:
    wide = values.astype("float64")
    return np.clip((wide - wide.mean((0, 2), keepdims=True)) / wide.std((0, 2), keepdims=True), -2, 2) * 3 + 1


def prepare(tmp_path: Path, nodes: int) -> Path:
    root = tmp_path / "root"
    with connect(nodes=nodes, root=root) as connection:
        receipt = ingest_source(connection, open_source(tmp_path / "source.npy", chunk_samples=4), "data")
        assert receipt.to_dict()["chunks"]["done"] == CHUNKS
    return root


def generations(root: Path, dataset: str) -> list[int]:
    """Generation of every chunk of the array `data`, over all nodes of an embedded root."""
    found = []
    for node in existing_roots(root):
        manifest = Manifest(node / "manifest.sqlite")
        found += manifest.replicas(dataset, "data")["generation"].tolist()
        manifest.close()
    return found


def test_a_worker_killed_mid_run_comes_back_and_the_run_ends_right(tmp_path: Path, values: np.ndarray) -> None:
    root = prepare(tmp_path, 3)
    with connect(nodes=3, root=root) as connection:
        assert connection.embedded is not None
        victim = connection.embedded.worker_pids()[1]

        def kill_when_begun() -> None:
            while len(generations(root, "out")) < CHUNKS // 6:
                time.sleep(0.005)
            os.kill(victim, signal.SIGKILL)

        thread = threading.Thread(target=kill_when_begun)
        thread.start()
        spec = from_dict({"source": "data", "steps": STEPS, "output": "out"})
        receipt = run_pipeline(connection, spec).to_dict()
        thread.join()
        assert victim not in connection.embedded.worker_pids()
    assert receipt["failures"] == []
    assert receipt["chunks"]["done"] + receipt["chunks"]["skipped"] == CHUNKS
    np.testing.assert_allclose(read_embedded(root, "out", "data"), expected(values), atol=1e-4)


def kill_tree(process: subprocess.Popen[bytes]) -> int:
    """SIGKILL to a process and all its descendants at once. How many."""
    whole = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in whole:
        member.send_signal(signal.SIGKILL)
    process.wait()
    psutil.wait_procs(whole, timeout=10)
    return len(whole)


@pytest.mark.slow
@pytest.mark.parametrize("kill", range(KILLS))
def test_everything_killed_mid_run_in_place_is_applied_exactly_once(tmp_path: Path, values: np.ndarray, kill: int) -> None:
    root = prepare(tmp_path, 2)
    pipeline = tmp_path / "pipeline.yaml"
    pipeline.write_text(f"source: data\nsteps: {STEPS}\noutput: {{in_place: true}}\n".replace("'", '"'))
    command = [sys.executable, "-m", "gpuflow", "run", str(pipeline), "--root", str(root)]
    begun = random.Random(f"everything {kill}").randrange(CHUNKS * 4 // 5)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while sum(generation > 1 for generation in generations(root, "data")) < begun and process.poll() is None:
        time.sleep(0.003)
    assert process.poll() is None, "the run ended before it could be killed"
    assert kill_tree(process) == 4  # client, scheduler, two workers
    done = sum(generation > 1 for generation in generations(root, "data"))
    assert begun <= done < CHUNKS
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stdout + result.stderr
    assert set(generations(root, "data")) == {2}
    np.testing.assert_allclose(read_embedded(root, "data", "data"), expected(values), atol=1e-4)


@pytest.mark.slow
def test_an_ingest_killed_mid_way_continues(tmp_path: Path, values: np.ndarray) -> None:
    root = tmp_path / "root"
    command = [sys.executable, "-m", "gpuflow", "ingest", str(tmp_path / "source.npy"), "data", "--chunk-samples", "4"]
    command += ["--nodes", "2", "--root", str(root), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while not existing_roots(root) or len(generations(root, "data")) < CHUNKS // 4:
        time.sleep(0.003)
        assert process.poll() is None, "the ingest ended before it could be killed"
    kill_tree(process)
    there = len(generations(root, "data"))
    assert there < CHUNKS
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    chunks = json.loads(result.stdout)["chunks"]
    assert chunks["skipped"] >= there  # commits that were announced before the kill may have been completed since
    assert chunks["done"] + chunks["skipped"] == CHUNKS
    np.testing.assert_array_equal(read_embedded(root, "data", "data"), values)
