"""A pipeline run on what changed in its source, and on nothing else: what that touches is planned, and looked at, alone.

The same rule decides as in any run: a chunk whose stored recipe is the wanted one is skipped. What is the caller's is to name every chunk
that changed; what was not named is as it was left."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuflow.cluster.connection import Connection
from gpuflow.datasets import catalog
from gpuflow.datasets.catalog import Nodes
from gpuflow.datasets.leases import leased
from gpuflow.datasets.survey import Survey, survey, survey_part
from gpuflow.execution.again import outranking
from gpuflow.execution.copies import check_nodes, keep_up
from gpuflow.execution.devices import check_in_place, choose_device
from gpuflow.execution.memory import rooms
from gpuflow.execution.passes import Run
from gpuflow.execution.permission import check_permission
from gpuflow.execution.receipt import Receipt
from gpuflow.execution.run import Only, announce, plan_all_chunks, prepare, receipt_of, same_pipeline, still_to_do, work_of
from gpuflow.execution.slices import with_coordinates
from gpuflow.execution.submit import HOLDER_PATIENCE_SECONDS, Progress, Silent
from gpuflow.execution.weighing import weighing
from gpuflow.pipelines.flow import Apply
from gpuflow.pipelines.memory import gather_nbytes
from gpuflow.pipelines.plan import ChunkPlan, Plan
from gpuflow.pipelines.spec import PipelineSpec
from gpuflow.pipelines.touched import needed, touched
from gpuflow.steps.base import Step
from gpuflow.steps.registry import find
from gpuflow.storage.record import DatasetRecord

Changed = Mapping[str, Iterable[int]]
"""By array of the source, chunks that changed."""
Fitted = Mapping[str, Mapping[str, Any]]
"""By array of the output, its steps with the parameters that statistics gave them, by their number in the array's flow, as plain data."""


@dataclass(frozen=True)
class Decision:
    """What changed chunks come to. chunks: of every array of the output, what is to be done of what was looked at."""

    found: Survey
    plan: Plan
    record: DatasetRecord
    only: Only
    chunks: tuple[ChunkPlan, ...]

    @property
    def pending(self) -> int:
        """Chunks to be made."""
        return sum(len(part.pending) for part in self.chunks)

    def names(self) -> set[str]:
        """Of the chunks that were looked at, as failures name them: by their place in the source and in the output."""
        found = set[str]()
        for path, chunks in self.only.items():
            for record in (self.plan.source, self.record):
                if path in record.arrays:
                    size = record.array(path).grid.size
                    found.update(record.chunk_name(path, chunk) for chunk in chunks.tolist() if chunk < size)
        return found

    @property
    def lost(self) -> dict[str, set[int]]:
        """By array of the source, chunks that no node has and that something is to be made from."""
        found: dict[str, set[int]] = {}
        for part in self.chunks:
            for path, numbers in part.lost.items():
                found.setdefault(path, set()).update(numbers)
        return {path: numbers for path, numbers in found.items() if numbers}


def decide(nodes: Nodes, spec: PipelineSpec, changed: Changed, fitted: Fitted | None = None) -> Decision | None:
    """What has to be done for chunks that changed; None when only a whole run can tell: the output is not there yet, or a step waits for
    statistics that `fitted` has not. Errors as of `run.prepare`."""
    known = survey(nodes, [], lambda path: False)
    there = catalog.live(known.records).get(spec.output.dataset or spec.source.dataset)
    if there is None or there.state != "ready":
        return None
    known = with_coordinates(nodes, known, spec.source, weighing(known, spec))
    plan, record = prepare(known, spec)
    if record.growth:  # the source has grown: the output becomes as long at the end of a whole run
        return None
    if spec.output.in_place and len(record.transforms) <= (plan.level or 0):
        return None
    plan = with_parameters(plan, fitted or {})
    if any(array.first_unresolved() is not None for array in plan.arrays):
        return None
    only = {array.path: touched(array, changed) for array in plan.arrays}
    wanted: dict[tuple[str, str], NDArray[np.int64]] = {}
    for array in plan.arrays:
        chunks = only[array.path]
        _add(wanted, (plan.target, array.path), chunks)
        for path, numbers in needed(array, chunks.tolist()).items():
            _add(wanted, (plan.source.name, path), numbers)
    found = survey_part(nodes, {name: chunks for name, chunks in wanted.items() if len(chunks)})
    return Decision(found, plan, record, only, tuple(plan_all_chunks(found, plan, only)))


