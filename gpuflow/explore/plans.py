"""`gpuflow.plan`: what a pipeline would do, and what it would make of one chunk."""

from __future__ import annotations

import io
import os
from dataclasses import replace
from typing import Any

import numpy as np
from rich.console import Console

from gpuflow.backends.select import select_backend
from gpuflow.cluster.connection import Connection
from gpuflow.cluster.locating import ClientLocator
from gpuflow.display.plan import plan_details, plan_view
from gpuflow.display.preview import Preview, Side
from gpuflow.display.run_card import plan_card
from gpuflow.errors import NotFound
from gpuflow.execution import statistics
from gpuflow.execution.caching import caching
from gpuflow.execution.devices import choose_device
from gpuflow.execution.evaluate import Boxes, Evaluation
from gpuflow.execution.expected import expected
from gpuflow.execution.memory import check_memory
from gpuflow.execution.run import look, plan_all_chunks, prepare
from gpuflow.explore.blocks import decode_chunk
from gpuflow.explore.dataset import Locators, locator_for
from gpuflow.facade import as_spec
from gpuflow.pipelines.flow import Apply, Flow
from gpuflow.pipelines.pipeline import Pipeline
from gpuflow.pipelines.plan import ArrayPlan, Plan, spec_of
from gpuflow.pipelines.pulls import Pull, overlaps, pulls_of
from gpuflow.pipelines.spec import PipelineSpec
from gpuflow.steps.base import Region, Step


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
        checked, record = prepare(found, spec)
        where = locator.connection if isinstance(locator, ClientLocator) else locator
        memory = check_memory(where, found, checked, spec.run.workers)
        memory = caching(found, checked, memory, record).of(memory)
        checked, _ = statistics.look_up(found, checked, begun=record)
        chunks, device = plan_all_chunks(found, checked), choose_device(where, spec).told
        details = plan_details(checked, chunks, device, memory, expected(where, found, checked, chunks, device))
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
        chosen = arrays[array] if array is not None else max(arrays.values(), key=lambda one: one.target.grid.size)
        source, grid = self._checked.source, chosen.target.grid
        if not 0 <= number < grid.size:
            raise NotFound("chunk", f"{source.name}/{chosen.path}/{number}", hint=f"it has {grid.size}")
        region = grid.region(number)
        boxes = {one.path: (one.box, self._read(one)) for one in pulls_of(chosen.flow, chosen.specs, chosen.sources, region)}
        resolved, alone = self._resolved(chosen, boxes, region)
        after = self._evaluated(resolved.flow, resolved, boxes, region)
        path, metadata = chosen.flow.paths[0], chosen.source
        units = str(metadata.attributes.get("units", ""))
        note = " (statistics of this chunk alone)" if alone else ""
        before = Side(f"{path}, chunk {number}", boxes[path][1], metadata.dims, units)
        return Preview([before, Side(f"after the steps{note}", after, chosen.target.dims)])

    def _read(self, pull: Pull) -> Any:
        """The part of an array of the source."""
        source = self._checked.source
        metadata = source.array(pull.path)
        generations = self._locator.generations(source.name, pull.path, metadata.grid.size)
        out = np.empty([axis.stop - axis.start for axis in pull.box], metadata.dtype)
        for chunk, in_chunk, in_box in overlaps(metadata.grid, pull.box):
            out[in_box] = decode_chunk(self._locator, source, pull.path, chunk, int(generations[chunk]))[in_chunk]
        return out

    def _evaluated(self, flow: Flow, array: ArrayPlan, boxes: Boxes, region: Region) -> Any:
        specs = flow.specs({path: spec_of(array.sources[path]) for path in flow.paths})
        return Evaluation(flow, specs, select_backend(self.spec.run.backend))(boxes, region, np.empty)

    def _resolved(self, array: ArrayPlan, boxes: Boxes, region: Region) -> tuple[ArrayPlan, bool]:
        """The array with all parameters; whether some were computed of what is here only. StatisticsError when it is not enough."""
        alone = False
        while (unresolved := array.first_unresolved()) is not None:
            number, request = unresolved
            node = array.flow.nodes[number]
            assert isinstance(node, Apply), node
            assert isinstance(node.operation, Step), node
            alone, below = True, node.of[0]
            before, wanted = array.specs[below], array.flow.wanted(array.specs, region)[below]
            shape, keep = before.shape, request.keep
            part = tuple(slice(max(0, axis.start), min(size, axis.stop)) for axis, size in zip(wanted, shape, strict=True))
            values = self._evaluated(array.flow.before(number), array, boxes, part)
            found = request.of(values, part).embed(tuple(shape[axis] for axis in keep), tuple(part[axis] for axis in keep))
            array = replace(array, flow=array.flow.with_step(number, node.operation.resolve(before, found, array.path)))
        return array, alone

    def close(self) -> None:
        """Let go of the nodes' stores."""
        self._locator.close()

    def _repr_html_(self) -> str:
        return plan_card(self.details, Pipeline.from_spec(self.spec).to_yaml())

    def __repr__(self) -> str:
        text = io.StringIO()
        Console(file=text, width=140, force_jupyter=False).print(plan_view(self.details))
        return text.getvalue().rstrip()
