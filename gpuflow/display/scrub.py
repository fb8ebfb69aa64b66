"""What a scrub found, as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from gpuflow.units import format_nbytes, format_seconds

_SHOWN = 20


def scrub_view(reports: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Reports' dicts (`ScrubReport.to_dict`) for `Console.print`."""
    table = Table(box=None)
    for name in ("dataset", "chunks read", "bytes", "time", "damaged", "repaired"):
        table.add_column(name, justify="left" if name == "dataset" else "right")
    for report in reports:
        repaired = sum(bool(finding["repaired"]) for finding in report["findings"])
        table.add_row(
            escape(report["dataset"]),
            str(report["checked"]),
            format_nbytes(report["bytes"]),
            format_seconds(report["seconds"]),
            str(len(report["findings"])),
            str(repaired),
        )
    findings = [finding for report in reports for finding in report["findings"]]
    lines = [_line(finding) for finding in findings[:_SHOWN]]
    if len(findings) > _SHOWN:
        lines.append(Text(f"... and {len(findings) - _SHOWN} more; --json lists all"))
    notes = [Text(f"note: {note}") for report in reports for note in report["notes"]]
    return Group(table, *lines, *notes)


def _line(finding: Mapping[str, Any]) -> Text:
    where, done = finding["node"] or "no node", finding["repaired"]
    return Text(f"{finding['chunk']} on {where}: {done or finding['error']}", style="yellow" if done else "red")
