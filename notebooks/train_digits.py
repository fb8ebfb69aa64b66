"""From an array in memory to a trained network: handwritten digits, prepared by a pipeline, trained on with PyTorch.

    python notebooks/train_digits.py               # 97% and more of the held-out digits right, in seconds on a CPU

Kill it (Ctrl-C, kill -9) and start it again: it goes on behind the last batch, and ends with the very same network. Data and checkpoint
lie below GPUFLOW_ROOT, by default `.gpuflow`."""

from __future__ import annotations

import argparse
import hashlib
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import gpuflow
from gpuflow.settings import store_root

HELD_OUT = 360
BATCH_SIZE = 64
ROOM = Path(__file__).parents[1]


def prepare(root: Path) -> np.ndarray[Any, Any]:
    """Make dataset `digits-train` below `root`, unless that was done. The labels."""
    labels = root / "digits-labels.npy"
    if labels.exists():
        return np.asarray(np.load(labels))
    from sklearn.datasets import load_digits

    digits = load_digits()
    with gpuflow.connect(root=root) as cluster:
        source = root / "digits.npy"
        if not source.exists():
            np.save(source, digits.images.astype("uint8"))
        gpuflow.ingest(source, "digits", connection=cluster, chunk_samples=256)
        gpuflow.run(ROOM / "configs" / "digits.yaml", connection=cluster)
    np.save(root / "next.npy", digits.target)
    os.replace(root / "next.npy", labels)
    return np.asarray(digits.target)


def network() -> nn.Module:
    """8 by 8 pixels to ten classes."""
    return nn.Sequential(
        *(nn.Unflatten(1, (1, 8)), nn.Conv2d(1, 32, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(64 * 16, 10)),
    )


def train(root: Path, labels: np.ndarray[Any, Any], epochs: int) -> nn.Module:
    """The network after `epochs`, from the checkpoint on where there is one."""
    torch.manual_seed(0)
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    chosen, _ = parts(len(labels))
    checkpoint = root / "checkpoint.pt"
    with gpuflow.loader(
        "digits-train", BATCH_SIZE, root=root, labels={"digit": labels}, samples=chosen, drop_last=True
    ) as loader:
        if checkpoint.exists():
            saved = torch.load(checkpoint, weights_only=True)
            model.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
            loader.load_state_dict(saved["loader"])
            print(f"going on at epoch {loader.epoch}", flush=True)
        while loader.epoch < epochs:
            for batch in loader:
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(batch["data"]), batch["digit"])
                loss.backward()
                optimizer.step()
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "loader": loader.state_dict()}
                torch.save(state, root / "next.pt")
                os.replace(root / "next.pt", checkpoint)
            print(f"epoch {loader.epoch}: loss {loss.item():.4f}", flush=True)
    return model


def parts(count: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Samples to train on, and those held out."""
    order = np.random.default_rng(0).permutation(count)
    return order[HELD_OUT:], order[:HELD_OUT]


@torch.no_grad()
def accuracy(root: Path, labels: np.ndarray[Any, Any], model: nn.Module) -> float:
    """Of the digits that were held out, how many are read right."""
    _, held_out = parts(len(labels))
    right = 0
    with gpuflow.loader("digits-train", 120, root=root, labels={"digit": labels}, samples=held_out, order="none") as loader:
        for batch in loader:
            right += int((model(batch["data"]).argmax(1) == batch["digit"]).sum())
    return right / HELD_OUT


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--root", type=Path, default=store_root(), help="store root (default: GPUFLOW_ROOT, else .gpuflow)")
    parser.add_argument("--epochs", type=int, default=15)
    arguments = parser.parse_args()
    began = time.monotonic()
    torch.set_num_threads(1)  # so small a network is no faster with more, and sums are always in the same order
    arguments.root.mkdir(parents=True, exist_ok=True)
    labels = prepare(arguments.root)
    model = train(arguments.root, labels, arguments.epochs)
    weights = b"".join(value.numpy().tobytes() for value in model.state_dict().values())
    print(f"held-out accuracy {accuracy(arguments.root, labels, model):.4f} after {time.monotonic() - began:.1f} s")
    print(f"network {hashlib.sha256(weights).hexdigest()[:16]}")


if __name__ == "__main__":
    main()
