"""What the commands share: options, where the data is looked for, how errors and tables are shown."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpuflow.errors import ConfigError, NotFound, Problem
from gpuflow.settings import scheduler_address, store_root

if TYPE_CHECKING:
    from rich.console import RenderableType

    from gpuflow.cluster.connection import Connection
    from gpuflow.datasets.catalog import Nodes
    from gpuflow.execution.receipt import Receipt

_CLUSTER = "Cluster"

Nodes_ = Annotated[
    int | None,
    typer.Option(
        "--nodes", min=1, help="Nodes of the embedded cluster (default: as many as the root has).", rich_help_panel=_CLUSTER
    ),
]
Workers = Annotated[
    int | None,
    typer.Option("--workers", min=1, help="Worker processes on each node of the embedded cluster.", rich_help_panel=_CLUSTER),
]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda or cuda:N.", rich_help_panel=_CLUSTER)]
Scheduler = Annotated[
    str | None,
    typer.Option("--scheduler", help="Use the running cluster at this address (or GPUFLOW_SCHEDULER).", rich_help_panel=_CLUSTER),
]
Root = Annotated[
    Path | None,
    typer.Option(
        "--root", help="Store root of the embedded cluster (or GPUFLOW_ROOT; default .gpuflow).", rich_help_panel=_CLUSTER
    ),
]
AllowExec = Annotated[
    bool,
    typer.Option("--allow-exec", help="Let `exec` steps run programs on the embedded cluster.", rich_help_panel=_CLUSTER),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Rate = Annotated[str | None, typer.Option("--rate", help="Bytes per second of each node at most, such as 200MB.")]
Report = Annotated[Path | None, typer.Option("--report", help="Also write the receipt to this file, as JSON.")]


@contextmanager
def cluster(
    scheduler: str | None,
    nodes: int | None,
    workers: int | None,
    device: str | None,
    root: Path | None,
    *,
    allow_exec: bool = False,
) -> Iterator[Connection]:
    """The cluster that the options name, or an embedded one for the command."""
    from gpuflow.cluster.connection import connect

    options: dict[str, Any] = {"nodes": nodes, "workers": workers, "root": root, "device": device or "auto"}
    with connect(scheduler, **options, allow_exec=allow_exec) as connection:
        yield connection


@contextmanager
def nodes_to_look_at(scheduler: str | None, nodes: int | None, root: Path | None) -> Iterator[Nodes]:
    """The cluster that the options name, or the store roots on this machine's disk: looking needs no cluster."""
    if scheduler or scheduler_address():
        with cluster(scheduler, None, None, None, None) as connection:
            connection.ask("gf_sync")
            yield connection
        return
    from gpuflow.cluster.launch import existing_roots
    from gpuflow.datasets.catalog import NodesOnDisk

    base = root or store_root()
    found = existing_roots(base)
    if root is not None and not found:
        raise NotFound("store", str(root), hint="give the root that was ingested into")
    yield NodesOnDisk(tuple(found[:nodes]))


def bytes_per_second(text: str | None) -> float | None:
    """`--rate`: `200MB` as a number; None for none. ConfigError when it is no rate."""
    from gpuflow.units import parse_nbytes

    if text is None:
        return None
    try:
        rate = float(parse_nbytes(text.removesuffix("/s")))
    except ValueError:
        rate = 0.0
    if rate <= 0:
        raise ConfigError([Problem(f"{text!r} is no rate", "--rate", hint="write 200MB, or 1GiB: bytes per second")])
    return rate


def show(view: RenderableType, data: Any, as_json: bool) -> None:
    """Print a table, or the data behind it."""
    if as_json:
        typer.echo(json.dumps(data, indent=2))
    else:
        from rich.console import Console  # takes a while to import

        Console(soft_wrap=True).print(view)


def end_with(receipt: Receipt, as_json: bool, report: Path | None) -> None:
    """Print and write a receipt. Exit status 1 when chunks failed, 130 when it was interrupted."""
    from gpuflow.display.receipt import receipt_view
    from gpuflow.execution.receipt import write_report

    data = receipt.to_dict()
    if receipt.results and not as_json:
        from gpuflow.display.statistics import statistics_view

        show(statistics_view(receipt.results), data, as_json)
    show(receipt_view(data), data, as_json)
    if report is not None:
        write_report(receipt, report)
    if receipt.status != "done":
        raise typer.Exit(130 if receipt.status == "interrupted" else 1)
