"""From a directory into which files are dropped to what a training loop reads, all by commands, whatever is killed in between."""

from __future__ import annotations

import os
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import gpuflow
from ci.proofs.cluster import SCHEDULER, Processes
from gpuflow.cli import main
from gpuflow.datasets.here import NodesHere
from gpuflow.triggers.state import load_state
from tests.helpers import read_back

FILES, ROWS, CHUNK_ROWS = 12, 5, 8
FIRST = 3  # files that are there from the beginning: the statistics are theirs

FIRST_YAML = "source: raw\nsteps:\n  - standardize\noutput: middle\non: {dataset: raw, batch_seconds: 0.1}\n"
SECOND_YAML = "source: middle\nsteps:\n  - clip: [-2, 2]\noutput: train\non: {dataset: middle, batch_seconds: 0.1}\n"


def _command(address: str, *arguments: str) -> None:
    sys.argv = ["gpuflow", *arguments, "--scheduler", address]
    main()


def _drop(inbox: Path, number: int) -> NDArray[np.float32]:
    """A file, written beside the directory and renamed into it."""
    values = np.random.default_rng(number).normal(number, 3, (ROWS, 16, 4)).astype("float32")
    np.save(inbox.parent / "coming.npy", values)
    os.rename(inbox.parent / "coming.npy", inbox / f"{number:02}.npy")
    return values


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_files_dropped_become_training_data_whatever_is_killed(tmp_path: Path) -> None:
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    second, first = tmp_path / "second.yaml", tmp_path / "first.yaml"
    second.write_text(SECOND_YAML)
    first.write_text(FIRST_YAML)
    dropped = [_drop(inbox, number) for number in range(FIRST)]
    follow = (_command, "ingest", "--follow", str(inbox), "raw", "--chunk-samples", str(CHUNK_ROWS))
    nodes = tmp_path / "nodes"  # where an embedded cluster has them, so that a loader finds them by `root`
    nodes.mkdir()
    processes = Processes(nodes, 3, {"follow": follow, "watch": (_command, "watch", str(second), str(first))})

    def expected() -> NDArray[np.float64]:
        beginning = np.concatenate(dropped[:FIRST]).astype("float64")
        return np.clip((np.concatenate(dropped) - beginning.mean()) / beginning.std(), -2, 2)

    with closing(NodesHere(*processes.roots)) as here:

        def wait(dataset: str, values: NDArray[np.floating], but: str = "") -> None:
            until = time.monotonic() + 100
            while not _is_there(here, processes.roots, dataset, values):
                assert time.monotonic() < until, "\n".join(log.read_text()[-3000:] for log in processes.logs())
                processes.keep_up(but)
                time.sleep(0.1)

        try:
            wait("raw", np.concatenate(dropped), but="watch")  # which takes the statistics of what is there when it begins
            wait("train", expected())
            for number, what in enumerate(["follow", "watch", "worker1", SCHEDULER, "follow", "worker2", "watch"], start=FIRST):
                dropped.append(_drop(inbox, number))
                time.sleep(0.05 * number)  # at another moment each time
                processes.kill([what])
                processes.keep_up()
            dropped += [_drop(inbox, number) for number in range(len(dropped), FILES)]
            wait("train", expected())
            states = {name: load_state(here, name) for name in ("middle", "train")}
        finally:
            processes.kill(processes.names)
    for state in states.values():
        assert state is not None
        assert not state.given_up
    with gpuflow.loader("train", batch_size=ROWS, order="none", root=tmp_path) as loader:
        batches = [batch["data"].numpy() for batch in loader]
    np.testing.assert_allclose(np.concatenate(batches), expected(), atol=1e-5)


def _is_there(here: NodesHere, roots: list[Path], dataset: str, values: NDArray[np.floating]) -> bool:
    record = here.records().get(dataset)
    if record is None or record.state != "ready" or record.array("data").shape != values.shape:
        return False
    return bool(np.allclose(read_back(roots, dataset, "data"), values, atol=1e-5))
