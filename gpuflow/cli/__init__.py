"""The command `gpuflow`. Each command imports what it needs when it runs: help and validation start at once."""

from __future__ import annotations

import sys

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

app = typer.Typer(
    name="gpuflow",
    help="Pipelines that run where the chunks of your Zarr data lie.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_DATA, _PIPELINES, _CLUSTER = "Data", "Pipelines", "Cluster"
app.command("ingest", rich_help_panel=_DATA)(data.ingest)
app.command("datasets", rich_help_panel=_DATA)(data.datasets)
app.command("show", rich_help_panel=_DATA)(data.show_dataset)
app.command("remove", rich_help_panel=_DATA)(data.remove)
app.command("snapshot", rich_help_panel=_DATA)(snapshots.snapshot)
app.command("rollback", rich_help_panel=_DATA)(snapshots.rollback)
app.command("diff", rich_help_panel=_DATA)(snapshots.diff)
app.command("events", rich_help_panel=_DATA)(events.events)
app.command("log", rich_help_panel=_DATA)(history.log)
app.command("shell", rich_help_panel=_DATA)(shell.shell)
app.command("replicate", rich_help_panel=_DATA)(replicas.replicate)
app.command("scrub", rich_help_panel=_DATA)(scrub.scrub)
app.command("validate", rich_help_panel=_PIPELINES)(pipelines.validate)
app.command("schema", rich_help_panel=_PIPELINES)(pipelines.schema)
app.command("plan", rich_help_panel=_PIPELINES)(pipelines.plan)
app.command("run", rich_help_panel=_PIPELINES)(pipelines.run)
app.command("watch", rich_help_panel=_PIPELINES)(watch.watch)
app.command("webhook", rich_help_panel=_DATA)(webhook.webhook)
app.command("calibrate", rich_help_panel=_CLUSTER)(calibration.calibrate)
app.command("doctor", rich_help_panel=_CLUSTER)(doctor.doctor)
app.command("rebalance", rich_help_panel=_CLUSTER)(replicas.rebalance)
app.command("drain", rich_help_panel=_CLUSTER)(replicas.drain)
app.command("scheduler", rich_help_panel=_CLUSTER)(cluster.scheduler)
app.command("node", rich_help_panel=_CLUSTER)(cluster.node)
app.command("nodes", rich_help_panel=_CLUSTER)(cluster.nodes)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"gpuflow {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Pipelines that run where the chunks of your Zarr data lie."""


def main() -> None:
    """Run the command line. Errors of gpuflow's own are one message and exit status 1, or 2 for a wrong configuration and for
    a device that is not there."""
    try:
        app()
    except GpuflowError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(2 if isinstance(error, ConfigError | DeviceUnavailable) else 1)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)
