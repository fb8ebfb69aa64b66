"""Statistics over whole arrays: the parameters of steps, computed by a pass of their own and kept with the source.

They are kept under a digest of what they were computed from, so that an unchanged source is read once, whatever pipelines follow. The
merge is a tree over chunk numbers: the result has the same bits however the chunks lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import xxhash

from gpuflow.backends.select import Backend, select_backend
from gpuflow.cluster.connection import Connection
from gpuflow.datasets import catalog
from gpuflow.datasets.catalog import ChunkTable
from gpuflow.datasets.catalog import merge as merge_reports
from gpuflow.datasets.growth import settled
from gpuflow.datasets.survey import Survey, survey
from gpuflow.errors import RunFailed
from gpuflow.execution.jobs import GatherStatisticsJob, StatisticsJob
from gpuflow.execution.lane import Job
from gpuflow.execution.memory import check_reading, rooms
from gpuflow.execution.partials import Partials
from gpuflow.execution.passes import Run
from gpuflow.execution.submit import Batch
from gpuflow.grid import Grid
from gpuflow.pipelines.fingerprint import cut_shorts, fingerprint
from gpuflow.pipelines.flow import Apply, Flow
from gpuflow.pipelines.memory import Caching, gather_nbytes, sharing
from gpuflow.pipelines.plan import ArrayPlan, Plan, plan_chunks, spec_of, steps_identity
from gpuflow.pipelines.refit import Fit, decide
from gpuflow.pipelines.weights import paths_of
from gpuflow.reductions.moments import Moments
from gpuflow.reductions.requests import MomentsRequest, Request, merge
from gpuflow.reductions.tree import Node, collapse, root
from gpuflow.steps.base import Step
from gpuflow.steps.channels import ChannelStep
from gpuflow.storage.metadata import ArrayMetadata
from gpuflow.storage.record import DatasetRecord

Missing = tuple[ArrayPlan, int, Request, str]
"""An array, the number of its step that waits, what it asks for, and the key under which that is kept."""


def look_up(
    found: Survey, plan: Plan, notes: list[str] | None = None, begun: DatasetRecord | None = None
) -> tuple[Plan, list[Missing]]:
    """The plan with the statistics that are kept with the source, and the first that is still missing for each array. notes: takes what
    was found. begun: what is there of the output: where the source has grown since, the steps say whether they keep what they had then."""
    arrays, missing, fits, refits = [], [], dict(plan.fits), list(plan.refits)
    begun = begun if plan.level is None else None
    for array in plan.arrays:
        while (unresolved := array.first_unresolved()) is not None:
            number, request = unresolved
            key = key_of(found, plan.source, array.flow.before(number), request)
            if key not in plan.source.statistics:
                missing.append((array, number, request, key))
                break
            if notes is not None:
                notes.append(f"{array.path}: its {request.kind} are kept with {plan.source.name}, and were not computed again")
            place = f"{array.path}:{number}"
            fit, said = _fitted(found, plan, array, number, request, key, begun.fits.get(place) if begun else None)
            fits[place] = fit.to_data()
            refits += said
            array = _resolved(plan, array, number, request.read(fit.statistics))
        arrays.append(array)
    return replace(plan, arrays=tuple(arrays), fits=fits, refits=tuple(refits)), missing


def _fitted(
    found: Survey, plan: Plan, array: ArrayPlan, number: int, request: Request, key: str, former: Mapping[str, Any] | None
) -> tuple[Fit, list[str]]:
    """What a step is resolved with: the statistics of the source as it is, or the ones that it had before that grew; and why."""
    source, read = plan.source, list(array.flow.before(number).paths)
    if request.weights is not None and plan.level is None:
        read += [path for path in paths_of(source, request.weights.text).values() if path not in read]
    digests = {path: found.table(source.name, path, source.array(path).grid.size).rows["digest"] for path in read}
    present = Fit.taken(key, source, digests, source.statistics[key])
    node = array.flow.nodes[number]
    step = node.operation if isinstance(node, Apply) else None
    if former is None or not isinstance(step, ChannelStep):
        return present, []
    fit = Fit.from_data(former)
    if fit.key == key or not fit.is_of_the_beginning(source, digests):
        return present, []
    decision = decide(step, array.path, request, fit, present.statistics)
    return (fit if decision.kept else present), [decision.said]


def resolve(run: Run, found: Survey, plan: Plan, begun: DatasetRecord | None = None) -> Plan:
    """The plan with all its parameters filled in; begun: see `look_up`. When chunks fail, `run.stopped` says so, and parameters are
    missing."""
    notes: list[str] | None = run.notes  # of what was there before, not of what this run has computed
    while True:
        plan, missing = look_up(found, plan, notes, begun)
        if not missing:
            run.notes += plan.refits
            return plan
        computed: dict[str, Any] = {}
        for array, number, request, key in missing:
            if key in computed:
                continue
            backend = select_backend(plan.spec.run.backend)
            reduced = reduce_flow(run, found, array.flow.before(number), request, backend, [key])
            if reduced is None:
                return plan
            computed |= {key: reduced.value.to_dict(), **reduced.partials}
        plan, notes = replace(plan, source=keep(run, computed)), None


def keep(run: Run, computed: Mapping[str, Any]) -> DatasetRecord:
    """Statistics into the source's record; as it is then."""
    source = catalog.find(run.connection, run.source.name)  # another run may have kept something too
    older = {key for entry in computed.values() for key in entry.get("superseded", ())}
    computed = {key: {n: v for n, v in entry.items() if n != "superseded"} for key, entry in computed.items()}
    kept = {key: value for key, value in source.statistics.items() if key not in older}
    source = source.next(statistics={**kept, **computed})
    catalog.publish(run.connection, source)
    return source


