"""A run's receipt, a plan and the nodes as cards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from rich.text import Text

from gpuflow.display.card import bar, card, folded, legend, line, name, table
from gpuflow.display.plan import time_text
from gpuflow.display.receipt import receipt_rows
from gpuflow.execution.receipt import Receipt
from gpuflow.palette import PALETTE, colours_of
from gpuflow.units import counted, format_nbytes, format_seconds

_STAGES = ("read", "decode", "compute", "encode", "commit", "transfer", "wait")


class ReceiptCard(Receipt):
    """A receipt that a notebook shows as a card."""

    @classmethod
    def of(cls, receipt: Receipt) -> ReceiptCard:
        """The same receipt."""
        return cls(**{field.name: getattr(receipt, field.name) for field in fields(receipt)})

    def _repr_html_(self) -> str:
        return receipt_card(self.to_dict())


def receipt_card(receipt: Mapping[str, Any]) -> str:
    """HTML of a receipt's dict, with a picture of where the threads' time went, and where the chunks were made."""
    rows = [(title, Text.from_markup(value).plain) for title, value in receipt_rows(receipt)]
    spent = {stage: float(receipt["seconds"].get(stage, 0.0)) for stage in _STAGES}
    spent = {f"{stage} {format_seconds(seconds)}": seconds for stage, seconds in spent.items() if seconds >= 0.0005}
    stages = colours_of(list(spent))
    made = {f"{node}: {part['chunks']}": float(part["chunks"]) for node, part in receipt["nodes"].items() if part["chunks"]}
    nodes = colours_of(list(made))
    parts = [table(rows)]
    if spent:
        parts += [line("where the threads' time went"), bar(spent, stages), legend(stages)]
    if len(made) > 1:
        parts += [line("chunks by node"), bar(made, nodes), legend(nodes)]
    if receipt["failures"]:
        failed = [(failure["chunk"], failure["node"] or "no node", failure["error"]) for failure in receipt["failures"][:20]]
        parts.append(table(failed, ("failed", "on", "because")))
    return card(f"{receipt['pipeline']}: {receipt['status']} in {format_seconds(receipt['seconds']['wall'])}", *parts)


def plan_card(details: Mapping[str, Any], yaml: str = "") -> str:
    """HTML of `plan_details`: what will be done to which array, how much is left, where, and what runs as one pass."""
    parts = []
    nodes = sorted({node for array in details["arrays"].values() for node in array["by_node"]})
    colours = colours_of(nodes)
    for path, array in details["arrays"].items():
        if not array["carried"]:
            parts += [name(path), table(_rows_of(array)), *_lost(path, array)]
            parts += [bar({node: float(count) for node, count in array["by_node"].items()}, colours)] if array["by_node"] else []
    parts += [legend(colours)] if parts else []
    parts += _carried({path: array for path, array in details["arrays"].items() if array["carried"]})
    if memory := details.get("memory"):
        kept = f"; {format_nbytes(memory['cache_nbytes'])} of that for decoded chunks" if "cache_nbytes" in memory else ""
        parts.append(
            line(f"memory: {format_nbytes(memory['need_nbytes'])} a worker, of {format_nbytes(memory['have_nbytes'])}{kept}")
        )
    if time := details.get("time"):
        parts.append(line(f"time: {time_text(time)}"))
    if choice := details.get("compressor"):
        parts.append(line(f"compressor: {choice['name']}, since {choice['why']}"))
    if yaml:
        parts.append(folded("as YAML", f"<pre>{yaml.translate({38: '&amp;', 60: '&lt;', 62: '&gt;'})}</pre>"))
    return card(f"plan: {details['source']} to {details['output']} on {details['device']}", *parts)


def _rows_of(array: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [
        ("steps", "; ".join(_step(step) for step in array["steps"])),
        ("dtype", _dtype(array)),
        ("chunks", _to_do(array)),
        ("to read", format_nbytes(array["read_nbytes"])),
    ]
    rows += [("computed", array["compute"])] if array["compute"] else []
    return rows + ([("first", "statistics over all its chunks")] if array["waits_for_statistics"] else [])


def _carried(arrays: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Those without steps, a line each: coordinates, mostly."""
    if not arrays:
        return []
    rows = [(path, _dtype(array), _to_do(array), format_nbytes(array["read_nbytes"])) for path, array in arrays.items()]
    head = ("carried over unchanged", "dtype", "chunks", "to read")
    return [table(rows, head), *(text for path, array in arrays.items() for text in _lost(path, array))]


def _dtype(array: Mapping[str, Any]) -> str:
    before, after = array["dtype"]
    return before if before == after else f"{before} to {after}"


def _to_do(array: Mapping[str, Any]) -> str:
    return "{pending} of {total} to do, {skipped} done before".format(**array["chunks"])


def _lost(path: str, array: Mapping[str, Any]) -> list[str]:
    lost = array["chunks"]["lost"]
    return [line(f"{counted(lost, 'chunk')} of {path} on no node that is here", bad=True)] if lost else []


def _step(step: Mapping[str, Any]) -> str:
    ((kind, parameters),) = step.items()
    text = (
        ", ".join(f"{key}={value}" for key, value in parameters.items()) if isinstance(parameters, Mapping) else str(parameters)
    )
    return f"{kind}({text if len(text) < 80 else text[:77] + '...'})"


def nodes_card(nodes: Sequence[Mapping[str, Any]]) -> str:
    """HTML of the nodes: root, disk, chunks, and their workers when there is a cluster."""
    colours = {"this store": PALETTE[0], "other files": PALETTE[9], "free": "#88888844"}
    parts = []
    for node in nodes:
        other = node["disk_nbytes"] - node["free_nbytes"] - node["stored_nbytes"]
        used = {"this store": node["stored_nbytes"], "other files": max(other, 0), "free": node["free_nbytes"]}
        rows = [
            ("root", node["root"]),
            (
                "holds",
                f"{counted(node['chunks'], 'chunk')} of {counted(node['datasets'], 'dataset')}, {format_nbytes(node['stored_nbytes'])}",
            ),
            ("disk", f"{format_nbytes(node['free_nbytes'])} free of {format_nbytes(node['disk_nbytes'])}"),
        ]
        if node.get("workers"):
            rows.append(
                ("workers", f"{len(node['workers'])} with {counted(node['threads'], 'thread')}: {', '.join(node['workers'])}")
            )
        rows += [("devices", "; ".join(node["devices"]))] if node.get("devices") else []
        parts += [name(node["node"]), table(rows), bar({part: float(value) for part, value in used.items()}, colours)]
    return card(counted(len(nodes), "node"), *parts, legend(colours))
