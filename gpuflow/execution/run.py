"""A pipeline from its spec to its receipt: plan, statistics, map, publish.

The order makes it safe to die anywhere. Parameters are resolved and kept before the first chunk changes; a new dataset is announced as
"writing" before its first chunk and as "ready" after its last; what is done is read off the manifests, nowhere else."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import xxhash

from gpuflow.cluster.connection import Connection
from gpuflow.cluster.messages import ChunkGroup
from gpuflow.datasets import catalog
from gpuflow.datasets.catalog import Nodes
from gpuflow.errors import ChunkLost, ConfigError, NameTaken, Problem, RunFailed
from gpuflow.execution.groups import group_chunks
from gpuflow.execution.jobs import CarryJob, MapJob, StatisticsJob
from gpuflow.execution.lane import Job
from gpuflow.execution.receipt import Receipt
from gpuflow.execution.submit import HOLDER_PATIENCE_SECONDS, Outcome, Progress, Silent, Submission
from gpuflow.execution.tally import Failure
from gpuflow.pipelines.fingerprint import fingerprint
from gpuflow.pipelines.plan import ArrayPlan, ChunkPlan, Plan, make_plan, plan_chunks, steps_as_data, steps_from
from gpuflow.pipelines.spec import PipelineSpec
from gpuflow.reductions.moments import Moments
from gpuflow.reductions.tree import Node, root
from gpuflow.steps.base import MomentsRequest
from gpuflow.storage.record import DatasetRecord


def prepare(nodes: Nodes, spec: PipelineSpec, *, stack: bool = False) -> tuple[Plan, DatasetRecord]:
    """The checked plan, with what earlier runs resolved, and the record of the dataset that it writes, as it is or as it will be.

    NotFound without the source; NameTaken when the output's name belongs to something else."""
    known = catalog.records(nodes)
    source = catalog.find(nodes, spec.source.dataset)
    if source.state != "ready":
        hint = "finish it first: run the same command again that made it"
        raise ConfigError([Problem(f"dataset {source.name!r} is not complete", "source", hint=hint)])
    plan = make_plan(spec, source, stack=stack)
    if spec.output.in_place:
        return plan, source
    record, there = plan.output_record(), known.get(plan.target)
    if there is None:
        return plan, catalog.fresh(nodes, record)
    if dict(there.origin) != dict(record.origin) or there.arrays != record.arrays:
        raise NameTaken(
            there.name, "exists and was made from something else; choose another name, or remove it with `gpuflow remove`"
        )
    return plan, there


def look_up_statistics(nodes: Nodes, plan: Plan) -> tuple[Plan, list[tuple[ArrayPlan, int, MomentsRequest, str]]]:
    """The plan with the statistics that were kept with the source, and the first that is still missing for each array, with its key."""
    arrays, missing = [], []
    for array in plan.arrays:
        while (found := array.first_unresolved()) is not None:
            number, request = found
            key = _statistics_key(nodes, plan, array, number, request)
            if key not in plan.source.statistics:
                missing.append((array, number, request, key))
                break
            array = _resolve(plan, array, number, Moments.from_dict(plan.source.statistics[key]))
        arrays.append(array)
    return replace(plan, arrays=tuple(arrays)), missing


def _statistics_key(nodes: Nodes, plan: Plan, array: ArrayPlan, number: int, request: MomentsRequest) -> str:
    """Digest of what a statistic is computed from: the chunks, the steps before, the axes kept."""
    table = catalog.chunk_table(nodes, plan.source.name, array.path, array.source.grid.size)
    content = xxhash.xxh3_128_hexdigest(table.rows["digest"].tobytes())
    return fingerprint(
        {"moments": list(request.keep), "steps": steps_as_data(array.steps[:number]), "array": array.path, "of": content}
    )


def _resolve(plan: Plan, array: ArrayPlan, number: int, moments: Moments) -> ArrayPlan:
    where = f"{plan.source.name}/{array.path}"
    step = array.steps[number].resolve(array.spec_before(number), moments, where)
    return replace(array, steps=(*array.steps[:number], step, *array.steps[number + 1 :]))


