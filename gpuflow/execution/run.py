"""A pipeline from its spec to its receipt: plan, statistics, map, publish.

The order makes it safe to die anywhere. Parameters are resolved and kept before the first chunk changes; a new dataset is announced as
"writing" before its first chunk and as "ready" after its last; what is done is read off the manifests, nowhere else."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuflow.backends.select import select_backend
from gpuflow.cluster.connection import Connection
from gpuflow.datasets import catalog, snapshots
from gpuflow.datasets.catalog import Nodes
from gpuflow.datasets.leases import leased
from gpuflow.datasets.survey import Survey, survey
from gpuflow.errors import ConfigError, NameTaken, Problem, RunFailed
from gpuflow.execution import statistics
from gpuflow.execution.again import above_floor, outranking
from gpuflow.execution.auto import compressor_for
from gpuflow.execution.caching import caching
from gpuflow.execution.copies import check_nodes, keep_up
from gpuflow.execution.counted import bound_of
from gpuflow.execution.devices import Chosen, check_in_place, choose_device
from gpuflow.execution.jobs import CarryJob, GatherJob, MapJob
from gpuflow.execution.lane import Job
from gpuflow.execution.memory import check_memory, rooms
from gpuflow.execution.passes import Run
from gpuflow.execution.permission import check_permission
from gpuflow.execution.receipt import Receipt
from gpuflow.execution.saved import saved_seconds
from gpuflow.execution.slices import by_index, with_coordinates
from gpuflow.execution.submit import HOLDER_PATIENCE_SECONDS, Batch, Progress, Silent
from gpuflow.execution.together import together
from gpuflow.execution.weighing import weighed, weighing
from gpuflow.pipelines.fingerprint import fingerprint
from gpuflow.pipelines.growing import as_begun, ended, grown_output
from gpuflow.pipelines.memory import gather_nbytes, sharing
from gpuflow.pipelines.plan import ArrayPlan, ChunkPlan, Plan, made_in_place, make_plan, plan_chunks, steps_as_data, steps_from
from gpuflow.pipelines.spec import PipelineSpec
from gpuflow.storage.record import DatasetRecord


def run_pipeline(
    connection: Connection,
    spec: PipelineSpec,
    *,
    stack: bool = False,
    progress: Progress | None = None,
    patience_seconds: float = HOLDER_PATIENCE_SECONDS,
    resolved: Callable[[Plan], None] | None = None,
) -> Receipt:
    """Run a pipeline on a cluster. The receipt tells what failed; nothing is raised for chunks that do. resolved: is told the plan when all
    its parameters are known.

    Running it again does what is not done yet, and nothing twice. PlanTooLarge when a worker has not the memory for it; NameTaken while
    another pipeline changes the source in place; DeviceUnavailable as of `choose_device`."""
    run_id, device = uuid.uuid4().hex[:12], choose_device(connection, spec)
    if not spec.output.in_place:
        return _run(connection, spec, run_id, device, stack, progress, patience_seconds, resolved)
    with leased(connection, spec.source.dataset, same_pipeline(spec), run_id):
        return _run(connection, spec, run_id, device, stack, progress, patience_seconds, resolved)


def same_pipeline(spec: PipelineSpec) -> str:
    """What two runs of one pipeline have in common."""
    return fingerprint({name: value for name, value in spec.to_dict().items() if name not in ("run", "on")})


def _run(
    connection: Connection,
    spec: PipelineSpec,
    run_id: str,
    device: Chosen,
    stack: bool,
    progress: Progress | None,
    patience_seconds: float,
    resolved: Callable[[Plan], None] | None = None,
) -> Receipt:
    began = time.monotonic()
    _, found = together(lambda: connection.ask("gf_sync"), lambda: look(connection, spec))
    plan, record = prepare(found, spec, stack=stack)
    memory = check_memory(connection, found, plan)
    check_nodes(connection, record)
    check_permission(connection, plan)
    check_in_place(found, plan, device, connection.seen()["workers"].values())
    run = Run(connection, plan.source, progress or Silent(), patience_seconds, run_id, spec.run, device=device)
    run.caching = caching(found, plan, memory, record)
    run.notes += [f"{path} is not carried over: a dimension of it has another length now" for path in plan.left_out]
    plan = statistics.resolve(run, found, plan, record)
    if run.stopped:  # no parameters, so not one chunk was begun
        return receipt_of(run, plan, found, began, [], connection.sent_bytes(run.run_id))
    if resolved is not None:
        resolved(plan)
    if run.statistics_chunks:  # it may be long ago that the nodes were asked
        found = look(connection, spec)
    if plan.level is None and dict(record.fits) != dict(plan.fits):
        record = record.next(fits=plan.fits)
    chunks = plan_all_chunks(found, plan)
    record = record if spec.output.in_place else outranking(found, record, chunks)
    lost = {(path, number) for part in chunks for path, numbers in part.lost.items() for number in numbers}
    for path, number in sorted(lost):
        run.record_lost(path, [number], found.nodes)
    behind = sum(len(part.behind) for part in chunks)
    if behind:
        run.notes.append(
            f"of {behind} chunks only an older generation is there, from before the in-place pipeline that came before this"
        )
    room = gather_nbytes(rooms(connection, None, spec.run.memory))
    work = [item for part in chunks for item in work_of(run, plan, part, record, room)]
    if spec.output.snapshot is not None and work:
        snapshots.take_before(connection, plan.source.name, spec.output.snapshot, plan.level or 0)
    record, _ = together(lambda: announce(connection, plan, record), lambda: run.prepare(work))
    run.submit("map", work)
    keep_up(run, record, partial(still_to_do, run, plan, record))
    _, sent = together(lambda: _end(run, record), lambda: connection.sent_bytes(run.run_id))
    return receipt_of(run, plan, found, began, chunks, sent)


def _end(run: Run, record: DatasetRecord) -> None:
    """The dataset is complete, and as long as it was to become, unless something failed."""
    if run.stopped or (record.state == "ready" and not record.growth):
        return
    known = catalog.find(run.connection, record.name) if record.growth else record
    if (after := ended(record, known)) is not None:
        catalog.publish(run.connection, after)


def look(nodes: Nodes, spec: PipelineSpec) -> Survey:
    """All that planning `spec` asks of the nodes. A new dataset has every array of the source, also those that no step is for."""
    found = _look(nodes, spec)
    return with_coordinates(nodes, found, spec.source, weighing(found, spec))


def _look(nodes: Nodes, spec: PipelineSpec) -> Survey:
    if spec.output.dataset is None:
        return survey(nodes, [spec.source.dataset], spec.source.selects)
    return survey(nodes, [spec.source.dataset, spec.output.dataset], _every)


def _every(path: str) -> bool:
    return True


def prepare(found: Survey, spec: PipelineSpec, *, stack: bool = False) -> tuple[Plan, DatasetRecord]:
    """The checked plan, with what earlier runs resolved, and the record of the dataset that it writes, as it is or as it will be.

    NotFound without the source; NameTaken when the output's name belongs to something else; DeviceUnavailable without its backend."""
    select_backend(spec.run.backend)
    known = catalog.live(found.records)
    source = catalog.find_among(known, spec.source.dataset)
    if source.state != "ready":
        rolling_back = source.state == snapshots.ROLLING_BACK
        command = f"`gpuflow rollback {source.name} TAG`" if rolling_back else "the same command again that made it"
        hint = f"finish it first: run {command}"
        raise ConfigError([Problem(f"dataset {source.name!r} is not complete", "source", hint=hint)])
    spec = by_index(found, spec, source)
    choice = compressor_for(found, spec, source, known.get(spec.output.dataset or ""))
    plan = weighed(found, make_plan(spec, source, stack=stack, compressor=choice))
    if spec.output.in_place:
        return plan, source
    record, there = plan.output_record(), known.get(plan.target)
    if there is None:
        return plan, catalog.fresh(found.records, record)
    alike = there.is_made_like(record.origin)
    if alike:
        plan = as_begun(plan, there)
    grown = grown_output(there, plan.output_record()) if alike else None
    if grown is None:
        raise NameTaken(
            there.name, "exists and was made from something else; choose another name, or remove it with `gpuflow remove`"
        )
    if there.transforms or there.state == snapshots.ROLLING_BACK:
        reason = "was changed in place since it was made; choose another name, or remove it with `gpuflow remove`"
        raise NameTaken(there.name, reason)
    there = grown.keeping(spec.output.policy)
    return plan, there if there.origin == record.origin else there.next(origin=record.origin)


