"""Calibrations with round figures, for tests of what is decided from them."""

from __future__ import annotations

from typing import Any

from gpuflow.storage.calibration import Calibration, CodecRates

CODECS = {"zstd": CodecRates(0.8, 1.6, 3.0), "gzip": CodecRates(0.03, 0.4, 3.2), "blosc": CodecRates(2.0, 4.0, 1.9)}


def calibration(write: float = 1.0, threads: int = 2, **changes: Any) -> Calibration:
    """A node whose disk takes `write` GB/s."""
    figures: dict[str, Any] = {
        "measured_at": "2026-01-01T00:00:00+00:00",
        "threads": threads,
        "write_gb_s": write,
        "threads_write_gb_s": write,
        "read_gb_s": 2.0,
        "threads_read_gb_s": 3.0,
        "cache_read_gb_s": 10.0,
        "copy_gb_s": 12.0,
        "fsync_seconds": 2e-4,
        "chunk_seconds": 1e-4,
        "durable_chunk_seconds": 3e-4,
        "codecs": CODECS,
    }
    return Calibration(**{**figures, **changes})
