"""`gpuflow snapshot`, `rollback`, `diff`."""

from __future__ import annotations

from typing import Annotated

import typer

from gpuflow.cli.common import AsJson, Nodes_, Root, Scheduler, nodes_to_look_at, show
from gpuflow.errors import ConfigError, Problem

Name = Annotated[str, typer.Argument(help="The dataset.")]
Tag = Annotated[str, typer.Argument(help="What the snapshot is called.")]


def snapshot(
    name: Name,
    tag: Annotated[str | None, typer.Argument(help="What the new snapshot is to be called; without it they are listed.")] = None,
    listed: Annotated[bool, typer.Option("--list", help="List the dataset's snapshots.")] = False,
    delete: Annotated[str | None, typer.Option("--delete", metavar="TAG", help="Delete a snapshot.")] = None,
    nodes: Nodes_ = None,
    scheduler: Scheduler = None,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Keep a dataset as it is now, under a tag: hard links on every node, no bytes.

    It is a plain Zarr tree, `snapshots/NAME/TAG` in each node's root. What changes later takes up room beside it, until it is deleted."""
    from gpuflow.datasets import catalog
    from gpuflow.datasets.snapshots import delete_snapshot, take_snapshot
    from gpuflow.display.snapshots import snapshot_rows, snapshots_view

    if (tag is not None) + listed + (delete is not None) > 1:
        raise ConfigError([Problem("TAG, --list and --delete are three different things", "snapshot", hint="give one of them")])
    with nodes_to_look_at(scheduler, nodes, root) as where:
        if tag is not None:
            take_snapshot(where, name, tag)
        if delete is not None:
            delete_snapshot(where, name, delete)
        rows = snapshot_rows(catalog.find(where, name))
    if tag is not None:
        rows = [row for row in rows if row["tag"] == tag]
    show(snapshots_view(name, rows), rows, as_json)


def rollback(
    name: Name, tag: Tag, nodes: Nodes_ = None, scheduler: Scheduler = None, root: Root = None, as_json: AsJson = False
) -> None:
    """Bring a dataset back to a snapshot, with its history of in-place pipelines.

    Newer snapshots stay. Interrupted, the same command finishes it; until then no pipeline runs on the dataset."""
    from dataclasses import asdict

    from gpuflow.datasets.snapshots import roll_back
    from gpuflow.units import format_nbytes

    with nodes_to_look_at(scheduler, nodes, root) as where:
        done = roll_back(where, name, tag)
    text = f"{name} is as in snapshot {tag}: {done.chunks} chunks ({format_nbytes(done.nbytes)}) brought back"
    text += f", {done.undone} in-place pipelines undone" if done.undone > 0 else ""
    show(text, {"dataset": name, **asdict(done)}, as_json)


def diff(
    name: Name,
    tag: Tag,
    other: Annotated[str | None, typer.Argument(help="Another snapshot (default: the dataset as it is).")] = None,
    nodes: Nodes_ = None,
    scheduler: Scheduler = None,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Show in which chunks a snapshot differs from the dataset, or from another snapshot. Only metadata is read."""
    from gpuflow.datasets.snapshots import compare
    from gpuflow.display.snapshots import diff_details, diff_view

    with nodes_to_look_at(scheduler, nodes, root) as where:
        details = diff_details(name, tag, other, compare(where, name, tag, other))
    show(diff_view(details), details, as_json)
