"""The steps by the names they have in YAML."""

from __future__ import annotations

from gpuflow.steps.base import Step
from gpuflow.steps.cast import Cast
from gpuflow.steps.clip import Clip
from gpuflow.steps.fill_nan import FillNan
from gpuflow.steps.map import Map
from gpuflow.steps.normalize import Normalize
from gpuflow.steps.parameters import StepError, suggestion
from gpuflow.steps.standardize import Standardize
from gpuflow.steps.unpack import Unpack

STEPS: dict[str, type[Step]] = {step.kind: step for step in (Cast, Clip, FillNan, Map, Normalize, Standardize, Unpack)}


def find(kind: str) -> type[Step]:
    """The class of a step. StepError naming the nearest known step."""
    if kind not in STEPS:
        raise StepError(f"unknown step `{kind[:40]}`", suggestion(kind, STEPS))
    return STEPS[kind]
