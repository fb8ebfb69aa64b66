"""Snapshots as tables: which there are, and what differs from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from gpuflow.datasets.snapshots import ArrayDiff
from gpuflow.storage.record import DatasetRecord
from gpuflow.units import format_nbytes


def snapshot_rows(record: DatasetRecord) -> list[dict[str, Any]]:
    """A dataset's snapshots as plain data, oldest first. nbytes: encoded bytes that it keeps, of one copy; in_place: number of in-place
    pipelines that had been applied."""
    rows = [
        {
            "dataset": record.name,
            "tag": tag,
            "created": entry["created"],
            "chunks": entry["chunks"],
            "nbytes": entry["nbytes"],
            "in_place": len(entry["transforms"]),
            "nodes": dict(entry["nodes"]),
        }
        for tag, entry in record.snapshots.items()
    ]
    return sorted(rows, key=lambda row: (row["created"], row["tag"]))


def snapshots_view(name: str, rows: list[dict[str, Any]]) -> RenderableType:
    """Rows of `snapshot_rows` for `Console.print`."""
    if not rows:
        return Text(f"{name} has no snapshots; take one with `gpuflow snapshot {name} TAG`")
    table = Table(box=None, header_style="bold")
    for column in ("snapshot", "of", "taken", "chunks", "keeps", "in-place pipelines", "nodes"):
        table.add_column(column)
    for row in rows:
        counts = (str(row["chunks"]), format_nbytes(row["nbytes"]), str(row["in_place"]), str(len(row["nodes"])))
        table.add_row(escape(row["tag"]), escape(name), row["created"], *counts)
    return table


def diff_details(name: str, tag: str, other: str | None, diffs: Mapping[str, ArrayDiff]) -> dict[str, Any]:
    """What `compare` found, as plain data. differing: numbers of the chunks; nbytes: their encoded bytes in the first and in the second."""
    arrays = {
        path: {
            "chunks": diff.chunks,
            "differing": list(diff.differing),
            "nbytes": [diff.first_nbytes, diff.second_nbytes],
        }
        for path, diff in diffs.items()
    }
    return {
        "dataset": name,
        "first": tag,
        "second": other,
        "same": not any(diff.differing for diff in diffs.values()),
        "arrays": arrays,
    }


def diff_view(details: Mapping[str, Any]) -> RenderableType:
    """`diff_details` for `Console.print`."""
    first, second = f"snapshot {details['first']}", f"snapshot {details['second']}" if details["second"] else "now"
    if details["same"]:
        return Text(f"{details['dataset']}: {first} and {second} are the same")
    table = Table(box=None, header_style="bold")
    for column in ("array", "chunks", "differ", first, second):
        table.add_column(column, justify="left" if column == "array" else "right")
    for path, array in details["arrays"].items():
        nbytes = (format_nbytes(part) for part in array["nbytes"])
        table.add_row(escape(path), str(array["chunks"]), str(len(array["differing"])), *nbytes)
    return Group(Text(details["dataset"], style="bold"), table)
