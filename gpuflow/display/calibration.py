"""Calibrations as a table: a column for each node, a row for each limit."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from gpuflow.storage.calibration import Calibration
from gpuflow.units import format_nbytes

_ROWS: tuple[tuple[str, Callable[[Calibration], str]], ...] = (
    ("disk write, durable, 1 thread", lambda one: _rate(one.write_gb_s)),
    ("disk write, durable, all threads", lambda one: _rate(one.threads_write_gb_s)),
    ("disk read, cold, 1 thread", lambda one: _rate(one.read_gb_s)),
    ("disk read, cold, all threads", lambda one: _rate(one.threads_read_gb_s)),
    ("page cache read, 1 thread", lambda one: _rate(one.cache_read_gb_s)),
    ("memory copy, 1 thread", lambda one: _rate(one.copy_gb_s)),
    ("fsync of a small file", lambda one: _latency(one.fsync_seconds)),
    ("a small chunk, read to commit", lambda one: _latency(one.chunk_seconds)),
    ("the same, durable", lambda one: _latency(one.durable_chunk_seconds)),
)

_DEVICE_ROWS: tuple[tuple[str, Callable[[Calibration], Mapping[str, float]]], ...] = (
    ("copy to the device and decode", lambda one: one.device_decode_gb_s),
    ("encode on the device and copy back", lambda one: one.device_encode_gb_s),
    ("cold file to the device, verified", lambda one: one.device_read_gb_s),
)


def calibration_view(found: Mapping[str, Calibration]) -> RenderableType:
    """Calibrations by node for `Console.print`."""
    table = Table(box=None, header_style="bold")
    table.add_column("limit")
    for node, calibration in found.items():
        table.add_column(escape(f"{node} ({calibration.threads} threads)"), justify="right")
    for name, shown in _ROWS:
        table.add_row(name, *(shown(one) for one in found.values()))
    for codec in dict.fromkeys(codec for one in found.values() for codec in one.codecs):
        table.add_row(f"{codec}: encode, a core", *(_codec(one, codec, "encode_gb_s") for one in found.values()))
        table.add_row(f"{codec}: decode, a core", *(_codec(one, codec, "decode_gb_s") for one in found.values()))
        table.add_row(
            f"{codec}: ratio", *(f"{one.codecs[codec].ratio:.1f}" if codec in one.codecs else "" for one in found.values())
        )
    for what, each in _DEVICE_ROWS:
        rates = [each(one) for one in found.values()]
        for name in dict.fromkeys(name for one in rates for name in one):
            table.add_row(f"{name}: {what}", *(_rate(one[name]) if name in one else "" for one in rates))
    note = f"codecs: {format_nbytes(8 * 2**20)} of float32 measurements with one decimal; rates of decoded bytes"
    return Group(table, Text(note, style="dim"), Text("kept with each node in calibration.json", style="dim"))


def _rate(gb_s: float) -> str:
    return f"{gb_s:.2f} GB/s"


def _latency(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.0f} us"


def _codec(calibration: Calibration, codec: str, name: str) -> str:
    rates = calibration.codecs.get(codec)
    return _rate(getattr(rates, name)) if rates else ""
