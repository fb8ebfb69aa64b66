"""The table of a calibration."""

from __future__ import annotations

from io import StringIO

from rich.console import Console

from gpuflow.display.calibration import calibration_view
from tests.storage.calibrations import CODECS, calibration


def test_a_column_for_each_node() -> None:
    text = StringIO()
    nodes = {"node0-aa": calibration(0.9), "node1-bb": calibration(1.2, 8, fsync_seconds=3e-3, codecs={"zstd": CODECS["zstd"]})}
    Console(file=text, width=120).print(calibration_view(nodes))
    rows = {line.split("  ")[0].strip(): line.split()[-4:] for line in text.getvalue().splitlines()}
    assert "node0-aa (2 threads)" in text.getvalue()
    assert rows["disk write, durable, all threads"] == ["0.90", "GB/s", "1.20", "GB/s"]
    assert rows["fsync of a small file"] == ["200", "us", "3.00", "ms"]
    assert rows["zstd: encode, a core"] == ["0.80", "GB/s", "0.80", "GB/s"]
    assert rows["gzip: decode, a core"][-2:] == ["0.40", "GB/s"]
