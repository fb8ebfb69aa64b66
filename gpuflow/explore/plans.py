"""`gpuflow.plan`: what a pipeline would do, and what it would make of one chunk."""

from __future__ import annotations

import io
import os
from dataclasses import replace
from typing import Any

from rich.console import Console

from gpuflow.backends.select import select_backend, select_device
from gpuflow.cluster.connection import Connection
from gpuflow.cluster.locating import ClientLocator
from gpuflow.display.plan import plan_details, plan_view
from gpuflow.display.preview import Preview, Side
from gpuflow.display.run_card import plan_card
from gpuflow.errors import NotFound
from gpuflow.execution import statistics
from gpuflow.execution.memory import check_memory
from gpuflow.execution.run import look, plan_all_chunks, prepare
from gpuflow.explore.blocks import decode_chunk
from gpuflow.explore.dataset import Locators, locator_for
from gpuflow.facade import as_spec
from gpuflow.pipelines.pipeline import Pipeline
from gpuflow.pipelines.plan import ArrayPlan, Plan, spec_of
from gpuflow.pipelines.spec import PipelineSpec
from gpuflow.reductions.moments import Moments
from gpuflow.steps.base import Region, Step
from gpuflow.steps.fuse import compile_steps


def plan(
    pipeline: Pipeline | PipelineSpec | str | os.PathLike[str],
    *,
    connection: Connection | None = None,
    root: str | os.PathLike[str] | None = None,
) -> PipelinePlan:
    """Of a pipeline, given as such or as the path of its YAML file; nothing is run, and only metadata is read. See `gpuflow.open` for
    where it is looked for."""
    spec = as_spec(pipeline)
    locator = locator_for(connection, root)
    try:
        found = look(locator, spec)
        checked, _ = prepare(found, spec)
        where = locator.connection if isinstance(locator, ClientLocator) else locator
        memory = check_memory(where, found, checked, spec.run.workers)
        checked, _ = statistics.look_up(found, checked)
        details = plan_details(checked, plan_all_chunks(found, checked), select_device(spec.run.device), memory)
        return PipelinePlan(spec, checked, details, locator)
    except BaseException:
        locator.close()
        raise


class PipelinePlan:
    """details: as `gpuflow plan --json` prints them."""

    def __init__(self, spec: PipelineSpec, checked: Plan, details: dict[str, Any], locator: Locators) -> None:
        self.spec, self.details = spec, details
        self._checked, self._locator = checked, locator

    def preview(self, number: int = 0, array: str | None = None) -> Preview:
        """One chunk before and after the steps (needs matplotlib). A statistic that a run has not computed yet is that of this chunk alone,
        and the title says so."""
        arrays = {one.path: one for one in self._checked.arrays if not one.carried}
        if not arrays or (array is not None and array not in arrays):
            raise NotFound("array", f"{self._checked.source.name}/{array or ''}", sorted(arrays), "no step is for it")
        chosen = arrays[array] if array is not None else max(arrays.values(), key=lambda one: one.source.grid.size)
        source = self._checked.source
        if not 0 <= number < chosen.source.grid.size:
            raise NotFound("chunk", f"{source.name}/{chosen.path}/{number}", hint=f"it has {chosen.source.grid.size}")
        generations = self._locator.generations(source.name, chosen.path, chosen.source.grid.size)
        block = decode_chunk(self._locator, source, chosen.path, number, int(generations[number]))
        region = chosen.source.grid.region(number)
        steps, alone = self._resolved(chosen, block, region)
        kernel = compile_steps(steps, spec_of(chosen.source), select_backend(self.spec.run.backend))
        after = kernel(block.copy(), region)
        dims, units = chosen.source.dims, str(chosen.source.attributes.get("units", ""))
        note = " (statistics of this chunk alone)" if alone else ""
        return Preview([Side(f"{chosen.path}, chunk {number}", block, dims, units), Side(f"after the steps{note}", after, dims)])

    def _resolved(self, array: ArrayPlan, block: Any, region: Region) -> tuple[tuple[Step, ...], bool]:
        """The steps with all parameters; whether some were computed of `block` only. StatisticsError when it is not enough for them."""
        alone, backend, shape = False, select_backend(self.spec.run.backend), array.source.grid.shape
        while (unresolved := array.first_unresolved()) is not None:
            number, request = unresolved
            before, keep, alone = array.steps[:number], request.keep, True
            values = compile_steps(before, spec_of(array.source), backend)(block.copy(), region) if before else block
            moments = Moments.of(values, keep).embed(tuple(shape[axis] for axis in keep), tuple(region[axis] for axis in keep))
            step = array.steps[number].resolve(array.spec_before(number), moments, array.path)
            array = replace(array, steps=(*before, step, *array.steps[number + 1 :]))
        return array.steps, alone

    def close(self) -> None:
        """Let go of the nodes' stores."""
        self._locator.close()

    def _repr_html_(self) -> str:
        return plan_card(self.details, Pipeline.from_spec(self.spec).to_yaml())

    def __repr__(self) -> str:
        text = io.StringIO()
        Console(file=text, width=140, force_jupyter=False).print(plan_view(self.details))
        return text.getvalue().rstrip()