def plan_all_chunks(nodes: Nodes, plan: Plan) -> list[ChunkPlan]:
    """Chunk by chunk, what is to be done. Steps must be resolved, else everything counts as pending."""
    plans = []
    for array in plan.arrays:
        size = array.source.grid.size
        source = catalog.chunk_table(nodes, plan.source.name, array.path, size)
        target = None if plan.spec.output.in_place else catalog.chunk_table(nodes, plan.target, array.path, size)
        plans.append(plan_chunks(array, array.made_by(plan.level), source, target))
    return plans


@dataclass
class _Run:
    """The state of one run between its stages."""

    connection: Connection
    plan: Plan
    progress: Progress
    patience_seconds: float
    run_id: str
    outcome: Outcome
    statistics_chunks: int = 0

    def submit(self, title: str, work: Sequence[tuple[ChunkGroup, Job]]) -> Outcome:
        """One pass; its counts join the run's."""
        result = Submission(self.connection, title, self.run_id, self.progress, self.patience_seconds).execute(work)
        self.outcome.tally.add(result.tally)
        self.outcome.reasons, self.outcome.wait_seconds = result.reasons, result.wait_seconds
        self.outcome.interrupted |= result.interrupted
        return result


def run_pipeline(
    connection: Connection,
    spec: PipelineSpec,
    *,
    stack: bool = False,
    progress: Progress | None = None,
    patience_seconds: float = HOLDER_PATIENCE_SECONDS,
) -> Receipt:
    """Run a pipeline on a cluster. The receipt tells what failed; nothing is raised for chunks that do.

    Running it again does what is not done yet, and nothing twice."""
    began = time.monotonic()
    connection.ask("gf_sync")
    plan, record = prepare(connection, spec, stack=stack)
    run = _Run(connection, plan, progress or Silent(), patience_seconds, uuid.uuid4().hex[:12], Outcome())
    _resolve_statistics(run)
    if run.outcome.tally.failures or run.outcome.interrupted:  # no parameters, so not one chunk was begun
        return _receipt(run, began, [])
    record = _announce(run, record)
    chunks = plan_all_chunks(connection, run.plan)
    for plan_of_array in chunks:
        _record_lost(run, plan_of_array)
    run.submit("map", [item for part in chunks for item in _work(run, part, record)])
    if record.state != "ready" and run.outcome.tally.failures == [] and not run.outcome.interrupted:
        catalog.publish(connection, record.next(state="ready"))
    return _receipt(run, began, chunks)


def _resolve_statistics(run: _Run) -> None:
    """Compute what steps need to know about the whole of their array, and keep it with the source."""
    plan = run.plan
    while True:
        plan, missing = look_up_statistics(run.connection, plan)
        if not missing:
            run.plan = plan
            return
        found = {}
        for array, number, request, key in missing:
            if (moments := _moments(run, plan, array, number, request)) is None:
                return
            found[key] = moments.to_dict()
        source = catalog.find(run.connection, plan.source.name)  # as it is now: another run may have kept something too
        source = source.next(statistics={**source.statistics, **found})
        catalog.publish(run.connection, source)
        plan = replace(plan, source=source)


def _moments(run: _Run, plan: Plan, array: ArrayPlan, number: int, request: MomentsRequest) -> Moments | None:
    """Moments of one array as step `number` sees it; None when chunks failed."""
    grid = array.source.grid
    keep = tuple(grid.shape[axis] for axis in request.keep)
    if not grid.size:
        return Moments.empty(keep)
    table = catalog.chunk_table(run.connection, plan.source.name, array.path, grid.size)
    everything = plan_chunks(array, "00" * 16, table, catalog.merge({}, grid.size))
    _record_lost(run, everything)
    job: Job = StatisticsJob((plan.source,), array.steps[:number], request)
    groups = _groups(run, everything, [0] * grid.size, movable=True)
    result = run.submit("statistics", [(group, job) for group in groups])
    run.statistics_chunks += result.tally.done
    run.outcome.tally.by_node.clear()  # it counts chunks of the output
    if run.outcome.tally.failures or result.interrupted:
        return None
    partial: dict[Node, Moments] = {node: moments for value in result.values for node, moments in value.items()}
    return root(partial, grid.size, Moments.merge)


