"""The steps by the names they have in YAML."""

from __future__ import annotations

from gpuflow.steps.base import Operation
from gpuflow.steps.cast import Cast
from gpuflow.steps.clip import Clip
from gpuflow.steps.crop import Crop
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
from gpuflow.steps.windows import Difference, Rolling

_ALL: tuple[type[Operation], ...] = (
    *(Cast, Clip, Crop, Difference, Drop, FillNan, Gaussian, Map, Maximum, Median, Minimum, Normalize, OneHot, Pad, Resize),
    *(Rolling, Select, Stack, Standardize, Transpose, Unpack),
)
STEPS: dict[str, type[Operation]] = {step.kind: step for step in _ALL}


def find(kind: str) -> type[Operation]:
    """The class of a step. StepError naming the nearest known step."""
    if kind not in STEPS:
        raise StepError(f"unknown step `{kind[:40]}`", suggestion(kind, STEPS))
    return STEPS[kind]
