"""`gpuflow scrub`."""

from __future__ import annotations

from typing import Annotated

import typer

from gpuflow.cli.common import AsJson, Device, Nodes_, Root, Scheduler, Workers, cluster, show
from gpuflow.errors import ConfigError, Problem


def _rate(text: str | None) -> float | None:
    """`200MB` as bytes per second."""
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


def scrub(
    names: Annotated[list[str] | None, typer.Argument(help="Datasets (default: all).")] = None,
    rate: Annotated[str | None, typer.Option(help="What each node reads per second at most, such as 200MB.")] = None,
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

    limit = _rate(rate)
    with cluster(scheduler, nodes, workers, device, root) as connection, ProgressBar() as bar:
        chosen = names or sorted(catalog.records(connection))
        reports = [scrub_dataset(connection, name, rate=limit, repair=repair, progress=bar) for name in chosen]
    data = [report.to_dict() for report in reports]
    show(scrub_view(data), data, as_json)
    if not all(report.sound for report in reports):
        raise typer.Exit(130 if any(report.interrupted for report in reports) else 1)