def _announce(run: _Run, record: DatasetRecord) -> DatasetRecord:
    """Make the record known everywhere before the first chunk is written."""
    plan = run.plan
    if plan.spec.output.in_place:
        steps = {array.path: steps_as_data(array.steps) for array in plan.arrays}
        transform: dict[str, Any] = {"declared": plan.declared, "fingerprint": plan.fingerprint(), "steps": steps}
        record = catalog.find(run.connection, plan.source.name)
        if len(record.transforms) > plan.level:
            return record
        _check_complete(run, record)
        record = record.next(transforms=(*record.transforms, transform))
    catalog.publish(run.connection, record)
    return record


def _check_complete(run: _Run, record: DatasetRecord) -> None:
    """A pipeline on top of another in place needs every chunk to have had the first."""
    if not record.transforms:
        return
    previous = record.transforms[-1]["steps"]
    for path in previous:
        metadata = record.array(path)
        table = catalog.chunk_table(run.connection, record.name, path, metadata.grid.size)
        # The recipes of the pipeline below tell; its fingerprint is made from the parameters that the record kept.
        made_by = ArrayPlan(path, metadata, metadata, steps_from(previous[path])).made_by(run.plan.level - 1)
        if plan_chunks(ArrayPlan(path, metadata, metadata), made_by, table, None).pending:
            raise NameTaken(record.name, "is in the middle of another in-place pipeline; run that one again to finish it first")


def _record_lost(run: _Run, part: ChunkPlan) -> None:
    for chunk in part.lost:
        name = run.plan.source.chunk_name(part.array.path, chunk)
        error = ChunkLost(name, list(part.table.nodes))
        run.outcome.tally.failures.append(Failure(name, chunk, "", str(error)))


def _work(run: _Run, part: ChunkPlan, record: DatasetRecord) -> list[tuple[ChunkGroup, Job]]:
    """The tasks of one array."""
    plan, array = run.plan, part.array
    in_place = plan.spec.output.in_place
    records = (plan.source,) if in_place else (plan.source, record)
    job: Job
    if array.carried:
        job = CarryJob(records, plan.target, part.made_by)
    else:
        job = MapJob(records, plan.target, array.steps, part.made_by, in_place)
    return [(group, job) for group in _groups(run, part, part.newest, movable=not in_place)]


def _groups(run: _Run, part: ChunkPlan, newest: Sequence[int], *, movable: bool) -> list[ChunkGroup]:
    table = part.table
    holders, sizes, generations = table.holder_sets, table.rows["nbytes"], table.rows["generation"]
    threads: dict[str, int] = {}
    for worker in run.connection.info()["workers"].values():
        threads[worker["node"]] = threads.get(worker["node"], 0) + worker["threads"]
    keys = [holders[chunk] for chunk in part.pending]
    slots = {key: sum(threads.get(node, 0) for node in key) for key in set(keys)}
    return [
        ChunkGroup(
            run.run_id,
            run.plan.source.name,
            part.array.path,
            tuple(chunks),
            tuple(int(generations[chunk]) for chunk in chunks),
            tuple(int(newest[chunk]) for chunk in chunks),
            int(sizes[chunks].sum()),
            part.array.source.chunk_nbytes * len(chunks),
            movable=movable,
        )
        for _, chunks in group_chunks(part.pending, keys, sizes[list(part.pending)].tolist(), slots, sum(threads.values()))
    ]


def _receipt(run: _Run, began: float, chunks: Sequence[ChunkPlan]) -> Receipt:
    info = run.connection.info()
    return Receipt(
        run_id=run.run_id,
        pipeline=f"{run.plan.source.name} -> {run.plan.target}",
        fingerprint=run.plan.fingerprint(),
        target=run.plan.target,
        routing=info["routing"],
        total=sum(array.source.grid.size for array in run.plan.arrays),
        planned_skips=sum(part.skipped for part in chunks),
        wall_seconds=time.monotonic() - began,
        statistics_chunks=run.statistics_chunks,
        outcome=run.outcome,
        sent=run.connection.sent_bytes(run.run_id),
        nodes=tuple(run.connection.nodes()),
    )


def raise_for(receipt: Receipt) -> Receipt:
    """The receipt itself, or RunFailed when chunks failed."""
    if receipt.outcome.tally.failures:
        raise RunFailed(receipt.to_dict())
    return receipt
