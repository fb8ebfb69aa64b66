"""Statistics over whole arrays: the parameters of steps, computed by a pass of their own and kept with the source.

They are kept under a digest of what they were computed from, so that an unchanged source is read once, whatever pipelines follow. The
merge is a tree over chunk numbers: the result has the same bits however the chunks lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import xxhash

from gpuflow.backends.select import Backend, select_backend
from gpuflow.cluster.connection import Connection
from gpuflow.datasets import catalog
from gpuflow.datasets.catalog import ChunkTable
from gpuflow.datasets.survey import Survey, survey
from gpuflow.errors import RunFailed
from gpuflow.execution.jobs import StatisticsJob
from gpuflow.execution.lane import Job
from gpuflow.execution.memory import check_reading
from gpuflow.execution.passes import Run
from gpuflow.pipelines.fingerprint import fingerprint
from gpuflow.pipelines.plan import ArrayPlan, Plan, steps_identity
from gpuflow.reductions.moments import Moments
from gpuflow.reductions.requests import MomentsRequest, Request, merge
from gpuflow.reductions.tree import Node, root
from gpuflow.steps.base import Step

Missing = tuple[ArrayPlan, int, Request, str]
"""An array, the number of its step that waits, what it asks for, and the key under which that is kept."""


def look_up(found: Survey, plan: Plan) -> tuple[Plan, list[Missing]]:
    """The plan with the statistics that are kept with the source, and the first that is still missing for each array."""
    arrays, missing = [], []
    for array in plan.arrays:
        while (unresolved := array.first_unresolved()) is not None:
            number, request = unresolved
            key = _key(found, plan, array, number, request)
            if key not in plan.source.statistics:
                missing.append((array, number, request, key))
                break
            array = _resolved(plan, array, number, request.read(plan.source.statistics[key]))
        arrays.append(array)
    return replace(plan, arrays=tuple(arrays)), missing


def resolve(run: Run, found: Survey, plan: Plan) -> Plan:
    """The plan with all its parameters filled in. When chunks fail, `run.stopped` says so, and parameters are missing."""
    while True:
        plan, missing = look_up(found, plan)
        if not missing:
            return plan
        computed = {}
        for array, number, request, key in missing:
            table = found.table(plan.source.name, array.path, array.source.grid.size)
            backend = select_backend(plan.spec.run.backend)
            value = reduce_array(run, array.path, table, request, array.steps[:number], backend)
            if value is None:
                return plan
            computed[key] = value.to_dict()
        source = catalog.find(run.connection, plan.source.name)  # as it is now: another run may have kept something too
        source = source.next(statistics={**source.statistics, **computed})
        catalog.publish(run.connection, source)
        plan = replace(plan, source=source)


def reduce_array(
    run: Run, array: str, table: ChunkTable, request: Request, steps: Sequence[Step] = (), backend: Backend = "numba"
) -> Any:
    """What is asked of one array of the source after `steps`; None when chunks failed."""
    grid = run.source.array(array).grid
    if not grid.size:
        return request.empty(tuple(grid.shape[axis] for axis in request.keep))
    run.record_lost(array, np.flatnonzero(~table.present).tolist(), table.nodes)
    job: Job = StatisticsJob((run.source,), tuple(steps), request, backend=backend)
    work = run.batches(job, array, np.flatnonzero(table.present).tolist(), table)
    run.prepare(work)
    result = run.submit("statistics", work)
    run.statistics_chunks += result.tally.done
    run.outcome.tally.by_node.clear()  # it counts chunks of the output
    if run.stopped:
        return None
    partial: dict[Node, Any] = {node: part for value in result.values for node, part in value.items()}
    return root(partial, grid.size, merge)


def compute_moments(connection: Connection, dataset: str, array: str, keep: tuple[int, ...] = ()) -> Moments:
    """Count, mean, variance and extrema of an array, NaN skipped; each index of the axes in `keep` on its own. RunFailed when chunks
    cannot be read, PlanTooLarge when they are too large for a worker."""
    found = survey(connection, [dataset], [array].__contains__)
    source = catalog.find_among(catalog.live(found.records), dataset)
    metadata = source.array(array)
    total = metadata.grid.size
    table = found.table(dataset, array, total)
    check_reading(connection, array, metadata, table)
    run = Run(connection, source)
    moments: Moments | None = reduce_array(run, array, table, MomentsRequest(keep))
    if moments is None:
        failures = [failure.to_dict() for failure in run.outcome.tally.failures]
        raise RunFailed({"failures": failures, "chunks": {"failed": len(failures), "total": total}})
    return moments


def _key(found: Survey, plan: Plan, array: ArrayPlan, number: int, request: Request) -> str:
    """Digest of what a statistic is computed from: the chunks, the steps before, the axes kept."""
    table = found.table(plan.source.name, array.path, array.source.grid.size)
    chunks = xxhash.xxh3_128_hexdigest(table.rows["digest"].tobytes())
    before = steps_identity(array.steps[:number])
    return fingerprint({request.kind: request.key(), **before, "array": array.path, "of": chunks})


def _resolved(plan: Plan, array: ArrayPlan, number: int, statistics: Any) -> ArrayPlan:
    where = f"{plan.source.name}/{array.path}"
    step = array.steps[number].resolve(array.spec_before(number), statistics, where)
    return replace(array, steps=(*array.steps[:number], step, *array.steps[number + 1 :]))
