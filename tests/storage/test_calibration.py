"""A node's kept figures: they come back as they were, and a damaged file says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gpuflow.storage.calibration import FILE_NAME, FORMAT, Calibration, DamagedCalibration, keep, kept, kept_or_reason
from tests.storage.calibrations import calibration


def test_kept_and_read_back(tmp_path: Path) -> None:
    assert kept(tmp_path) is None
    keep(tmp_path, calibration())
    keep(tmp_path, calibration(write=0.5))
    assert kept(tmp_path) == kept_or_reason(tmp_path) == calibration(write=0.5)
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"{",
        b"[]",
        b"null",
        b"[" * 100_000,
        json.dumps({**calibration().to_dict(), "format": FORMAT - 1}).encode(),
        json.dumps({**calibration().to_dict(), "codecs": [1]}).encode(),
        json.dumps({"format": FORMAT}).encode(),
    ],
)
def test_a_damaged_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE_NAME).write_bytes(content)
    with pytest.raises(DamagedCalibration):
        kept(tmp_path)
    assert isinstance(kept_or_reason(tmp_path), str)


def test_a_folder_in_its_place(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).mkdir()
    assert isinstance(kept_or_reason(tmp_path), str)


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), "1", None, True])
def test_figures_that_cannot_be(value: Any) -> None:
    with pytest.raises(DamagedCalibration, match="is no rate"):
        Calibration.from_dict({**calibration().to_dict(), "write_gb_s": value})


def test_what_a_later_version_adds_is_ignored() -> None:
    assert Calibration.from_dict({**calibration().to_dict(), "later": 1}) == calibration()


def test_where_frames_are_decoded_sooner() -> None:
    known = calibration(device_decode_gb_s={"zstd": 5.0, "gzip": 5.0})
    assert [known.decodes_sooner_on_device("zstd", threads) for threads in (3, 4)] == [True, False]
    assert known.decodes_sooner_on_device("gzip", 12)
    assert known.decodes_sooner_on_device("lz4", 64), "it was not measured"
    assert Calibration.from_dict(known.to_dict()) == known
    assert not calibration().to_dict()["device_decode_gb_s"]


def test_where_blocks_are_encoded_sooner() -> None:
    known = calibration(device_encode_gb_s={"zstd": 2.5, "lz4": 9.0})
    assert [known.encodes_sooner_on_device("zstd", threads) for threads in (3, 4)] == [True, False]
    assert not known.encodes_sooner_on_device("gzip", 1), "it was not measured"
    assert not known.encodes_sooner_on_device("lz4", 1), "nor was the CPU's"
    assert Calibration.from_dict(known.to_dict()) == known


def test_where_files_are_read_sooner() -> None:
    assert not calibration().reads_sooner_directly
    assert not calibration(device_read_gb_s={"copied": 2.0}).reads_sooner_directly
    assert not calibration(device_read_gb_s={"copied": 2.0, "direct": 1.9}).reads_sooner_directly
    assert calibration(device_read_gb_s={"copied": 2.0, "direct": 2.1}).reads_sooner_directly
