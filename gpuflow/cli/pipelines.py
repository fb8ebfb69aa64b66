"""`gpuflow validate`, `plan`, `run`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gpuflow.cli.common import AsJson, Device, Nodes_, Report, Root, Scheduler, Workers, cluster, end_with, nodes_to_look_at, show

File = Annotated[Path, typer.Argument(help="The pipeline's YAML file.")]
Stack = Annotated[bool, typer.Option("--stack", help="In place: apply it on top of the pipeline that was applied before.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="PATH=VALUE", help="In place of what the file says: --set 'steps[0].clip.max=5'. Several times."
    ),
]


def validate(file: File, settings: Settings = None, as_json: AsJson = False) -> None:
    """Check a pipeline's file, without any data: every mistake, each with its line."""
    from gpuflow.pipelines.load import load_pipeline

    spec = load_pipeline(file, settings or ())
    if as_json:
        show("", spec.to_dict(), as_json)
    else:
        target = spec.output.dataset or "in place"
        typer.echo(f"{file}: correct: {spec.source.dataset}, {len(spec.steps)} steps, {target}")


def plan(
    file: File,
    stack: Stack = False,
    settings: Settings = None,
    nodes: Nodes_ = None,
    workers: Workers = None,
    device: Device = None,
    scheduler: Scheduler = None,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Show what a pipeline would do, array by array. Only metadata is read."""
    from gpuflow.backends.select import select_device
    from gpuflow.display.plan import plan_details, plan_view
    from gpuflow.execution import statistics
    from gpuflow.execution.memory import check_memory
    from gpuflow.execution.run import look, plan_all_chunks, prepare
    from gpuflow.pipelines.load import load_pipeline

    spec = load_pipeline(file, settings or ())
    chosen = select_device(device or spec.run.device)
    with nodes_to_look_at(scheduler, nodes, root) as where:
        found = look(where, spec)
        checked, _ = prepare(found, spec, stack=stack)
        memory = check_memory(where, found, checked, workers or spec.run.workers)
        checked, _ = statistics.look_up(found, checked)
        details = plan_details(checked, plan_all_chunks(found, checked), chosen, memory)
    show(plan_view(details), details, as_json)


def run(
    file: File,
    stack: Stack = False,
    settings: Settings = None,
    nodes: Nodes_ = None,
    workers: Workers = None,
    device: Device = None,
    scheduler: Scheduler = None,
    root: Root = None,
    report: Report = None,
    as_json: AsJson = False,
) -> None:
    """Run a pipeline, and print the receipt.

    Chunks that are done already are skipped. A chunk that fails does not stop the others; the exit status is then 1, and running again
    does only what is missing. Ctrl-C stops it cleanly."""
    from gpuflow.display.progress import ProgressBar
    from gpuflow.objectstore.healing import run_and_heal
    from gpuflow.pipelines.load import load_pipeline
    from gpuflow.settings import scheduler_address

    spec = load_pipeline(file, settings or ())
    embedded_workers = None if scheduler or scheduler_address() else workers or spec.run.workers
    with cluster(scheduler, nodes, embedded_workers, device or spec.run.device, root) as connection, ProgressBar() as bar:
        receipt = run_and_heal(connection, spec, stack=stack, progress=bar)
    end_with(receipt, as_json, report)
