"""Where the steps of a pipeline are computed: what it asks for, against what the workers have.

What counts is the cluster's devices and not the client's. What cannot be is said before anything starts or is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpuflow.backends.devices import Library
from gpuflow.backends.select import device_for_arrays, library_of, say_of_auto, select_device
from gpuflow.cluster.connection import Connection
from gpuflow.cluster.places import fits, needs_device
from gpuflow.datasets.catalog import Nodes
from gpuflow.datasets.survey import Survey
from gpuflow.errors import DeviceUnavailable
from gpuflow.pipelines.plan import Plan
from gpuflow.pipelines.spec import PipelineSpec
from gpuflow.pipelines.statistics import StatisticsPipeline
from gpuflow.steps.base import Operation

_REMEDY = "use device: auto or cpu"
_NAMED = 8  # nodes in an error


@dataclass(frozen=True, slots=True)
class Chosen:
    """steps: what a worker compiles for: cpu, cuda, or auto: its device where that is possible. worker: what it must have, as
    `ChunkGroup.device`. told: where that is, for people."""

    steps: str = "cpu"
    worker: str = "cpu"
    told: str = "cpu"


ANYWHERE = Chosen()


def choose_device(nodes: Nodes, spec: PipelineSpec | StatisticsPipeline) -> Chosen:
    """For a run on a cluster; or on the embedded one that a run on this machine would start, where `nodes` is none.

    DeviceUnavailable when a device is named, or a step cannot do without, and there is none."""
    if not isinstance(nodes, Connection):
        return choose_here(spec)
    asked = spec.run.device if spec.run.device != "auto" else nodes.device
    needed = _needed(spec.steps, asked)
    return chosen(asked, spec.run.backend, needed, list(nodes.seen()["workers"].values()))


def choose_here(spec: PipelineSpec | StatisticsPipeline) -> Chosen:
    """The same on this machine."""
    asked, backend = spec.run.device, spec.run.backend
    needed = _needed(spec.steps, asked)
    for library, step in needed.items():
        device_for_arrays(library, step)
    device = select_device(asked, backend)
    if asked != "auto":
        return Chosen(device.partition(":")[0], device, device)
    if needed:
        return Chosen("auto", "cuda", "cuda")
    return Chosen() if device == "cpu" else Chosen("auto", "auto", device)


def chosen(asked: str, backend: str, needed: Mapping[Library, str], workers: Sequence[Mapping[str, Any]]) -> Chosen:
    """For `workers` that say of themselves what `NodeInfo` has. needed: libraries that a step cannot do without on a device, with the step.

    Pure but for a line in the log."""
    wanted = asked if needs_device(asked) else "cuda"
    with_device = [worker for worker in workers if fits(worker["device"], wanted)]
    must = needs_device(asked) or bool(needed)
    if must and not with_device:
        who = f"device: {asked}" if needs_device(asked) else next(iter(needed.values()))
        raise DeviceUnavailable(
            f"{who} needs a worker with a CUDA device, and there is none: {_reasons(workers, wanted)}", _REMEDY
        )
    for library, step in needed.items():
        _refuse_lacking(with_device, library, step)
    own = library_of(backend)
    if needs_device(asked):
        _refuse_lacking(with_device, own, f"backend: {backend}")
        return Chosen("cuda", asked, f"{asked}: {_count(with_device)}")
    if asked == "cpu":
        return Chosen()
    usable = [worker for worker in with_device if own not in worker["lacks"]]
    if needed:
        return Chosen("auto", "cuda", f"cuda: {_count(with_device)}")
    if not usable:
        say_of_auto("cpu", _reasons(workers, wanted))
        return Chosen()
    others = len(workers) - len(usable)
    return Chosen("auto", "auto", f"auto: {_count(usable)}" + (f", cpu on {others} workers" if others else ""))


def workers_for(
    workers: Sequence[Mapping[str, Any]], device: str, library: Library, who: str, remedy: str = _REMEDY
) -> list[Mapping[str, Any]]:
    """Those that have `device` (cuda or cuda:N). DeviceUnavailable when there are none, or `library` is of no use on some. who: wants
    it."""
    found = [worker for worker in workers if fits(worker["device"], device)]
    if not found:
        what = f"{who} needs a worker with a CUDA device, and there is none: {_reasons(workers, device)}"
        raise DeviceUnavailable(what, remedy)
    _refuse_lacking(found, library, who, remedy)
    return found


def check_in_place(found: Survey, plan: Plan, device: Chosen, workers: Sequence[Mapping[str, Any]]) -> None:
    """DeviceUnavailable when chunks that are changed where they lie, lie on nodes without the device that a run needs."""
    if not plan.spec.output.in_place or not needs_device(device.worker):
        return
    able = {worker["node"] for worker in workers if fits(worker["device"], device.worker)}
    for array in plan.arrays:
        table = found.table(plan.source.name, array.path, array.source.grid.size)
        sets = [table.sets[number] for number in np.unique(table.holders[table.present]).tolist()]
        if unable := [nodes for nodes in sets if not able & set(nodes)]:
            where = ", ".join(sorted(set().union(*unable)))
            reason = f"chunks of {array.path} are changed in place, on nodes without a worker for {device.worker}: {where}"
            raise DeviceUnavailable(reason, "write a new dataset, start such workers there, or use device: auto")


def _needed(steps: Sequence[Operation], asked: str) -> dict[Library, str]:
    """Libraries that steps get their arrays from, on a device, with the first such step of each. DeviceUnavailable for device: cpu."""
    found: dict[Library, str] = {}
    for step in steps:
        if step.on_cuda is not None:
            found.setdefault(step.on_cuda, f"step {step.title}")
    if found and asked == "cpu":
        raise DeviceUnavailable(
            f"{next(iter(found.values()))} needs a CUDA device, and device is cpu", "use device: auto or cuda"
        )
    return found


def _refuse_lacking(workers: Sequence[Mapping[str, Any]], library: Library, what: str, remedy: str = _REMEDY) -> None:
    lacking = {worker["node"]: worker["lacks"][library] for worker in workers if library in worker["lacks"]}
    if lacking:
        raise DeviceUnavailable(f"{what} cannot use the CUDA devices of all workers: {_listed(lacking)}", remedy)


def _reasons(workers: Sequence[Mapping[str, Any]], wanted: str) -> str:
    """Why none of the workers fits, by node."""
    found = dict[str, str]()
    for worker in workers:
        own = f"it has {worker['device']} ({worker['device_name']})"
        if needs_device(worker["device"]) and fits(worker["device"], wanted):
            own = "; ".join(worker["lacks"].values())
        found.setdefault(worker["node"], worker["why_cpu"] or own)
    return _listed(found)


def _listed(reasons: Mapping[str, str]) -> str:
    shown = [f"node {node}: {reason}" for node, reason in sorted(reasons.items())]
    return "; ".join(shown[:_NAMED]) + (f"; and {len(shown) - _NAMED} more nodes" if len(shown) > _NAMED else "")


def _count(workers: Sequence[Mapping[str, Any]]) -> str:
    kinds = Counter(worker["device_name"] for worker in workers)
    return ", ".join(f"{count} x {name}" for name, count in sorted(kinds.items()))
