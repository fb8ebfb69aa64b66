"""Training on 2, then 4, then 2 processes: killed, a rank lost, and the same gradients as one process has."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from tests.training.datasets import make_dataset, numbered

BATCHES = 14  # of 5 an epoch


def run(*runs: tuple[int, Path, tuple[str, int]]) -> list[list[int]]:
    told = json.dumps([(world, str(folder), BATCHES, dies) for world, folder, dies in runs])
    command = [sys.executable, "-m", "tests.training.ddp_run", told]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100, cwd=Path(__file__).parents[2])
    codes: list[list[int]] = json.loads(ended.stdout.splitlines()[-1])
    return codes


def test_the_same_gradients_however_often_it_is_killed(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("whole", "killed")]
    for folder in folders:
        data = {"field": numbered(52, 6, dtype="float64"), "label": np.arange(52)}
        make_dataset(folder / "store", "d", data, chunks={"field": (8, 6), "label": (52,)}, nodes=2)
    whole, killed = folders
    runs = [(1, whole, ("nobody", 0)), (2, killed, ("all", 4)), (4, killed, ("3", 9)), (2, killed, ("nobody", 0))]
    wrong = [(2, whole, ("wrong name", 0)), (2, whole, ("wrong seed", 0))]
    alone, both, four, last, *_ = run(*runs, *wrong)
    assert (alone, both, last) == ([0], [-9, -9], [0, 0])
    assert four[3] == -9
    assert all(code not in (0, None) for code in four[:3])  # they do not wait for it for ever
    expected, found = (torch.load(folder / "checkpoint.pt", weights_only=True) for folder in folders)
    assert [step["numbers"] for step in found["history"]] == [step["numbers"] for step in expected["history"]]
    for step, other in zip(found["history"], expected["history"], strict=True):
        np.testing.assert_allclose(step["gradient"], other["gradient"], rtol=1e-12)
    first = [number for step in found["history"][:5] for number in step["numbers"]]
    assert sorted(first) == list(range(52))
    assert found["loader"] == expected["loader"]
    told = {path.name: path.read_text() for path in whole.glob("wrong*")}
    assert told["wrong name 0"].startswith("ClusterError: the loader of rank 1 could not be made: NotFound: no dataset 'nothing'")
    assert told["wrong name 1"].startswith("NotFound: no dataset 'nothing'")
    assert told["wrong seed 0"].startswith("ClusterError: rank 1 makes another loader than rank 0: seed differ")
    assert told["wrong seed 0"] == told["wrong seed 1"]
    assert (whole / "cache 1 0").read_text() == "Kept"
    (path,) = {(killed / f"cache 2 {rank}").read_text() for rank in range(2)}  # ranks of one machine share it, and leave nothing
    assert Path(path).name.startswith("gpuflow-loader-")
    assert not Path(path).exists()
