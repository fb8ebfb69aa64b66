"""`gpuflow ingest`, `datasets`, `show`, `remove`."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpuflow.cli.common import AsJson, Device, Nodes_, Report, Root, Scheduler, Workers, cluster, end_with, nodes_to_look_at, show
from gpuflow.errors import ConfigError, Problem

if TYPE_CHECKING:
    from gpuflow.cluster.connection import Connection
    from gpuflow.objectstore.following import Round


def _pixels(option: str, text: str | None) -> tuple[int, int] | None:
    """`256` or `256x384` as (height, width)."""
    if text is None:
        return None
    match = re.fullmatch(r"([1-9]\d{0,5})(?:x([1-9]\d{0,5}))?", text)
    if match is None:
        raise ConfigError([Problem(f"{text!r} is no size in pixels", option, hint="write 256, or 256x384 for height x width")])
    return int(match[1]), int(match[2] or match[1])


def ingest(
    source: Annotated[str, typer.Argument(help="A Zarr (path or URL), a .npy file, or a directory of images.")],
    name: Annotated[str, typer.Argument(help="What the dataset is to be called.")],
    tile: Annotated[str | None, typer.Option(help="Images: cut whole tiles of this many pixels, such as 256 or 256x384.")] = None,
    size: Annotated[str | None, typer.Option(help="Images: crop and resize each to this many pixels.")] = None,
    color: Annotated[str, typer.Option(help="Images: rgb, gray, or keep.")] = "rgb",
    chunk_samples: Annotated[
        int | None, typer.Option(min=1, help="Images, .npy: samples in a chunk (default: about 4 MiB).")
    ] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Images: leave out those that cannot be read.")] = False,
    array: Annotated[list[str] | None, typer.Option(help="Zarr: take only this array or group (may be repeated).")] = None,
    link: Annotated[
        bool, typer.Option("--link", help="Zarr on a node's own file system: link its chunks, copy no bytes.")
    ] = False,
    append: Annotated[
        bool,
        typer.Option("--append", help="Put it behind what the dataset holds, as new chunks; makes the dataset if it is new."),
    ] = False,
    follow: Annotated[
        bool,
        typer.Option(
            "--follow",
            help="SOURCE is a directory: append each file that is complete in it (.npy, images, Zarr directories with a file _SUCCESS), "
            "now and whenever one comes, until interrupted.",
        ),
    ] = False,
    once: Annotated[bool, typer.Option("--once", help="--follow: what is there now, and no longer; for cron.")] = False,
    axis: Annotated[
        str | None,
        typer.Option(
            help="--append, --follow: the dimension that grows, by name or number (default: the first of the largest arrays)."
        ),
    ] = None,
    replicas: Annotated[int | None, typer.Option(min=1, help="On how many nodes each chunk is to lie (default: 1).")] = None,
    max_replicas: Annotated[
        int | None,
        typer.Option(min=1, help="Nodes to which a chunk is shipped keep it until so many have it (default: none does)."),
    ] = None,
    nodes: Nodes_ = None,
    workers: Workers = None,
    device: Device = None,
    scheduler: Scheduler = None,
    root: Root = None,
    report: Report = None,
    as_json: AsJson = False,
) -> None:
    """Make a dataset of a Zarr, a .npy file or a directory of images, or append it to one.

    Its chunks are spread evenly over the nodes. Interrupted, the same command continues; what is in is not appended twice."""
    options: dict[str, Any] = {"tile": _pixels("--tile", tile), "size": _pixels("--size", size), "color": color}
    options |= {"chunk_samples": chunk_samples, "skip_bad": skip_bad, "arrays": array or None}
    from gpuflow.display.progress import ProgressBar
    from gpuflow.objectstore.append import append_sources
    from gpuflow.objectstore.ingest import check_name, ingest_source
    from gpuflow.objectstore.sources import open_source

    check_name(name)
    _check_append(append or follow, link, axis, once and not follow)
    policy = None
    if replicas or max_replicas:
        policy = {"min": replicas or 1, "max": max(replicas or 1, max_replicas or 1)}
    if follow:
        how = {"axis": axis, "options": options, "replicas": policy}
        return _follow(lambda: cluster(scheduler, nodes, workers, device, root), source, name, how, once, as_json)
    opened = open_source(source, **options)
    opened.layout()  # a bad source is found before a cluster is started for it
    with cluster(scheduler, nodes, workers, device, root) as connection, ProgressBar() as bar:
        if append:
            receipt = append_sources(connection, [opened], name, axis=axis, replicas=policy, progress=bar)
        else:
            receipt = ingest_source(connection, opened, name, link=link, replicas=policy, progress=bar)
    end_with(receipt, as_json, report)


def _follow(
    connect: Callable[[], AbstractContextManager[Connection]],
    source: str,
    name: str,
    how: dict[str, Any],
    once: bool,
    as_json: bool,
) -> None:
    """Report each look at which something happened. Exit status 1 when, once, something was left out."""
    from gpuflow.objectstore.following import Follower
    from gpuflow.triggers.lasting import lasting

    def follow(connection: Connection) -> None:
        for found in Follower(connection, source, name, **how).follow():
            if not as_json:
                _tell(found)
            elif found.appended or found.refused:
                typer.echo(json.dumps(found.to_dict()))

    if not once:
        return lasting(connect, follow, threading.Event(), lambda text: typer.echo(text, err=True))
    with connect() as connection:
        found = Follower(connection, source, name, **how).look()
    if as_json:
        typer.echo(json.dumps(found.to_dict()))
    else:
        _tell(found)
        typer.echo(f"{name}: {len(found.appended)} appended, {len(found.refused)} left out, {len(found.waiting)} being written")
    if found.refused:
        raise typer.Exit(1)


def _tell(found: Round) -> None:
    for path in found.appended:
        typer.echo(f"appended {path}")
    for path, reason in found.refused.items():
        typer.echo(f"left out {path}: {reason}", err=True)
    for note in [note for receipt in found.receipts for note in receipt.notes]:
        typer.echo(note)


def _check_append(append: bool, link: bool, axis: str | None, once: bool) -> None:
    if once:
        raise ConfigError([Problem("is only for a directory that is followed", "--once", hint="add --follow")])
    if append and link:
        raise ConfigError(
            [Problem("cannot be linked: its slices become parts of other chunks", "--append", hint="leave out --link")]
        )
    if axis is not None and not append:
        raise ConfigError([Problem("is only for what is appended", "--axis", hint="add --append")])


def datasets(nodes: Nodes_ = None, scheduler: Scheduler = None, root: Root = None, as_json: AsJson = False) -> None:
    """List the datasets."""
    from gpuflow.datasets import catalog
    from gpuflow.display.datasets import dataset_row, datasets_view

    with nodes_to_look_at(scheduler, nodes, root) as where:
        rows = [dataset_row(record, _tables(where, record)) for record in catalog.records(where).values()]
    show(datasets_view(rows), rows, as_json)


def show_dataset(
    name: Annotated[str, typer.Argument(help="The dataset.")],
    nodes: Nodes_ = None,
    scheduler: Scheduler = None,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Show a dataset's arrays, and on which nodes their chunks lie."""
    from gpuflow.datasets import catalog
    from gpuflow.display.datasets import dataset_details, details_view

    with nodes_to_look_at(scheduler, nodes, root) as where:
        record = catalog.find(where, name)
        details = dataset_details(record, _tables(where, record), _in_memory(where, record))
    show(details_view(details), details, as_json)


