"""Steps whose statistics are weighted by coordinates of the source: from their words to numbers, before anything is asked about the data.

It is the numbers that kept statistics belong to (see `gpuflow.pipelines.weights`)."""

from __future__ import annotations

from dataclasses import replace

from gpuflow.datasets import catalog
from gpuflow.datasets.survey import Survey
from gpuflow.errors import ConfigError, Problem
from gpuflow.pipelines.flow import Apply
from gpuflow.pipelines.plan import ArrayPlan, Plan, select
from gpuflow.pipelines.slices import ranges
from gpuflow.pipelines.spec import PipelineSpec
from gpuflow.pipelines.weights import Parts, paths_of, weights_of
from gpuflow.steps.base import StepError
from gpuflow.steps.standardize import Standardize


def weighing(found: Survey, spec: PipelineSpec) -> list[str]:
    """The coordinates that steps name, once the source is there. ConfigError for what is none."""
    record = catalog.live(found.records).get(spec.source.dataset)
    paths, problems = list[str](), list[Problem]()
    if record is None or record.state != "ready":
        return paths
    for number, step in enumerate(spec.steps):
        if isinstance(step, Standardize) and step.weights is not None:
            try:
                paths += paths_of(record, step.weights).values()
            except StepError as error:
                problems.append(Problem(error.message, _place(number), hint=error.hint))
    if problems:
        raise ConfigError(problems)
    return paths


def weighed(found: Survey, plan: Plan) -> Plan:
    """The plan, whose steps know their weights. ConfigError lists those that do not fit the arrays that they are for."""
    steps = enumerate(plan.spec.steps)
    numbers = {step.weights: number for number, step in steps if isinstance(step, Standardize) and step.weights is not None}
    if not numbers:
        return plan
    isel = plan.spec.source.isel
    parts = ranges(plan.source, sorted(select(plan.spec, plan.source)), isel) if isel else {}
    arrays, problems = [], list[Problem]()
    for array in plan.arrays:
        flow = array.flow
        for number, node in enumerate(flow.nodes):
            step = node.operation if isinstance(node, Apply) else None
            if isinstance(node, Apply) and isinstance(step, Standardize) and step.weights is not None:
                try:
                    flow = flow.with_step(number, _weighed(found, plan, array, number, step, parts))
                except StepError as error:
                    reason = f"cannot be applied to array {array.path!r}: {error.message}"
                    problems.append(Problem(reason, _place(numbers[step.weights]), hint=error.hint))
        arrays.append(replace(array, flow=flow))
    if problems:
        raise ConfigError(problems)
    return replace(plan, arrays=tuple(arrays))


def _weighed(found: Survey, plan: Plan, array: ArrayPlan, number: int, step: Standardize, parts: Parts) -> Standardize:
    assert step.weights is not None, step
    before = replace(array, flow=array.flow.before(number))
    return step.weighed(weights_of(before, plan.source, step.weights, found.coordinates, parts))


def _place(number: int) -> str:
    return f"steps[{number}].{Standardize.kind}.weights"
