"""A run that makes good what it finds damaged, and goes on with it.

What a peer has whole is copied while the run reads (execution/lane.py). What no node has is made again after the pass, as `scrub` does
it, by its recipe or from its origin; then the run does what it could not do before. The receipt is of both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from gpuflow.cluster.connection import Connection
from gpuflow.datasets import catalog
from gpuflow.execution.receipt import Receipt
from gpuflow.execution.run import run_pipeline
from gpuflow.execution.submit import Progress
from gpuflow.execution.tally import Healed
from gpuflow.objectstore.repair import heal
from gpuflow.pipelines.plan import Plan
from gpuflow.pipelines.spec import PipelineSpec


def run_and_heal(
    connection: Connection,
    spec: PipelineSpec,
    *,
    stack: bool = False,
    progress: Progress | None = None,
    resolved: Callable[[Plan], None] | None = None,
) -> Receipt:
    """`run_pipeline`, twice where that helps. What cannot be made good is a failure that names the chunk, and a note says why."""
    name = spec.source.dataset
    before = catalog.find(connection, name).transforms if stack else ()  # a question to all nodes, which most runs need not ask
    first = run_pipeline(connection, spec, stack=stack, progress=progress, resolved=resolved)
    damaged = [failure for failure in first.outcome.tally.failures if failure.damaged]
    if not damaged or first.outcome.interrupted:
        return first
    record = catalog.find(connection, name)
    findings, notes = heal(connection, record, damaged)
    repaired = [finding for finding in findings if finding.repaired]
    first = replace(first, notes=(*first.notes, *notes))
    if not repaired:
        return first
    begun = len(record.transforms) > len(before)  # in place: once more is not on top of itself
    second = run_pipeline(connection, spec, stack=stack and not begun, progress=progress, resolved=resolved)
    second.outcome.tally.healed += [Healed(finding.chunk, finding.node, finding.repaired) for finding in repaired]
    return _joined(first, second)


def _joined(first: Receipt, second: Receipt) -> Receipt:
    """Of one run: the second one did what the first could not."""
    outcome = second.outcome
    first.outcome.tally.failures = []
    outcome.tally.add(first.outcome.tally)
    outcome.reasons.update(first.outcome.reasons)
    outcome.wait_seconds += first.outcome.wait_seconds
    return replace(
        second,
        planned_skips=first.planned_skips,
        wall_seconds=first.wall_seconds + second.wall_seconds,
        statistics_chunks=first.statistics_chunks + second.statistics_chunks,
        sent=first.sent + second.sent,
        notes=(*first.notes, *second.notes),
    )