def remove(
    name: Annotated[str, typer.Argument(help="The dataset.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    with_snapshots: Annotated[bool, typer.Option("--with-snapshots", help="Delete its snapshots too.")] = False,
    nodes: Nodes_ = None,
    workers: Workers = None,
    device: Device = None,
    scheduler: Scheduler = None,
    root: Root = None,
) -> None:
    """Delete a dataset and its chunks from every node."""
    from gpuflow.objectstore.ingest import remove_dataset

    if not yes:
        typer.confirm(f"Delete dataset {name} and all its chunks?", abort=True)
    with cluster(scheduler, nodes, workers, device, root) as connection:
        remove_dataset(connection, name, with_snapshots=with_snapshots)
    typer.echo(f"removed {name}")


def _in_memory(where: Any, record: Any) -> dict[str, dict[str, int]]:
    """By array and node, how many chunks are decoded in its workers' memory; of a cluster."""
    from collections import Counter

    from gpuflow.cluster.connection import Connection

    found: dict[str, dict[str, int]] = {}
    for path in record.arrays if isinstance(where, Connection) else ():
        counts = Counter[str]()
        for node, chunks in where.resident(record.name, path).values():
            counts[node] += len(chunks)
        found[path] = dict(counts)
    return found


def _tables(where: Any, record: Any) -> dict[str, Any]:
    from gpuflow.datasets.catalog import chunk_table

    return {path: chunk_table(where, record.name, path, metadata.grid.size) for path, metadata in record.metadata.items()}
