"""The example that trains: 97% of the held-out digits, killed in the middle, and the same network in the end."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "notebooks" / "train_digits.py"


def command(root: Path, epochs: int) -> list[str]:
    return [sys.executable, str(EXAMPLE), "--root", str(root), "--epochs", str(epochs)]


def finished(root: Path, epochs: int) -> tuple[float, str, str]:
    """(held-out accuracy, digest of the network, all that was printed)."""
    text = subprocess.run(command(root, epochs), capture_output=True, text=True, check=True, timeout=100).stdout
    score, network = re.search(r"accuracy ([\d.]+)", text), re.search(r"network (\w+)", text)
    assert score is not None
    assert network is not None
    return float(score[1]), network[1], text


def test_trained_killed_and_resumed(tmp_path: Path) -> None:
    root, epochs = tmp_path / "store", 6
    accuracy, network, _ = finished(root, epochs)
    assert accuracy >= 0.97
    (root / "checkpoint.pt").unlink()
    killed = subprocess.Popen(command(root, epochs), stdout=subprocess.PIPE, text=True)
    assert killed.stdout is not None
    for line in killed.stdout:
        if line.startswith("epoch 3"):
            break
    killed.kill()
    killed.wait()
    killed.stdout.close()
    again, same, text = finished(root, epochs)
    assert re.search(r"going on at epoch [34]\n", text)
    assert (again, same) == (accuracy, network)