Only = Mapping[str, NDArray[np.int64]]
"""By array of the output, the chunks to look at."""


def plan_all_chunks(found: Survey, plan: Plan, only: Only | None = None) -> list[ChunkPlan]:
    """Chunk by chunk, what is to be done. Steps must be resolved, else everything counts as pending. only: of those chunks alone."""
    plans = []
    for array in plan.arrays:
        part = None if only is None else only.get(array.path, np.empty(0, np.int64))
        if part is not None and not len(part):
            continue
        sources = {path: found.table(plan.source.name, path, array.sources[path].grid.size) for path in array.flow.paths}
        target = None if plan.spec.output.in_place else found.table(plan.target, array.path, array.target.grid.size)
        below = None if plan.level is None else made_in_place(plan.source, array.path, plan.level)
        plans.append(plan_chunks(array, array.made_by(plan.level), sources, target, part, below=below))
    return plans


def announce(connection: Connection, plan: Plan, record: DatasetRecord) -> DatasetRecord:
    """Make the record known everywhere before the first chunk is written. NameTaken when another run was faster."""
    if plan.level is not None:
        steps = {array.path: steps_as_data(array.steps) for array in plan.arrays}
        transform: dict[str, Any] = {"declared": plan.declared, "fingerprint": plan.fingerprint(), "steps": steps}
        transform["begun"] = datetime.now(UTC).isoformat(timespec="seconds")
        record = catalog.find(connection, plan.source.name)
        if len(record.transforms) > plan.level:
            if record.transforms[-1]["fingerprint"] != transform["fingerprint"] or len(record.transforms) > plan.level + 1:
                reason = "was changed in place by another pipeline meanwhile, or a node joined that knows of one; run again"
                raise NameTaken(record.name, reason)
            return record
        _check_complete(connection, plan.level, record)
        record = record.next(transforms=(*record.transforms, transform))
    if not catalog.publish(connection, record):
        raise NameTaken(record.name, "is being changed by another run; run again when that has ended")
    return record


