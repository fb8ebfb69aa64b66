"""Measuring: every figure is there, and no file stays behind."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest

from gpuflow.backends.devices import why_no_cuda
from gpuflow.errors import StoreError
from gpuflow.storage import measure
from gpuflow.storage.calibration import FILE_NAME, kept
from gpuflow.storage.metadata import COMPRESSORS
from gpuflow.storage.node import NodeStore


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[NodeStore]:
    """A store, and small amounts to measure with."""
    monkeypatch.setattr(measure, "_PROBE_NBYTES", 2**20)
    monkeypatch.setattr(measure, "_LARGEST_NBYTES", 2**22)
    monkeypatch.setattr(measure, "_FIELD_SHAPE", (16, 32, 32))
    store = NodeStore(tmp_path / "root")
    yield store
    store.close()


def staged(store: NodeStore) -> list[str]:
    return [name for _, _, names in os.walk(store.root / "staging") for name in names if name != "lock"]


@pytest.mark.parametrize("threads", [1, 3])
def test_every_limit(store: NodeStore, threads: int) -> None:
    found = measure.calibrate(store, threads)
    assert found.threads == threads
    plain = {field.name for field in fields(found)} - {
        "measured_at",
        "codecs",
        "device_decode_gb_s",
        "device_encode_gb_s",
        "device_read_gb_s",
    }
    assert all(getattr(found, name) > 0 for name in plain)
    assert bool(found.device_decode_gb_s) == (not why_no_cuda("cupy"))
    assert set(found.codecs) == set(COMPRESSORS) - {"none"}
    assert all(rates.encode_gb_s > 0 and rates.decode_gb_s > 0 for rates in found.codecs.values())
    assert found.codecs["zstd"].ratio > found.codecs["blosc"].ratio > 1
    assert kept(store.root) == found
    assert not staged(store)


def test_no_room(store: NodeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=1, f_frsize=4096))
    with pytest.raises(StoreError, match=r"measuring needs 16\.0 MiB free, and 4\.0 KiB are; free some space"):
        measure.calibrate(store, 2)
    assert not (store.root / FILE_NAME).exists()


def test_a_disk_that_fails_leaves_nothing(store: NodeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(StoreError, match="the disk is full"):
        measure.calibrate(store, 2)
    assert not staged(store)


def test_a_small_file_system(tmp_path: Path) -> None:
    mount = tmp_path / "disk"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", mount], capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        store = NodeStore(mount / "root")
        with pytest.raises(StoreError, match="measuring needs"):
            measure.calibrate(store, 1)
        store.close()
    finally:
        subprocess.run(["umount", "--lazy", mount], check=True)


def test_the_field_is_one_of_measurements() -> None:
    field = measure.representative_field()
    assert (field.nbytes, field.dtype) == (8 * 2**20, "float32")
