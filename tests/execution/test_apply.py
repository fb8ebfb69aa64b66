"""A user's function on a real cluster: its module only lies beside the pipeline's file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from gpuflow.cluster.connection import Connection
from gpuflow.errors import NameTaken
from gpuflow.execution.run import run_pipeline
from gpuflow.objectstore.repair import scrub_dataset
from gpuflow.pipelines.load import load_pipeline
from tests.execution.test_run import ingest, roots_of
from tests.helpers import read_back

MODULE = """\
from beside_mine import shift

def work(xp, block, by: float = 1.0):
    if block.max() > LIMIT:
        raise OverflowError(f"{float(block.max())} is too much")
    return shift(xp.sort(block, axis=-1), by)
"""
BESIDE = "def shift(block, by):\n    return block + by\n"


def write(folder: Path, name: str, output: str, *, limit: str = "1e9", by: float = 2.0, module: str = MODULE) -> Any:
    (folder / "of_the_user.py").write_text(f"LIMIT = {limit}\n{module}")
    (folder / "beside_mine.py").write_text(BESIDE)
    steps = f"  - clip: {{min: 0}}\n  - apply: {{function: of_the_user:work, by: {by}}}\n  - map: x * 2\n"
    (folder / "p.yaml").write_text(f"source: {{dataset: {name}, arrays: [t2m]}}\nsteps:\n{steps}output: {output}\n")
    return load_pipeline(folder / "p.yaml")


def expected(field_zarr: Path, by: float = 2.0) -> Any:
    values = zarr.open_group(field_zarr, mode="r")["t2m"][...]
    return (np.sort(values, axis=-1) + np.float32(by)) * 2


def test_it_runs_fails_by_chunk_and_runs_again_when_edited(three_nodes: Connection, field_zarr: Path, tmp_path: Path) -> None:
    ingest(three_nodes, field_zarr, "applied")
    values = zarr.open_group(field_zarr, mode="r")["t2m"][...]
    by_chunk = [values[t : t + 4, y : y + 16].max() for t in range(0, 37, 4) for y in (0, 16)]
    limit = sorted(by_chunk)[-3]  # for two chunks too small

    receipt = run_pipeline(three_nodes, write(tmp_path, "applied", "applied-out", limit=repr(float(limit)))).to_dict()
    assert receipt["chunks"] == {"total": 24, "done": 22, "skipped": 0, "failed": 2}
    assert "OverflowError" in receipt["failures"][0]["error"]
    assert 'of_the_user.py", line 6, in work' in receipt["failures"][0]["traceback"]
    assert "raise OverflowError(" in receipt["failures"][0]["traceback"]

    edited = write(tmp_path, "applied", "applied-out")
    assert run_pipeline(three_nodes, edited).to_dict()["chunks"] == {"total": 24, "done": 20, "skipped": 4, "failed": 0}
    np.testing.assert_array_equal(read_back(roots_of(three_nodes), "applied-out", "t2m"), expected(field_zarr))
    assert run_pipeline(three_nodes, edited).to_dict()["chunks"]["skipped"] == 24
    other = write(tmp_path, "applied", "applied-out", module=MODULE.replace("axis=-1", "axis=1"))
    assert run_pipeline(three_nodes, other).to_dict()["chunks"]["done"] == 20


def test_a_lost_chunk_is_made_again_though_the_module_is_gone(three_nodes: Connection, field_zarr: Path, tmp_path: Path) -> None:
    ingest(three_nodes, field_zarr, "kept-by-hand")
    assert run_pipeline(three_nodes, write(tmp_path, "kept-by-hand", "kept-by-hand-out")).status == "done"
    for name in ("of_the_user.py", "beside_mine.py", "p.yaml"):
        (tmp_path / name).unlink()
    before = read_back(roots_of(three_nodes), "kept-by-hand-out", "t2m")
    (chunk,) = [path for root in roots_of(three_nodes) if (path := root / "datasets/kept-by-hand-out/t2m/c.2.1.0").exists()]
    chunk.write_bytes(chunk.read_bytes()[:-1])
    report = scrub_dataset(three_nodes, "kept-by-hand-out")
    assert report.sound, report
    assert [finding.repaired for finding in report.findings] == ["recomputed"]
    np.testing.assert_array_equal(read_back(roots_of(three_nodes), "kept-by-hand-out", "t2m"), before)


def test_in_place_an_edited_function_is_another_pipeline(three_nodes: Connection, field_zarr: Path, tmp_path: Path) -> None:
    ingest(three_nodes, field_zarr, "placed-by-hand")
    spec = write(tmp_path, "placed-by-hand", "{in_place: true}")
    assert run_pipeline(three_nodes, spec).to_dict()["chunks"]["done"] == 20
    assert run_pipeline(three_nodes, spec).to_dict()["chunks"]["skipped"] == 20
    np.testing.assert_array_equal(read_back(roots_of(three_nodes), "placed-by-hand", "t2m"), expected(field_zarr))
    with pytest.raises(NameTaken, match="--stack"):
        run_pipeline(three_nodes, write(tmp_path, "placed-by-hand", "{in_place: true}", module=MODULE + "\n# edited\n"))
