"""Histories as text: of a dataset, of an array, of a chunk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from gpuflow.units import format_nbytes


def dataset_history_view(history: Mapping[str, Any]) -> RenderableType:
    """`dataset_history` for `Console.print`: what happened, oldest first, then how far the chunks have come."""
    origin = history["origin"]
    made_from = origin.get("location") or origin.get("source") or origin.get("kind", "")
    events = [(history["created"], 0, f"made from {made_from}")]
    for item in history["transforms"]:
        text = f"in-place pipeline {item['number']}: {_steps(item['steps'])}  {item['fingerprint'][:12]}"
        events.append((item["begun"], 2 * item["number"], text))
    for item in history["snapshots"]:
        text = f"snapshot {item['tag']}, after {item['in_place']} in-place pipelines"
        events.append((item["created"], 2 * item["in_place"] + 1, text))
    table = Table(box=None, show_header=False)
    for time, _, text in sorted(events):
        table.add_row(time or "-", escape(text))
    head = Text(f"{history['dataset']}  {history['state']}, version {history['version']}", style="bold")
    return Group(head, table, Text(), arrays_view(history["arrays"]))


def _steps(steps: Mapping[str, Any]) -> str:
    """The names of the steps, array by array where they differ."""
    names = {path: ", ".join(kind for step in listed for kind in step) for path, listed in steps.items()}
    if len(set(names.values())) == 1:
        return f"{next(iter(names.values()))} on {', '.join(names)}"
    return "; ".join(f"{text} on {path}" for path, text in names.items())


def arrays_view(arrays: Mapping[str, Any]) -> RenderableType:
    """`array_history` of several arrays."""
    table = Table(box=None, header_style="bold")
    for column in ("array", "chunks", "stored", "how far", "generations"):
        table.add_column(column)
    for path, array in arrays.items():
        far = ", ".join(f"{count} {stage}" for stage, count in array["stages"].items())
        generations = ", ".join(f"{count} at {generation}" for generation, count in array["generations"].items())
        table.add_row(escape(path), str(array["chunks"]), format_nbytes(array["nbytes"]), far, generations)
    return table


def chunk_history_view(history: Mapping[str, Any]) -> RenderableType:
    """`chunk_history` for `Console.print`."""
    table = Table(title=escape(history["chunk"]), title_justify="left", show_header=False, box=None)
    table.add_column(style="bold")
    table.add_column()
    rows = {name: str(history[name]) for name in ("number", "generation", "stage")}
    rows["stored"] = format_nbytes(history["nbytes"])
    rows |= {name: history[name] for name in ("digest", "recipe", "inputs")}
    rows["holders"] = ", ".join(history["holders"]) or "no live node"
    rows |= {f"older, on {node}": f"generation {generation}" for node, generation in history["older"].items()}
    rows |= {
        f"snapshot {tag}": f"generation {kept['generation']}, "
        + ("the same" if kept["digest"] == history["digest"] else kept["digest"])
        for tag, kept in history["snapshots"].items()
    }
    for name, value in rows.items():
        table.add_row(escape(name), escape(value))
    return table
