"""`--set`: as a user would try another parameter without touching the file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from tests.cli.commands import command
from tests.helpers import read_embedded


def test_a_run_with_other_parameters(tmp_path: Path) -> None:
    values = np.arange(24, dtype="float32").reshape(4, 6)
    np.save(tmp_path / "a.npy", values)
    pipeline = tmp_path / "p.yaml"
    pipeline.write_text("source: a\nsteps:\n  - clip: [0, 1]\noutput: b\n")
    root = tmp_path / "root"
    settings = ("--set", "steps[0].clip=[5, 9]", "--set", "output.dataset=c")
    assert "correct: a, 1 step, c" in command("validate", pipeline, *settings, root=root)
    command("ingest", tmp_path / "a.npy", "a", root=root)
    assert json.loads(command("plan", pipeline, *settings, "--json", root=root))["output"]
    command("run", pipeline, *settings, root=root)
    np.testing.assert_array_equal(read_embedded(root, "c", "data"), values.clip(5, 9))
    assert "--set steps[3].x=1" in command("run", pipeline, "--set", "steps[3].x=1", root=root, status=2)