@dataclass(frozen=True)
class Reduced:
    """What was asked for, and what is to be kept of it for when the array has grown, by key."""

    value: Any
    partials: Mapping[str, Any] = field(default_factory=dict)


def reduce_flow(
    run: Run, found: Survey, flow: Flow, request: Request, backend: Backend, keys: Sequence[str] = ()
) -> Reduced | None:
    """What is asked of what `flow` makes of the run's source; None when chunks failed. keys: under which that will be kept."""
    tables = {path: found.table(run.source.name, path, run.source.array(path).grid.size) for path in flow.paths}
    if flow.is_chunkwise:
        path = flow.paths[0]
        return reduce_array(run, path, tables[path], request, flow, backend, keys)
    array = virtual_array(run.source, flow)
    grid = array.target.grid
    if not grid.size:
        return Reduced(request.empty(tuple(grid.shape[axis] for axis in request.keep)))
    nothing = merge_reports({}, grid.size)
    part = plan_chunks(array, array.made_by(None), tables, nothing)
    for path, numbers in part.lost.items():
        run.record_lost(path, numbers, found.nodes)
    job: Job = GatherStatisticsJob((run.source,), flow, grid, request, True, backend, run.device.steps, run.patience_seconds)
    partials = None
    if part.gathers is not None and len(part.pending) == grid.size:
        partials = Partials.found(run.source.statistics, flow, grid, request, part.gathers.rows["inputs"], None)
        part = part.only(_left(run, flow.name, grid, partials))
    together = sharing(array, gather_nbytes(rooms(run.connection, None, run.how.memory)))
    return _reduced(run, run.gathered(job, run.source.name, flow.paths[0], part, together), grid.size, partials, keys)


def virtual_array(source: DatasetRecord, flow: Flow) -> ArrayPlan:
    """What `flow` makes of the source as if it were stored, cut as comes naturally."""
    sources = {path: source.array(path) for path in flow.paths}
    specs = flow.specs({path: spec_of(metadata) for path, metadata in sources.items()})
    chunks = flow.cut(specs, {path: metadata.grid.chunks for path, metadata in sources.items()})
    target = ArrayMetadata.create(specs[-1].shape, chunks, specs[-1].dtype, compressor="none")
    return ArrayPlan(flow.name, sources, target, flow)


