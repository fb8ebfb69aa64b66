"""`gpuflow scheduler` and `gpuflow node`: thin wrappers around `dask scheduler` and `dask worker`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from gpuflow.cli.common import AsJson, Scheduler, cluster, show
from gpuflow.errors import ClusterError
from gpuflow.settings import scheduler_address, store_root


def scheduler(
    host: Annotated[str, typer.Option(help="Address to listen on; every machine that reaches it can run code.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 for any.")] = 8786,
    dashboard: Annotated[str, typer.Option(help="Address of Dask's dashboard, or `none`.")] = "127.0.0.1:8787",
) -> None:
    """Run a scheduler in the foreground: `dask scheduler --preload gpuflow.cluster`.

    Give it --host 0.0.0.0 only inside a network that you trust."""
    from gpuflow.cluster.launch import scheduler_command

    shown = ["--no-dashboard"] if dashboard == "none" else ["--dashboard-address", dashboard]
    command = scheduler_command("--host", host, "--port", str(port), "--no-show", *shown)
    os.execv(command[0], command)


def node(
    scheduler: Annotated[str | None, typer.Option(help="The scheduler's address (or GPUFLOW_SCHEDULER).")] = None,
    root: Annotated[Path | None, typer.Option(help="Store root on this machine's local disk (or GPUFLOW_ROOT).")] = None,
    name: Annotated[str | None, typer.Option(help="Name of a new node (default: the host's name).")] = None,
    workers: Annotated[
        int, typer.Option(min=0, help="Worker processes for the CPU; 0 shares out the cores, or leaves them to CUDA devices.")
    ] = 0,
    threads: Annotated[int, typer.Option(min=0, help="Threads of each; 0 shares out the cores.")] = 0,
    host: Annotated[str | None, typer.Option(help="This machine's address as the others see it.")] = None,
    allow_exec: Annotated[bool, typer.Option("--allow-exec", help="Let `exec` steps run programs here.")] = False,
    allow_shell: Annotated[bool, typer.Option("--allow-shell", help="Let `gpuflow shell` open shells here.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N: a worker for each device.")] = "auto",
    share_device: Annotated[
        bool, typer.Option("--share-device", help="Let workers of other nodes on this machine have the same devices.")
    ] = False,
    rack: Annotated[
        str | None, typer.Option(help="Where it stands: copies lie on different racks, if they can. The node keeps it.")
    ] = None,
) -> None:
    """Run this machine as a node in the foreground: `dask worker --preload gpuflow.cluster`, started again when it ends."""
    from dataclasses import replace

    from gpuflow.cluster.launch import devices_for, serve_node, starts

    address = scheduler or scheduler_address()
    if address is None:
        raise ClusterError("the scheduler's address is missing", "give --scheduler tcp://HOST:8786, or set GPUFLOW_SCHEDULER")
    (each,) = starts(len(os.sched_getaffinity(0)), 1, workers or None, devices_for(device), device)
    if threads:
        each = [replace(start, threads=threads) for start in each]
    options = ["--no-dashboard", *(["--host", host] if host else [])]
    place = root or store_root()
    if not (place / "node.json").exists():
        typer.echo(f"{place} holds no store: this is a new node. If it had one, stop here: its disk is not mounted.", err=True)
    allowed = [what for what, wanted in (("exec", allow_exec), ("shell", allow_shell)) if wanted]
    serve_node(address, place, options, name, rack, may=allowed, workers=each, share_device=share_device)


def nodes(scheduler: Scheduler = None, as_json: AsJson = False) -> None:
    """List a running cluster's workers: node, threads, memory, and the device that each computes on, or why it has none."""
    from gpuflow.display.nodes import worker_rows, workers_view

    if not (scheduler or scheduler_address()):
        raise ClusterError("the scheduler's address is missing", "give --scheduler tcp://HOST:8786, or set GPUFLOW_SCHEDULER")
    with cluster(scheduler, None, None, None, None) as connection:
        rows = worker_rows(connection.info()["workers"])
    show(workers_view(rows), rows, as_json)