def _check_complete(connection: Connection, level: int, record: DatasetRecord) -> None:
    """A pipeline on top of another in place needs every chunk to have had the first, whose resolved parameters the record kept."""
    below = record.transforms[-1]["steps"] if record.transforms else {}
    for path, steps in below.items():
        metadata = record.array(path)
        array = ArrayPlan.mapped(path, metadata, metadata, steps_from(steps))
        table = catalog.chunk_table(connection, record.name, path, metadata.grid.size)
        part = plan_chunks(array, array.made_by(level - 1), {path: table}, None)
        if part.unmade:
            reason = f"lacks {len(part.unmade)} chunks of {path}; start the nodes that hold them before it is changed on top"
            raise NameTaken(record.name, reason)
        if part.pending:
            raise NameTaken(record.name, "is in the middle of another in-place pipeline; run that one again to finish it first")


def work_of(run: Run, plan: Plan, part: ChunkPlan, record: DatasetRecord, room: int) -> list[Batch]:
    """The tasks of one array. What is changed in place stays on its node, in one manifest's transactions. room: bytes that a task may
    gather."""
    part = above_floor(part, record)
    array, in_place, durable = part.array, plan.spec.output.in_place, plan.spec.run.durability == "durable"
    records = (plan.source,) if in_place else (plan.source, record)
    job: Job
    if array.gathered:
        backend = select_backend(plan.spec.run.backend)
        gather = GatherJob(records, array.flow, part.made_by, durable, backend, run.device.steps, run.patience_seconds)
        return run.gathered(gather, plan.target, array.path, part, sharing(array, room))
    if array.carried:
        job = CarryJob(records, plan.target, part.made_by, durable)
    else:
        backend = select_backend(plan.spec.run.backend)
        job = MapJob(records, plan.target, array.steps, part.made_by, in_place, durable, backend, run.device.steps)
    return run.batches(job, array.path, part.pending, part.table, newest=part.newest, movable=not in_place)


def still_to_do(run: Run, plan: Plan, record: DatasetRecord, found: Survey, only: Only | None = None) -> list[Batch]:
    """The tasks for chunks that have not failed and that no node has any more."""
    failed, work = {failure.chunk for failure in run.outcome.tally.failures}, list[Batch]()
    room = gather_nbytes(rooms(run.connection, None, run.how.memory))
    for part in plan_all_chunks(found, plan, only):
        array, of = part.array, record if part.array.gathered else plan.source
        present = found.table(plan.target, array.path, array.target.grid.size).present
        missing = [chunk for chunk in part.unmade if not present[chunk]]
        for path, numbers in part.lost.items() if missing else ():
            lost = [number for number in numbers if array.gathered or number in missing]
            run.record_lost(path, [one for one in lost if plan.source.chunk_name(path, one) not in failed], found.nodes)
        left = [chunk for chunk in part.pending if of.chunk_name(array.path, chunk) not in failed]
        work += work_of(run, plan, part.only(left), record, room)
    return work


def receipt_of(run: Run, plan: Plan, found: Survey, began: float, chunks: Sequence[ChunkPlan], sent: int) -> Receipt:
    wall_seconds = time.monotonic() - began
    return Receipt(
        run_id=run.run_id,
        pipeline=f"{plan.source.name} -> {plan.target}",
        fingerprint=plan.fingerprint(),
        target=plan.target,
        routing=run.connection.seen()["routing"],
        total=sum(part.total for part in chunks) if chunks else sum(array.target.grid.size for array in plan.arrays),
        planned_skips=sum(part.skipped for part in chunks),
        wall_seconds=wall_seconds,
        statistics_chunks=run.statistics_chunks,
        outcome=run.outcome,
        sent=sent,
        nodes=tuple(run.connection.nodes()),
        saved_seconds=saved_seconds(run.outcome),
        bound=bound_of(run, plan, chunks, found.calibrations, wall_seconds),
        notes=tuple(run.notes),
    )


def raise_for(receipt: Receipt) -> Receipt:
    """The receipt itself, or RunFailed when chunks failed."""
    if receipt.outcome.tally.failures:
        raise RunFailed(receipt.to_dict())
    return receipt
