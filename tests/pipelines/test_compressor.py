"""`compressor: auto`: the soonest to finish, and among nearly equal ones the smallest."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gpuflow.pipelines.compressor import choose_compressor
from gpuflow.storage.calibration import CodecRates
from tests.storage.calibrations import CODECS, calibration


@pytest.mark.parametrize(
    ("write", "threads", "expected"),
    [
        (0.1, 2, "zstd"),  # 0.3 GB/s decoded; blosc 0.19, none 0.1, gzip 0.06
        (0.9, 2, "zstd"),  # 1.6 against blosc's 1.71, within 10%, and smaller
        (3.0, 2, "blosc"),  # 4.0 against 3.0 and 1.6
        (5.0, 2, "none"),
        (0.01, 2, "gzip"),  # as quick as zstd, and smaller
        (5.0, 64, "zstd"),  # many cores: the disk is what counts
    ],
)
def test_the_soonest_to_finish(write: float, threads: int, expected: str) -> None:
    assert choose_compressor({"a": calibration(write, threads)}).name == expected


def test_it_says_why() -> None:
    assert str(choose_compressor({"a": calibration(0.9)})) == (
        "zstd - the disk (0.9 GB/s) is slower than zstd (2 threads x 0.8 GB/s, ratio 3.0)"
    )
    assert str(choose_compressor({"a": calibration(5.0)})) == (
        "none - the disk (5 GB/s) is faster than blosc (2 threads x 2 GB/s, ratio 1.9)"
    )
    assert "zstd (1 threads x 0.8 GB/s, ratio 3.0) keeps up with the disk (0.85 GB/s)" in str(
        choose_compressor({"a": calibration(0.85, 1, codecs={"zstd": CODECS["zstd"]})})
    )


def test_nothing_known() -> None:
    for nodes in ({}, {"a": None}):
        assert str(choose_compressor(nodes)) == "zstd - the default: no node is calibrated; run `gpuflow calibrate`"


def test_the_slowest_node_decides() -> None:
    fast, slow = calibration(5.0), calibration(0.1)
    assert choose_compressor({"a": fast, "b": slow}).name == choose_compressor({"b": slow, "a": fast}).name == "zstd"
    assert choose_compressor({"a": fast, "b": None}).why.endswith("; 1 of 2 nodes are not calibrated")


def test_a_slow_disk_and_a_slow_processor() -> None:
    choice = choose_compressor({"a": calibration(50.0, 1), "b": calibration(0.1, 64)})
    assert str(choice).startswith("zstd - the disk (0.1 GB/s) is slower than zstd (64 threads")


def test_the_ratio_of_the_data_itself() -> None:
    node = calibration(0.5)
    assert choose_compressor({"a": node}).name == "zstd"
    assert choose_compressor({"a": node}, {"zstd": 1.05}).name == "blosc"
    nothing_saved = dict.fromkeys(CODECS, 1.0)
    assert str(choose_compressor({"a": node}, nothing_saved)).startswith(
        "none - zstd (2 threads x 0.8 GB/s, ratio 1.0) saves nothing"
    )
    assert "ratio 9.0" in choose_compressor({"a": node}, {"zstd": 9.0}).why


def test_a_codec_that_a_node_has_not_measured_is_left_out() -> None:
    node = calibration(0.1, codecs={"zstd": CODECS["zstd"]})
    assert choose_compressor({"a": node, "b": replace(node, codecs={"gzip": CodecRates(1, 1, 3)})}).name == "none"
