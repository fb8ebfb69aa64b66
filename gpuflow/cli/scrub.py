"""`gpuflow scrub`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from gpuflow.cli.common import AsJson, Device, Nodes_, Rate, Root, Scheduler, Workers, bytes_per_second, cluster, show
from gpuflow.errors import ClusterError

if TYPE_CHECKING:
    from gpuflow.cluster.connection import Connection

_LEAST_SECONDS = 1.0  # between rounds


def scrub(
    names: Annotated[list[str] | None, typer.Argument(help="Datasets (default: all).")] = None,
    rate: Rate = None,
    repair: Annotated[bool, typer.Option(help="Make good what is damaged, or only list it.")] = True,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on until interrupted, beside runs; at 20MB a second without --rate.")
    ] = False,
    every: Annotated[
        float, typer.Option(min=0, help="With --follow: hours from the beginning of a round to that of the next.")
    ] = 24.0,
    nodes: Nodes_ = None,
    workers: Workers = None,
    device: Device = None,
    scheduler: Scheduler = None,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Read every chunk, compare it with its digest, and repair what is damaged or missing.

    Exit status 1 when something could not be repaired. With --follow a round over all of it follows the other, each reported."""
    from gpuflow.datasets import catalog
    from gpuflow.display.progress import ProgressBar
    from gpuflow.display.scrub import scrub_view
    from gpuflow.objectstore.repair import scrub_dataset

    limit = bytes_per_second(rate)
    if follow:
        with cluster(scheduler, nodes, workers, device, root) as connection:
            _follow(connection, names, limit, every * 3600)
    with cluster(scheduler, nodes, workers, device, root) as connection, ProgressBar() as bar:
        chosen = names or sorted(catalog.records(connection))
        reports = [scrub_dataset(connection, name, rate=limit, repair=repair, progress=bar) for name in chosen]
    data = [report.to_dict() for report in reports]
    show(scrub_view(data), data, as_json)
    if not all(report.sound for report in reports):
        raise typer.Exit(130 if any(report.interrupted for report in reports) else 1)


def _follow(connection: Connection, names: list[str] | None, rate: float | None, seconds: float) -> NoReturn:
    from gpuflow.display.scrub import scrub_view
    from gpuflow.objectstore.watching import RATE, watch

    while True:
        began = time.monotonic()
        try:
            for report in watch(connection, names, rate=rate or RATE):
                show(scrub_view([report.to_dict()]), None, False)
        except ClusterError as error:  # a node went away: it may be back in the next round
            typer.echo(f"this round was cut short: {error}", err=True)
        time.sleep(max(_LEAST_SECONDS, seconds - (time.monotonic() - began)))
