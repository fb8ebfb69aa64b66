"""`gpuflow replicate`, `rebalance`, `drain`."""

from __future__ import annotations

from typing import Annotated

import typer

from gpuflow.cli.common import AsJson, Device, Nodes_, Rate, Report, Root, Scheduler, Workers, bytes_per_second, cluster, end_with
from gpuflow.errors import ConfigError, Problem


def replicate(
    name: Annotated[str, typer.Argument(help="The dataset.")],
    copies: Annotated[int, typer.Argument(min=1, help="On how many nodes each chunk is to lie.")],
    rate: Rate = None,
    nodes: Nodes_ = None,
    workers: Workers = None,
    device: Device = None,
    scheduler: Scheduler = None,
    root: Root = None,
    report: Report = None,
    as_json: AsJson = False,
) -> None:
    """Have copies of a dataset's chunks on several nodes, now and after every run that changes it; with fewer, the others are dropped.

    Interrupted, the same command continues."""
    from gpuflow.display.progress import ProgressBar
    from gpuflow.execution.copies import replicate as make_copies

    limit = bytes_per_second(rate)
    with cluster(scheduler, nodes, workers, device, root) as connection, ProgressBar() as bar:
        receipt = make_copies(connection, name, copies, rate=limit, progress=bar)
    end_with(receipt, as_json, report)


def rebalance(
    name: Annotated[str | None, typer.Argument(help="The dataset.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every dataset.")] = False,
    rate: Rate = None,
    nodes: Nodes_ = None,
    workers: Workers = None,
    device: Device = None,
    scheduler: Scheduler = None,
    root: Root = None,
) -> None:
    """Move chunks so that each node holds a share that fits its disk, as after nodes have joined.

    A chunk is copied first and dropped where it was afterwards. Interrupted, the same command continues."""
    from gpuflow.datasets import catalog
    from gpuflow.display.progress import ProgressBar
    from gpuflow.execution.rebalance import rebalance as balance

    if (name is None) != every:
        raise ConfigError([Problem("one dataset is to be named, or --all given", "NAME")])
    limit = bytes_per_second(rate)
    with cluster(scheduler, nodes, workers, device, root) as connection, ProgressBar() as bar:
        chosen = [name] if name is not None else sorted(catalog.records(connection))
        receipts = [balance(connection, each, rate=limit, progress=bar) for each in chosen]
    for receipt in receipts:
        end_with(receipt, False, None)


def drain(
    node: Annotated[str, typer.Argument(help="The node's id, as `gpuflow show` lists it.")],
    rate: Rate = None,
    nodes: Nodes_ = None,
    workers: Workers = None,
    device: Device = None,
    scheduler: Scheduler = None,
    root: Root = None,
) -> None:
    """Copy to other nodes what a node holds, so that it may leave the cluster.

    Interrupted, the same command continues. Nothing is deleted on the node."""
    from gpuflow.display.progress import ProgressBar
    from gpuflow.execution.copies import drain as copy_away

    limit = bytes_per_second(rate)
    with cluster(scheduler, nodes, workers, device, root) as connection, ProgressBar() as bar:
        receipts = copy_away(connection, node, rate=limit, progress=bar)
    for receipt in receipts:
        end_with(receipt, False, None)
    typer.echo(f"node {node} may leave: every chunk that it holds has its copies elsewhere")