def _add(wanted: dict[tuple[str, str], NDArray[np.int64]], name: tuple[str, str], chunks: NDArray[np.int64]) -> None:
    wanted[name] = np.union1d(wanted[name], chunks) if name in wanted else chunks


def run_changed(
    connection: Connection,
    spec: PipelineSpec,
    changed: Changed,
    fitted: Fitted | None = None,
    *,
    progress: Progress | None = None,
    patience_seconds: float = HOLDER_PATIENCE_SECONDS,
    decided: Callable[[Decision], None] | None = None,
) -> Receipt | None:
    """Run a pipeline on what changed; None when a whole run is needed (see `decide`). The receipt counts what was looked at. decided: is
    told what that is, before anything is done."""
    run_id, began, device = uuid.uuid4().hex[:12], time.monotonic(), choose_device(connection, spec)
    in_place = leased(connection, spec.source.dataset, same_pipeline(spec), run_id) if spec.output.in_place else nullcontext()
    with in_place:
        connection.ask("gf_sync")
        decision = decide(connection, spec, changed, fitted)
        if decision is None:
            return None
        if decided is not None:
            decided(decision)
        return _carry_out(
            connection,
            decision,
            Run(connection, decision.plan.source, progress or Silent(), patience_seconds, run_id, spec.run, device=device),
            began,
        )


def _carry_out(connection: Connection, decision: Decision, run: Run, began: float) -> Receipt:
    found, plan, record, chunks = decision.found, decision.plan, decision.record, decision.chunks
    check_nodes(connection, record)
    check_permission(connection, plan)
    check_in_place(found, plan, run.device, connection.seen()["workers"].values())
    for path, numbers in sorted(decision.lost.items()):
        run.record_lost(path, sorted(numbers), found.nodes)
    record = record if plan.spec.output.in_place else outranking(found, record, chunks)
    room = gather_nbytes(rooms(connection, None, run.how.memory))
    work = [item for part in chunks for item in work_of(run, plan, part, record, room)]
    if work:
        if record != catalog.live(found.records).get(record.name):
            record = announce(connection, plan, record)
        run.prepare(work)
        run.submit("map", work)
    keep_up(run, record, partial(still_to_do, run, plan, record, only=decision.only))
    sent = connection.sent_bytes(run.run_id) if work else 0
    return receipt_of(run, plan, found, began, chunks, sent)


def parameters_of(plan: Plan) -> dict[str, dict[str, Any]]:
    """The steps of a plan whose parameters are known, as plain data: what `with_parameters` fills in again."""
    found: dict[str, dict[str, Any]] = {}
    for array in plan.arrays:
        for number, node in enumerate(array.flow.nodes):
            if isinstance(node, Apply) and isinstance(node.operation, Step):
                found.setdefault(array.path, {})[str(number)] = {node.operation.kind: node.operation.to_record_value()}
    return found


def with_parameters(plan: Plan, fitted: Fitted) -> Plan:
    """The plan with the parameters that its steps had when they were fitted, where they wait for any."""
    arrays = []
    for array in plan.arrays:
        while (unresolved := array.first_unresolved()) is not None:
            kept = fitted.get(array.path, {}).get(str(unresolved[0]))
            if kept is None:
                break
            ((kind, values),) = kept.items()
            step = find(kind).model_validate(values, strict=False)
            if not isinstance(step, Step):
                break
            following = replace(array, flow=array.flow.with_step(unresolved[0], step))
            if following.first_unresolved() == unresolved:
                break  # what was kept is not fitted either
            array = following
        arrays.append(array)
    return replace(plan, arrays=tuple(arrays))
