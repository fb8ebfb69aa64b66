"""`gpuflow scrub` as a user types it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import zarr

from tests.cli.test_main_job import gpuflow


def test_scrub_finds_and_repairs(tmp_path: Path) -> None:
    root = tmp_path / "root"
    zarr.create_array(tmp_path / "a.zarr", data=np.arange(4000.0).reshape(40, 100), chunks=(10, 100))
    gpuflow("ingest", tmp_path / "a.zarr", "field", root=root)
    file = root / "datasets/field/data/c/2/0"
    file.write_bytes(file.read_bytes()[::-1])
    (listed,) = json.loads(gpuflow("scrub", "--no-repair", "--json", root=root, status=1))
    assert (listed["checked"], listed["sound"]) == (4, False)
    assert [finding["chunk"] for finding in listed["findings"]] == ["field/data/c/2/0"]
    shown = gpuflow("scrub", "field", "--rate", "100MB", root=root)
    assert "field/data/c/2/0 on " in shown
    assert "fetched again" in shown
    file.write_bytes(file.read_bytes()[::-1])
    start = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from gpuflow.cli import main; main()"
    command = [
        sys.executable,
        "-c",
        start,
        "scrub",
        "--follow",
        "--rate",
        "1GB",
        "--root",
        str(root),
    ]  # whatever starts the tests
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as following:
        try:
            assert following.stdout is not None
            assert any("fetched again" in line for line in following.stdout)
            following.send_signal(signal.SIGINT)
            assert following.wait(20) == 130
        finally:
            following.kill()  # else the block would wait for it for ever
    assert "is no rate; write 200MB" in gpuflow("scrub", "--rate", "fast", root=root, status=2)
