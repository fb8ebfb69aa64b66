"""The steps by the names they have in YAML: gpuflow's own, and those of installed distributions.

A distribution adds steps by the entry-point group `gpuflow.steps`: the name is the step's `kind`, the object its class. It has to be
installed where pipelines are started and on every worker. gpuflow's own names cannot be taken."""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points

from gpuflow.steps.apply import Apply
from gpuflow.steps.base import Join, Operation, Step
from gpuflow.steps.cast import Cast
from gpuflow.steps.clip import Clip
from gpuflow.steps.crop import Crop
from gpuflow.steps.exec import Exec
from gpuflow.steps.fill_nan import FillNan
from gpuflow.steps.gaussian import Gaussian
from gpuflow.steps.map import Map
from gpuflow.steps.normalize import Normalize
from gpuflow.steps.one_hot import OneHot
from gpuflow.steps.pad import Pad
from gpuflow.steps.parameters import StepError, suggestion
from gpuflow.steps.pick import Drop, Select
from gpuflow.steps.rank import Maximum, Median, Minimum
from gpuflow.steps.resize import Resize
from gpuflow.steps.stack import Stack
from gpuflow.steps.standardize import Standardize
from gpuflow.steps.transpose import Transpose
from gpuflow.steps.unpack import Unpack
from gpuflow.steps.where import Mask, Where
from gpuflow.steps.windows import Difference, Rolling

GROUP = "gpuflow.steps"

_ALL: tuple[type[Operation], ...] = (
    *(Apply, Cast, Clip, Crop, Difference, Drop, Exec, FillNan, Gaussian, Map, Mask, Maximum, Median, Minimum, Normalize, OneHot),
    *(Pad, Resize, Rolling, Select, Stack, Standardize, Transpose, Unpack, Where),
)
STEPS: dict[str, type[Operation]] = {step.kind: step for step in _ALL}
"""gpuflow's own."""


def find(kind: str) -> type[Operation]:
    """The class of a step. StepError naming the nearest known step, or the distribution whose step cannot be loaded."""
    if kind in STEPS:
        return STEPS[kind]
    found = _installed().get(kind)
    if not found:
        raise StepError(f"unknown step `{kind[:40]}`", suggestion(kind, known()))
    if len(found) > 1:
        names = " and ".join(sorted(_distribution(one) for one in found))
        raise StepError(f"the step `{kind}` is in {names}", "uninstall all but one of them")
    return _load(found[0])


def known() -> list[str]:
    """The names of all steps."""
    return sorted({*STEPS, *_installed()})


@lru_cache(maxsize=1)
def _installed() -> dict[str, tuple[EntryPoint, ...]]:
    """Entry points by name, not loaded. An editable install may be listed twice: equal ones count once."""
    found: dict[str, dict[str, EntryPoint]] = {}
    for one in entry_points(group=GROUP):
        if one.name not in STEPS:
            found.setdefault(one.name, {})[one.value] = one
    return {name: tuple(ones.values()) for name, ones in found.items()}


@lru_cache(maxsize=64)
def _load(one: EntryPoint) -> type[Operation]:
    try:
        step = one.load()
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise StepError(
            f"the step `{one.name}` of {_distribution(one)} cannot be loaded: {reason}", "mend or uninstall it"
        ) from error
    if not (isinstance(step, type) and issubclass(step, Step | Join)) or step.kind != one.name:
        reason = f"{one.value} is no gpuflow.steps.base.Step or Join of that kind"
        raise StepError(f"the step `{one.name}` of {_distribution(one)} cannot be used: {reason}", "mend or uninstall it")
    return step


def _distribution(one: EntryPoint) -> str:
    return f"{one.dist.name} {one.dist.version}" if one.dist else one.value
