"""The workers of a cluster for a terminal: of which node, with how much memory, and on which device they compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from gpuflow.units import format_nbytes


def worker_rows(workers: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Plain data from what `Connection.info` says of each worker, by node."""
    kept = ("node", "root", "threads", "usable_nbytes", "device", "device_name", "device_nbytes", "why_cpu", "lacks")
    rows = [{"worker": address, **{name: worker[name] for name in kept}} for address, worker in workers.items()]
    return sorted(rows, key=lambda row: (row["node"], row["device"], row["worker"]))


def device_text(worker: Mapping[str, Any]) -> str:
    """`cuda:0, NVIDIA H200 with 139 GiB`; of the CPU, why it is not CUDA's."""
    if worker["device"] == "cpu":
        return f"cpu: {worker['why_cpu']}" if worker["why_cpu"] else "cpu"
    text = f"{worker['device']}, {worker['device_name']} with {format_nbytes(worker['device_nbytes'])}"
    return "; ".join([text, *(f"without {library}: {reason}" for library, reason in sorted(worker["lacks"].items()))])


def workers_view(rows: Sequence[Mapping[str, Any]]) -> RenderableType:
    """A line a worker."""
    table = Table(box=None, header_style="bold")
    for name in ("node", "worker", "threads", "memory", "device"):
        table.add_column(name, justify="right" if name in ("threads", "memory") else "left")
    for row in rows:
        memory = format_nbytes(row["usable_nbytes"]) if row["usable_nbytes"] else "no limit"
        table.add_row(row["node"], row["worker"], str(row["threads"]), memory, device_text(row))
    return table
