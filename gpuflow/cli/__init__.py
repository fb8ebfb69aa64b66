"""The command `gpuflow`. Each command imports what it needs when it runs: help and validation start at once."""

from __future__ import annotations

import sys
from collections.abc import Callable

import typer

from gpuflow import __version__
from gpuflow.cli import (
    calibration,
    cluster,
    data,
    doctor,
    events,
    history,
    pipelines,
    replicas,
    scrub,
    shell,
    snapshots,
    watch,
    webhook,
)
from gpuflow.errors import ConfigError, DeviceUnavailable, GpuflowError

_DATA, _PIPELINES, _CLUSTER = "Data", "Pipelines", "Cluster"
_COMMANDS: dict[str, tuple[str, Callable[..., None]]] = {
    "ingest": (_DATA, data.ingest),
    "datasets": (_DATA, data.datasets),
    "show": (_DATA, data.show_dataset),
    "remove": (_DATA, data.remove),
    "snapshot": (_DATA, snapshots.snapshot),
    "rollback": (_DATA, snapshots.rollback),
    "diff": (_DATA, snapshots.diff),
    "events": (_DATA, events.events),
    "log": (_DATA, history.log),
    "shell": (_DATA, shell.shell),
    "replicate": (_DATA, replicas.replicate),
    "scrub": (_DATA, scrub.scrub),
    "validate": (_PIPELINES, pipelines.validate),
    "schema": (_PIPELINES, pipelines.schema),
    "plan": (_PIPELINES, pipelines.plan),
    "run": (_PIPELINES, pipelines.run),
    "watch": (_PIPELINES, watch.watch),
    "webhook": (_DATA, webhook.webhook),
    "calibrate": (_CLUSTER, calibration.calibrate),
    "doctor": (_CLUSTER, doctor.doctor),
    "rebalance": (_CLUSTER, replicas.rebalance),
    "drain": (_CLUSTER, replicas.drain),
    "scheduler": (_CLUSTER, cluster.scheduler),
    "node": (_CLUSTER, cluster.node),
    "nodes": (_CLUSTER, cluster.nodes),
}
"""By name: the panel of the help that it is listed in, and what it does."""


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"gpuflow {__version__}")
        raise typer.Exit


def _options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Pipelines that run where the chunks of your Zarr data lie."""


def app(name: str | None = None) -> typer.Typer:
    """The command line. name: of the only command that is wanted, as making all of them takes a while; any other word: all."""
    made = typer.Typer(
        name="gpuflow",
        help="Pipelines that run where the chunks of your Zarr data lie.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    made.callback()(_options)
    for command in [name] if name in _COMMANDS else _COMMANDS:
        panel, function = _COMMANDS[command]
        made.command(command, rich_help_panel=panel)(function)
    return made


def main() -> None:
    """Run the command line. Errors of gpuflow's own are one message and exit status 1, or 2 for a wrong configuration and for
    a device that is not there."""
    try:
        app(sys.argv[1] if len(sys.argv) > 1 else None)()
    except GpuflowError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(2 if isinstance(error, ConfigError | DeviceUnavailable) else 1)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)
