"""`gpuflow watch`."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

from gpuflow.cli.common import (
    AllowExec,
    AsJson,
    Device,
    Nodes_,
    Root,
    Scheduler,
    Workers,
    nodes_to_look_at,
    show,
)


def watch(
    files: Annotated[
        list[Path] | None,
        typer.Argument(help="Pipelines' YAML files, which may feed each other, and Python files with `@gpuflow.on` functions."),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Deal with what has changed by now, and end: for cron.")] = False,
    refit: Annotated[
        bool, typer.Option("--refit", help="After an edit: make all of the outputs again, with statistics of what is there now.")
    ] = False,
    status: Annotated[bool, typer.Option("--status", help="Show how the watched pipelines fare, and end.")] = False,
    at_once: Annotated[int, typer.Option("--at-once", min=1, help="So many pipelines run at a time.")] = 2,
    nodes: Nodes_ = None,
    workers: Workers = None,
    device: Device = None,
    scheduler: Scheduler = None,
    root: Root = None,
    allow_exec: AllowExec = False,
    as_json: AsJson = False,
) -> None:
    """Run pipelines on what changes in their sources, and on nothing else, until interrupted.

    What was done is not done again, whatever died when; what changed meanwhile is caught up with. The exit status is 1 when a pipeline
    could not go on, or with --once when chunks failed."""
    if status:
        return _status(scheduler, nodes, root, as_json)
    from gpuflow.cluster.connection import Connection, connect
    from gpuflow.settings import scheduler_address
    from gpuflow.triggers.functions import functions_of
    from gpuflow.triggers.watching import Watching, load_all

    functions = [handler for file in files or () if file.suffix == ".py" for handler in functions_of(file)]
    pipelines = load_all([file for file in files or () if file.suffix != ".py"], may_be_none=bool(functions))
    embedded = not (scheduler or scheduler_address())

    def start() -> Connection:
        options = {"nodes": nodes, "workers": workers, "root": root} if embedded else {}
        return connect(scheduler, **options, device=device or "auto", allow_exec=allow_exec)  # type: ignore[arg-type]

    watching = Watching(pipelines, start, lambda text: typer.echo(text, err=True), at_once, functions)
    if once:
        if not watching.once(refit):
            raise typer.Exit(1)
        return
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: watching.stop.set())
        signal.signal(signal.SIGINT, lambda *_: watching.stop.set())
    watching.forever(refit)
    if watching.failed:
        raise typer.Exit(1)


def _status(scheduler: str | None, nodes: int | None, root: Path | None, as_json: bool) -> None:
    from gpuflow.display.watch import watch_view
    from gpuflow.triggers.watcher import as_plain
    from gpuflow.triggers.watching import statuses

    with nodes_to_look_at(scheduler, nodes, root) as where:
        found = [{**as_plain(one.state), "watcher": one.watcher, "behind": one.behind} for one in statuses(where)]
    show(watch_view(found), found, as_json)
