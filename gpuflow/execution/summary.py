"""Statistics as a pipeline of their own: looked up where they are kept with the source, computed in one pass where not, and kept.

What the parameters of later steps need is found there by the same rule: an unchanged array is read once."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuflow.backends.select import select_backend
from gpuflow.cluster.connection import Connection
from gpuflow.datasets import catalog
from gpuflow.datasets.catalog import Nodes
from gpuflow.datasets.survey import Survey, survey
from gpuflow.errors import ConfigError, Problem
from gpuflow.execution import statistics
from gpuflow.execution.caching import caching, decoded_nbytes
from gpuflow.execution.devices import choose_device
from gpuflow.execution.memory import check_memory
from gpuflow.execution.passes import Run
from gpuflow.execution.permission import check_permission
from gpuflow.execution.receipt import Receipt
from gpuflow.execution.saved import saved_seconds
from gpuflow.execution.slices import by_index, with_coordinates
from gpuflow.execution.submit import HOLDER_PATIENCE_SECONDS, Progress, Silent
from gpuflow.execution.weighing import weighed, weighing
from gpuflow.pipelines.fingerprint import fingerprint
from gpuflow.pipelines.flow import Flow
from gpuflow.pipelines.plan import ArrayPlan, Plan, make_plan, select
from gpuflow.pipelines.slices import ranges
from gpuflow.pipelines.statistics import StatisticsPipeline, StatisticsSpec
from gpuflow.pipelines.weights import paths_of, weights_of
from gpuflow.reductions.requests import Request, Several
from gpuflow.reductions.weighted import WeightedMoments, Weights
from gpuflow.steps.base import ArraySpec, StepError
from gpuflow.storage.record import DatasetRecord


@dataclass(frozen=True)
class Question:
    """What is asked about one array that the steps make. flow: with the mask behind it; keep: axes on their own."""

    asked: StatisticsSpec
    array: ArrayPlan
    flow: Flow
    keep: tuple[int, ...]
    weights: Weights | None

    @property
    def spec(self) -> ArraySpec:
        """What the statistics are of."""
        return self.array.specs[-1]

    def requests(self, bounds: tuple[float, float] | None) -> tuple[Request, ...]:
        """See `StatisticsSpec.requests`."""
        return self.asked.requests(self.keep, self.weights, bounds)


def run_statistics(
    connection: Connection,
    pipeline: StatisticsPipeline,
    *,
    progress: Progress | None = None,
    patience_seconds: float = HOLDER_PATIENCE_SECONDS,
) -> Receipt:
    """Run a pipeline of statistics on a cluster. The receipt has them, `results`, unless chunks failed: then it tells which."""
    began, run_id = time.monotonic(), uuid.uuid4().hex[:12]
    device = choose_device(connection, pipeline)
    connection.ask("gf_sync")
    found, plan = look(connection, pipeline)
    memory = check_memory(connection, found, plan)
    check_permission(connection, plan)
    run = Run(connection, plan.source, progress or Silent(), patience_seconds, run_id, pipeline.run, device=device)
    run.caching = caching(found, plan, memory, again=_again_nbytes(found, pipeline, plan))
    plan = statistics.resolve(run, found, plan)
    before, answered = run.outcome.tally.done, dict[str, Any]()
    skipped = 0
    for question in questions(found, pipeline, plan) if not run.stopped else ():
        answer = _answer(run, found, pipeline, question)
        if answer is None:
            break
        answered[question.array.path], reused = answer
        skipped += reused
    done = run.outcome.tally.done - before
    return Receipt(
        run_id=run_id,
        pipeline=f"{plan.source.name} -> statistics",
        fingerprint=fingerprint(pipeline.to_dict()),
        target=plan.source.name,
        routing=connection.seen()["routing"],
        total=done + skipped + len(run.outcome.tally.failures),
        planned_skips=skipped,
        wall_seconds=time.monotonic() - began,
        statistics_chunks=run.statistics_chunks - done,
        outcome=run.outcome,
        sent=connection.sent_bytes(run_id),
        nodes=tuple(connection.nodes()),
        saved_seconds=saved_seconds(run.outcome),
        notes=tuple(run.notes),
        results=None if run.stopped else answered,
    )


def look(nodes: Nodes, pipeline: StatisticsPipeline) -> tuple[Survey, Plan]:
    """What is there, and what the steps make of it. ConfigError for all that does not fit; NotFound without the source."""
    source = pipeline.source
    found = survey(nodes, [source.dataset], _every)
    record = catalog.find_among(catalog.live(found.records), source.dataset)
    if record.state != "ready":
        raise ConfigError([Problem(f"dataset {record.name!r} is not complete", "source", hint="finish it first")])
    found = with_coordinates(nodes, found, source, [*_weighing(pipeline, record), *weighing(found, pipeline.mapped)])
    plan = weighed(found, make_plan(by_index(found, pipeline.mapped, record), record))
    list(questions(found, pipeline, plan))  # what does not fit is said before anything runs
    return found, plan


def _every(path: str) -> bool:
    return True


def _again_nbytes(found: Survey, pipeline: StatisticsPipeline, plan: Plan) -> int:
    """Decoded bytes of the arrays that more than one pass has to decode."""
    waiting = {array.path for array, *_ in statistics.look_up(found, plan)[1]}
    again = {
        path
        for one in questions(found, pipeline, plan)
        if one.array.path in waiting or len(passes_of(one, what_is_missing(found, pipeline, plan, one))) > 1
        for path in one.flow.paths
    }
    return decoded_nbytes(plan.source.array(path) for path in sorted(again))


def _weighing(pipeline: StatisticsPipeline, record: DatasetRecord) -> Iterable[str]:
    """The arrays that weights are computed from."""
    text = pipeline.statistics.weights
    try:
        return paths_of(record, text).values() if text is not None else ()
    except StepError as error:
        raise ConfigError([Problem(error.message, "statistics.weights", hint=error.hint)]) from error


def questions(found: Survey, pipeline: StatisticsPipeline, plan: Plan) -> Iterator[Question]:
    """What is asked, array by array. ConfigError for dimensions, conditions and weights that do not fit one."""
    asked, isel, selected = pipeline.statistics, plan.spec.source.isel, select(pipeline.mapped, plan.source)
    parts = ranges(plan.source, sorted(selected), isel) if isel else {}
    others = set(plan.source.arrays) - selected
    for array in plan.arrays:
        if array.path in others:
            continue
        flow, place = array.flow, "statistics"
        try:
            for step in asked.masked(array.specs[-1]):
                flow = flow.then(step)
            keep, place = asked.keep(array.specs[-1]), "statistics.weights"
            text = asked.weights
            weights = None if text is None else weights_of(array, plan.source, text, found.coordinates, parts)
        except StepError as error:
            reason = f"cannot be taken of array {array.path!r}: {error.message}"
            raise ConfigError([Problem(reason, place, hint=error.hint)]) from error
        yield Question(asked, array, flow, keep, weights)


def what_is_missing(found: Survey, pipeline: StatisticsPipeline, plan: Plan, question: Question) -> list[str]:
    """The kinds of what would have to be computed: what is not kept with the source."""
    if question.array.first_unresolved() is not None:
        return [one.kind for one in question.requests((0.0, 1.0))]
    asked = question.requests(None)
    keys = {one.kind: statistics.key_of(found, plan.source, question.flow, one) for one in asked}
    missing = [kind for kind, key in keys.items() if key not in plan.source.statistics]
    if pipeline.statistics.histogram is None or "histogram" in keys:
        return missing
    if "moments" in missing:
        return [*missing, "histogram"]
    bounds = _bounds(asked[0].read(plan.source.statistics[keys["moments"]]))
    last = question.requests(bounds)[-1]
    return missing + (
        [] if statistics.key_of(found, plan.source, question.flow, last) in plan.source.statistics else ["histogram"]
    )


def passes_of(question: Question, missing: Sequence[str]) -> list[Request]:
    """What is asked in each pass that computes the kinds that are `missing`. A histogram without a range comes after the extrema; for the
    plan it has some range."""
    at_once = tuple(one for one in question.requests(None) if one.kind in missing)
    later = [one for one in question.requests((0.0, 1.0)) if one.kind in missing and one.kind not in _kinds(at_once)]
    return [*([Several(at_once)] if at_once else []), *later]


def _kinds(asked: Sequence[Request]) -> list[str]:
    return [one.kind for one in asked]


def _answer(run: Run, found: Survey, pipeline: StatisticsPipeline, question: Question) -> tuple[dict[str, Any], int] | None:
    """The statistics of one array as plain data, and how many chunks were not read for that they were kept; None when chunks failed.

    A histogram whose range is not given has to wait for the extrema: a second pass."""
    chunks = sum(run.source.array(path).grid.size for path in question.flow.paths)
    values: dict[str, Any] = {}
    skipped, bounds = 0, None
    while left := [one for one in question.requests(bounds) if one.kind not in values]:
        fresh = _take(run, found, pipeline, question, left, values)
        if fresh is None:
            return None
        if not fresh:
            skipped += chunks
            run.notes.append(f"{question.array.path}: {', '.join(one.kind for one in left)} are kept with {run.source.name}")
        bounds = _bounds(values["moments"])
    return _as_data(question, values), skipped


def _take(
    run: Run, found: Survey, pipeline: StatisticsPipeline, question: Question, asked: list[Request], values: dict[str, Any]
) -> bool | None:
    """Put what is asked for into `values`, by kind; whether anything had to be computed, None when chunks failed."""
    source = catalog.find(run.connection, run.source.name)
    keys = {one: statistics.key_of(found, run.source, question.flow, one) for one in asked}
    missing = tuple(one for one in asked if keys[one] not in source.statistics)
    values.update({one.kind: one.read(source.statistics[keys[one]]) for one in asked if one not in missing})
    if not missing:
        return False
    backend = select_backend(pipeline.run.backend)
    reduced = statistics.reduce_flow(run, found, question.flow, Several(missing), backend, [keys[one] for one in missing])
    if reduced is None:
        return None
    fresh = dict(zip(missing, reduced.value.parts, strict=True))
    values.update({one.kind: value for one, value in fresh.items()})
    statistics.keep(run, {keys[one]: value.to_dict() for one, value in fresh.items()} | dict(reduced.partials))
    return True


def _bounds(moments: Any) -> tuple[float, float]:
    """A range for the histogram, from the extrema of all; one that holds nothing when there are none, or all are equal."""
    some = moments.count > 0
    low = float(moments.minimum[some].min()) if some.any() else 0.0
    high = float(moments.maximum[some].max()) if some.any() else 1.0
    if not np.isfinite([low, high]).all():
        reason = "there are infinite values, so the histogram has no range of its own"
        raise ConfigError([Problem(reason, "statistics.histogram", hint="give `range`")])
    return (low, high) if low < high else (low - 0.5, low + 0.5)


def _as_data(question: Question, values: dict[str, Any]) -> dict[str, Any]:
    """For the receipt: lists in the shape of the kept axes."""
    asked, moments, kept = question.asked, values["moments"], question.keep
    weighted = isinstance(moments, WeightedMoments)
    some, weight = moments.count > 0, moments.weight if weighted else moments.count
    data: dict[str, Any] = {
        "per": [question.spec.dims[axis] or axis for axis in kept],
        "shape": [question.spec.shape[axis] for axis in kept],
        "count": moments.count.tolist(),
        **({"weight": _plain(weight)} if weighted else {}),
        "mean": _plain(np.where(weight > 0, moments.mean, np.nan)),
        "std": _plain(moments.std),
        "min": _plain(np.where(some, moments.minimum, np.nan)),
        "max": _plain(np.where(some, moments.maximum, np.nan)),
        "sum": _plain(moments.mean * weight),
    }
    if asked.quantiles:
        sketches = values["quantiles"]
        data["quantiles"] = {f"{share:g}": _plain(sketches.quantile(share)) for share in asked.quantiles}
    if asked.histogram is not None:
        histogram = values["histogram"]
        data["histogram"] = {name: getattr(histogram, name).tolist() for name in ("edges", "counts", "below", "above")}
    return data


def _plain(values: NDArray[np.float64]) -> Any:
    """Nested lists that JSON can write; None for what is no number."""
    plain = np.asarray(values).astype(object)
    plain[~np.isfinite(np.asarray(values))] = None
    return plain.tolist()
