"""A receipt as a table: what was done, where, what it took, what failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from gpuflow.units import format_nbytes, format_seconds

_FAILURES_SHOWN = 5
_STATUS_STYLE = {"done": "green", "failed": "red", "interrupted": "yellow"}


def receipt_view(receipt: Mapping[str, Any]) -> RenderableType:
    """A receipt's dict (`Receipt.to_dict`) for `Console.print`."""
    table = Table(title=f"{receipt['pipeline']}  run {receipt['run_id']}", title_justify="left", show_header=False, box=None)
    table.add_column(style="bold")
    table.add_column()
    for name, value in receipt_rows(receipt):
        table.add_row(name, value)
    notes = [Text(f"note: {note}") for note in receipt["notes"]]
    return Group(table, *notes, *_failures(receipt["failures"]))


def receipt_rows(receipt: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and values, in rich's markup."""
    chunks, nbytes, locality, seconds = (receipt[name] for name in ("chunks", "bytes", "locality", "seconds"))
    counts = ", ".join(f"{chunks[name]} {name}" for name in ("done", "skipped", "failed"))
    stages = ("read", "decode", "compute", "encode", "commit", "transfer", "wait")
    status = receipt["status"]
    return [
        ("status", f"[{_STATUS_STYLE[status]}]{status}[/]"),
        ("chunks", f"{chunks['total']}: {counts}"),
        *_healed(receipt["healed"]),
        *([("dropped", f"{receipt['dropped']} copies that are not wanted any more")] if receipt["dropped"] else []),
        ("bytes", ", ".join(f"{name} {format_nbytes(nbytes[name])}" for name in ("read", "written", "shipped"))),
        ("locality", _locality(locality)),
        ("time", f"{format_seconds(seconds['wall'])} in all; threads spent " + _stages(seconds, stages)),
        *_bound(receipt.get("bound_by")),
        ("nodes", ", ".join(f"{escape(node)}: {part['chunks']}" for node, part in receipt["nodes"].items())),
    ] + ([("routing", "strict: this Dask version is outside the tested range")] if receipt["routing"] != "late" else [])


def _healed(healed: Sequence[Mapping[str, str]]) -> list[tuple[str, str]]:
    """Damaged chunks that were made good; nothing where there were none."""
    names = [f"{escape(each['chunk'])} ({each['how']})" for each in healed[:_FAILURES_SHOWN]]
    more = f" and {len(healed) - len(names)} more" if len(healed) > len(names) else ""
    return [("healed", f"damaged: {', '.join(names)}{more}")] if healed else []


def _locality(locality: Mapping[str, Any]) -> str:
    """What was read where, why anything was shipped, and what reading the rest where it lies was worth."""
    vram, ram, disk, peer = (locality["tiers"][tier] for tier in ("vram", "ram", "disk", "peer"))
    parts = [f"{disk['chunks']} chunks ({format_nbytes(disk['bytes'])}) read where they lie"]
    for tier, where in ((vram, "the device's memory"), (ram, "memory")):
        if tier["chunks"]:
            parts.append(f"{tier['chunks']} ({format_nbytes(tier['bytes'])}) taken from {where}")
    why = ", ".join(f"{format_nbytes(nbytes)} for {name}" for name, nbytes in locality["shipped_bytes"].items())
    parts.append(f"{peer['chunks']} shipped" + (f" ({why})" if why else ""))
    if locality["kept_bytes"]:
        parts.append(f"{format_nbytes(locality['kept_bytes'])} of that kept")
    saved = locality["saved_seconds"]
    if saved:
        cost = "saved" if saved > 0 else "cost"
        parts.append(f"locality {cost} about {format_seconds(abs(saved))} of the threads' time against shipping everything")
    return "; ".join(parts)


def _bound(bound: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """What bounded the run, in one line; nothing when nothing was done."""
    if bound is None:
        return []
    text = f"{bound['stage']}: {bound['share']:.0%} of the threads' time"
    if bound["of_limit"] is not None:
        text += f"; {bound['rate']:.2f} of {bound['limit']:.2f} {bound['unit']} = {bound['of_limit']:.0%}"
    elif bound["rate"] is not None:
        text += f"; {bound['rate']:.2f} {bound['unit']}"
    return [("bound by", text + (f"; {bound['note']}" if bound["note"] else ""))]


def _stages(seconds: Mapping[str, float], stages: tuple[str, ...]) -> str:
    return ", ".join(f"{stage} {format_seconds(seconds[stage])}" for stage in stages if seconds[stage] >= 0.0005) or "nothing"


def _failures(failures: list[Mapping[str, Any]]) -> list[RenderableType]:
    shown: list[RenderableType] = []
    for failure in failures[:_FAILURES_SHOWN]:
        shown.append(Text(f"failed: {failure['chunk']} on {failure['node'] or 'no node'}: {failure['error']}", style="red"))
        if failure["traceback"]:
            shown.append(Text(_last_frames(failure["traceback"]), style="dim"))
    if len(failures) > _FAILURES_SHOWN:
        shown.append(Text(f"... and {len(failures) - _FAILURES_SHOWN} more; --report FILE lists all", style="red"))
    return shown


def _last_frames(traceback: str, lines: int = 4) -> str:
    return "\n".join(f"    {line}" for line in traceback.rstrip().splitlines()[-lines:])