def reduce_array(
    run: Run,
    array: str,
    table: ChunkTable,
    request: Request,
    flow: Flow | None = None,
    backend: Backend = "numba",
    keys: Sequence[str] = (),
) -> Reduced | None:
    """What is asked of one array of the source after the steps of `flow`; None when chunks failed."""
    grid = run.source.array(array).grid
    if not grid.size:
        return Reduced(request.empty(tuple(grid.shape[axis] for axis in request.keep)))
    run.record_lost(array, np.flatnonzero(~table.present).tolist(), table.nodes)
    steps = flow.steps or () if flow is not None else ()
    job: Job = StatisticsJob((run.source,), tuple(steps), request, backend=backend, device=run.device.steps)
    partials = None
    chunks = np.flatnonzero(table.present).tolist()
    if flow is not None and table.present.all():
        tokens = cut_shorts(table.rows["digest"], grid)
        partials = Partials.found(run.source.statistics, flow, grid, request, tokens, steps_identity(steps))
        chunks = _left(run, array, grid, partials)
    return _reduced(run, run.batches(job, array, chunks, table), grid.size, partials, keys)


def _left(run: Run, name: str, grid: Grid, partials: Partials) -> list[int]:
    """The chunks that have to be read."""
    covered = partials.covered()
    if covered:
        what = f"{partials.request.kind} of {len(covered)} chunks are kept with {run.source.name}"
        run.notes.append(f"{name}: the {what}, and were merged with those of {grid.size - len(covered)}")
    return [chunk for chunk in range(grid.size) if chunk not in covered]


def _reduced(
    run: Run, work: Sequence[Batch], parts: int, partials: Partials | None = None, keys: Sequence[str] = ()
) -> Reduced | None:
    partial: dict[Node, Any] = dict(partials.nodes) if partials is not None else {}
    if work:
        run.prepare(work)
        result = run.submit("statistics", work)
        run.statistics_chunks += result.tally.done
        run.outcome.tally.by_node.clear()  # it counts chunks of the output
        partial |= {node: part for value in result.values for node, part in value.items()}
    if run.stopped:
        return None
    value = root(partial, parts, merge)
    if partials is None:
        return Reduced(value)
    kept = partials.entry(collapse(partial, parts, merge, settled(partials.grid)), keys)
    return Reduced(value, {key: {**entry, "superseded": partials.superseded} for key, entry in kept.items()})


def compute_moments(
    connection: Connection, dataset: str, array: str, keep: tuple[int, ...] = (), *, caching: Caching | None = None
) -> Moments:
    """Count, mean, variance and extrema of an array, NaN skipped; each index of the axes in `keep` on its own. RunFailed when chunks
    cannot be read, PlanTooLarge when they are too large for a worker."""
    found = survey(connection, [dataset], [array].__contains__)
    source = catalog.find_among(catalog.live(found.records), dataset)
    metadata = source.array(array)
    total = metadata.grid.size
    table = found.table(dataset, array, total)
    check_reading(connection, array, metadata, table)
    run = Run(connection, source, caching=caching or Caching())
    reduced = reduce_array(run, array, table, MomentsRequest(keep))
    if reduced is None:
        failures = [failure.to_dict() for failure in run.outcome.tally.failures]
        raise RunFailed({"failures": failures, "chunks": {"failed": len(failures), "total": total}})
    moments: Moments = reduced.value
    return moments


def key_of(found: Survey, source: DatasetRecord, flow: Flow, request: Request) -> str:
    """Digest of what a statistic is computed from: the chunks, the steps before, the axes kept."""
    digests = {}
    for path in flow.paths:
        table = found.table(source.name, path, source.array(path).grid.size)
        tokens = cut_shorts(table.rows["digest"], source.array(path).grid)
        digests[path] = xxhash.xxh3_128_hexdigest(tokens.tobytes())
    if flow.is_chunkwise:
        (path, chunks), before = next(iter(digests.items())), steps_identity(flow.steps or ())
        return fingerprint({request.kind: request.key(), **before, "array": path, "of": chunks})
    return fingerprint({request.kind: request.key(), "flow": flow.to_data(), "of": digests})


def _resolved(plan: Plan, array: ArrayPlan, number: int, statistics: Any) -> ArrayPlan:
    node = array.flow.nodes[number]
    assert isinstance(node, Apply), node
    assert isinstance(node.operation, Step), node
    step = node.operation.resolve(array.specs[node.of[0]], statistics, f"{plan.source.name}/{array.path}")
    return replace(array, flow=array.flow.with_step(number, step))
