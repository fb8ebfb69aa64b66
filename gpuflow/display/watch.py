"""How watched pipelines fare, as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table


def watch_view(found: Sequence[Mapping[str, Any]]) -> RenderableType:
    """found: as `gpuflow watch --status --json` prints it."""
    table = Table("output", "source", "watched by", "behind", "to do", "events", "chunks", "runs", "given up", "last")
    notes = []
    for one in found:
        counts, due = one["counts"], sum(len(chunks) for chunks in one["left"].values())
        last = datetime.fromtimestamp(one["updated"], UTC).strftime("%Y-%m-%d %H:%M:%SZ") if one["updated"] else ""
        row = [one["name"], one["source"], one["watcher"] or "nobody", str(one["behind"]), "all" if one["whole"] else str(due)]
        done = [str(counts.get(name, 0)) for name in ("events", "chunks", "runs")]
        table.add_row(*row, *done, str(len(one["given_up"]) or counts.get("given_up", 0)), last)
        if one["problem"]:
            notes.append(f"{one['name']}: {one['problem']}")
        notes += [f"{one['name']}: given up: {chunk}: {gone['reason']}" for chunk, gone in sorted(one["given_up"].items())]
    return Group(table, *notes)
