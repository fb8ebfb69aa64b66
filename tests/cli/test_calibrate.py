"""`gpuflow calibrate`, and what a plan and a receipt make of it, as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import zarr

from gpuflow.storage.metadata import COMPRESSORS
from tests.cli.test_main_job import gpuflow


@pytest.mark.slow
def test_calibrate_then_auto_then_bound_by(tmp_path: Path) -> None:
    root, file = tmp_path / "root", tmp_path / "p.yaml"
    values = np.round(np.random.default_rng(0).normal(280, 9, (16, 256, 256)), 1).astype("float32")
    zarr.create_array(tmp_path / "a.zarr", data=values, chunks=(1, 256, 256))
    gpuflow("ingest", tmp_path / "a.zarr", "field", root=root)
    file.write_text("source: field\nsteps: [{map: x + 1}]\noutput: {dataset: out, compressor: auto}\n")
    shown = gpuflow("plan", file, root=root)
    assert "compressor: zstd - the default: no node is calibrated; run `gpuflow calibrate`" in shown
    figures = json.loads(gpuflow("calibrate", "--json", root=root))
    (node,) = figures.values()
    assert set(node["codecs"]) == set(COMPRESSORS) - {"none"}
    assert json.loads((root / "calibration.json").read_text()) == node
    assert not [path for path in (root / "staging").rglob("*") if path.is_file() and path.name != "lock"]
    plan = json.loads(gpuflow("plan", file, "--json", root=root))
    assert plan["compressor"]["name"] in COMPRESSORS
    assert "GB/s" in plan["compressor"]["why"]
    assert plan["memory"]["need_nbytes"] < plan["memory"]["have_nbytes"]
    shown = gpuflow("run", file, root=root)
    assert "bound by" in shown
    shown = gpuflow("plan", file, root=root)
    assert "chosen when 'out' was begun" in shown
    assert "memory: " in shown


def test_a_chunk_larger_than_memory_is_refused(tmp_path: Path) -> None:
    root, file = tmp_path / "root", tmp_path / "p.yaml"
    zarr.create_array(tmp_path / "huge.zarr", shape=(10**6, 10**6), chunks=(10**6, 10**6), dtype="float32")
    gpuflow("ingest", tmp_path / "huge.zarr", "huge", root=root)
    file.write_text("source: huge\nsteps: [{standardize: {}}]\noutput: out\n")
    for command in ("plan", "run"):
        shown = gpuflow(command, file, root=root, status=1)
        assert "error: array 'data': a chunk of 1000000 x 1000000 is 3.6 TiB; " in shown
        assert " would fit" in shown
    assert "out" not in [row["name"] for row in json.loads(gpuflow("datasets", "--json", root=root))]


def test_no_room_to_measure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    assert f"store root {tmp_path}/file/root" in gpuflow("calibrate", root=tmp_path / "file" / "root", status=1)
