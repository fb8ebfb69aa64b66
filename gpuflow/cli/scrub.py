"""`gpuflow scrub`."""

from __future__ import annotations

from typing import Annotated

import typer

from gpuflow.cli.common import AsJson, Device, Nodes_, Rate, Root, Scheduler, Workers, bytes_per_second, cluster, show


def scrub(
    names: Annotated[list[str] | None, typer.Argument(help="Datasets (default: all).")] = None,
    rate: Rate = None,
    repair: Annotated[bool, typer.Option(help="Make good what is damaged, or only list it.")] = True,
    nodes: Nodes_ = None,
    workers: Workers = None,
    device: Device = None,
    scheduler: Scheduler = None,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Read every chunk, compare it with its digest, and repair what is damaged or missing.

    Exit status 1 when something could not be repaired."""
    from gpuflow.datasets import catalog
    from gpuflow.display.progress import ProgressBar
    from gpuflow.display.scrub import scrub_view
    from gpuflow.objectstore.repair import scrub_dataset

    limit = bytes_per_second(rate)
    with cluster(scheduler, nodes, workers, device, root) as connection, ProgressBar() as bar:
        chosen = names or sorted(catalog.records(connection))
        reports = [scrub_dataset(connection, name, rate=limit, repair=repair, progress=bar) for name in chosen]
    data = [report.to_dict() for report in reports]
    show(scrub_view(data), data, as_json)
    if not all(report.sound for report in reports):
        raise typer.Exit(130 if any(report.interrupted for report in reports) else 1)
