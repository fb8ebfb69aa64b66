"""`gpuflow validate`, `plan`, `run`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gpuflow.cli.common import (
    AllowExec,
    AsJson,
    Device,
    Nodes_,
    Report,
    Root,
    Scheduler,
    Workers,
    cluster,
    end_with,
    nodes_to_look_at,
    show,
)
from gpuflow.units import counted

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
    from gpuflow.pipelines.load import load_any
    from gpuflow.pipelines.spec import PipelineSpec

    spec = load_any(file, settings or ())
    if as_json:
        show("", spec.to_dict(), as_json)
    else:
        target = (spec.output.dataset or "in place") if isinstance(spec, PipelineSpec) else "statistics"
        steps = counted(len(spec.steps), "step")
        typer.echo(f"{file}: correct: {spec.source.dataset}, {steps}, {target}")


def schema() -> None:
    """Print the JSON Schema of pipeline files, for editors.

    gpuflow schema > pipeline.schema.json, and at the top of a file: # yaml-language-server: $schema=pipeline.schema.json"""
    import json

    from gpuflow.pipelines.schema import pipeline_schema

    typer.echo(json.dumps(pipeline_schema(), indent=2))


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
    from gpuflow.display.plan import plan_details, plan_view
    from gpuflow.execution import statistics
    from gpuflow.execution.caching import caching
    from gpuflow.execution.devices import choose_device
    from gpuflow.execution.expected import expected
    from gpuflow.execution.memory import check_memory
    from gpuflow.execution.run import look, plan_all_chunks, prepare
    from gpuflow.pipelines.load import load_any
    from gpuflow.pipelines.statistics import StatisticsPipeline

    spec = load_any(file, _with_device(settings, device))
    if isinstance(spec, StatisticsPipeline):
        from gpuflow.cli.statistics import plan_statistics

        return plan_statistics(spec, scheduler, nodes, root, as_json)
    with nodes_to_look_at(scheduler, nodes, root) as where:
        chosen = choose_device(where, spec).told
        found = look(where, spec)
        checked, record = prepare(found, spec, stack=stack)
        memory = check_memory(where, found, checked, workers or spec.run.workers)
        memory = caching(found, checked, memory, record).of(memory)
        checked, _ = statistics.look_up(found, checked, begun=record)
        chunks = plan_all_chunks(found, checked)
        time = expected(where, found, checked, chunks, chosen, workers)
        details = plan_details(checked, chunks, chosen, memory, time)
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
    allow_exec: AllowExec = False,
    report: Report = None,
    as_json: AsJson = False,
) -> None:
    """Run a pipeline, and print the receipt.

    Chunks that are done already are skipped. A chunk that fails does not stop the others; the exit status is then 1, and running again
    does only what is missing. Ctrl-C stops it cleanly."""
    from gpuflow.display.progress import ProgressBar
    from gpuflow.execution.devices import choose_here
    from gpuflow.execution.summary import run_statistics
    from gpuflow.objectstore.healing import run_and_heal
    from gpuflow.pipelines.load import load_any
    from gpuflow.pipelines.spec import PipelineSpec
    from gpuflow.settings import scheduler_address

    spec = load_any(file, _with_device(settings, device))
    embedded = not (scheduler or scheduler_address())
    if embedded:
        choose_here(spec)
    embedded_workers = workers or spec.run.workers if embedded else None
    where = cluster(scheduler, nodes, embedded_workers, spec.run.device, root, allow_exec=allow_exec)
    with where as connection, ProgressBar() as bar:
        if isinstance(spec, PipelineSpec):
            receipt = run_and_heal(connection, spec, stack=stack, progress=bar)
        else:
            receipt = run_statistics(connection, spec, progress=bar)
    end_with(receipt, as_json, report)


def _with_device(settings: list[str] | None, device: str | None) -> list[str]:
    """`--device` takes the place of what the file says."""
    return [*(settings or ()), *([f"run.device={device}"] if device else ())]
