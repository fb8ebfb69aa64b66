"""Scrub as a service: all of it, no faster than asked, beside runs, and repairs as scrub does."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

import gpuflow
from gpuflow.cluster.connection import Connection
from gpuflow.datasets import catalog
from gpuflow.errors import NotFound
from gpuflow.objectstore import watching
from gpuflow.objectstore.watching import watch
from tests.objectstore.test_repair import file_of, flip


def test_what_is_damaged_is_found_and_made_again(three_nodes: Connection, field_zarr: Path) -> None:
    gpuflow.ingest(field_zarr, "watched", connection=three_nodes)
    flip(file_of(three_nodes, "watched/t2m/c/3/1/0"))
    file_of(three_nodes, "watched/t2m/c/5/0/0").unlink()
    (report,) = watch(three_nodes, ["watched"], rate=1e9)
    assert (report.checked, report.sound) == (24, True)
    repaired = sorted((finding.chunk, finding.repaired) for finding in report.findings)
    assert repaired == [("watched/t2m/c/3/1/0", "fetched again"), ("watched/t2m/c/5/0/0", "fetched again")]
    (report,) = watch(three_nodes, ["watched"], rate=1e9)
    assert (report.checked, report.findings) == (24, ())
    assert next(watch(three_nodes, rate=1e9)).dataset == min(catalog.records(three_nodes)), "all of them when none is named"
    with pytest.raises(NotFound, match="no dataset 'wotched'"):
        next(watch(three_nodes, ["wotched"]))


def test_no_faster_than_asked_and_in_slices(three_nodes: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "_SLICE_CHUNKS", 2)
    np.save(tmp_path / "even.npy", np.random.default_rng(3).integers(0, 255, (30, 40000), np.uint8))
    gpuflow.ingest(tmp_path / "even.npy", "watched-slowly", connection=three_nodes, chunk_samples=1)
    began = time.monotonic()
    (report,) = watch(three_nodes, ["watched-slowly"], rate=400_000)
    assert report.checked == 30
    assert time.monotonic() - began > 0.9 * report.nbytes / 3 / 400_000
