"""When a step takes its statistics from the data anew, once that has grown: `refit: never`, `always`, or `drift > 0.05`.

Pure. The default is never: what was made of the output, models above all, was made with the numbers of the first fit, and one file more
in the source must not change them, nor make everything again. How far the data has moved since is said at every run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuflow.datasets.growth import settled
from gpuflow.pipelines.fingerprint import cut_shorts, fingerprint
from gpuflow.steps.base import Request
from gpuflow.steps.channels import ALWAYS, ChannelStep, drift_limit
from gpuflow.storage.record import DatasetRecord


@dataclass(frozen=True)
class Fit:
    """The statistics that a step was resolved with. key: of what they were computed from; created: of the source that was; of: by array,
    how many of its chunks were not going to change by growing, and their digest."""

    key: str
    created: str
    of: Mapping[str, Any]
    statistics: Mapping[str, Any]

    @classmethod
    def taken(cls, key: str, source: DatasetRecord, digests: Mapping[str, NDArray[Any]], statistics: Any) -> Fit:
        """From `source` as it is. digests: (chunks,) V16 of each array that was read, also for weights."""
        of = {}
        for path, tokens in digests.items():
            grid = source.array(path).grid
            of[path] = [settled(grid), _digest(source, path, tokens, settled(grid))]
        return cls(key, source.created, of, statistics)

    def is_of_the_beginning(self, source: DatasetRecord, digests: Mapping[str, NDArray[Any]]) -> bool:
        """Whether the source was what it is, but shorter."""
        if self.created != source.created or self.of.keys() != digests.keys():
            return False
        counts = {path: count for path, (count, _) in self.of.items()}
        return all(
            counts[path] <= source.array(path).grid.size and _digest(source, path, digests[path], counts[path]) == told
            for path, (_, told) in self.of.items()
        )

    def to_data(self) -> dict[str, Any]:
        return {"key": self.key, "created": self.created, "of": dict(self.of), "statistics": dict(self.statistics)}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Fit:
        return cls(**data)


def _digest(source: DatasetRecord, path: str, digests: NDArray[Any], count: int) -> str:
    return fingerprint(cut_shorts(digests, source.array(path).grid)[:count].tobytes().hex())


@dataclass(frozen=True, slots=True)
class Decision:
    """kept: whether the statistics of the first fit stay. said: in a line."""

    kept: bool
    said: str


def decide(step: ChannelStep, path: str, request: Request, fit: Fit, present: Mapping[str, Any]) -> Decision:
    """Of a step whose source has grown since `fit`. present: the statistics of what there is now."""
    before, after = (step.measured(request.read(data)) for data in (fit.statistics, present))
    one, other = step.parameters
    what = f"{path}: {step.kind}"
    if any(before[name].shape != after[name].shape for name in step.parameters):
        return Decision(False, f"{what} has other indices of `per` now, so everything is made anew")
    moved = drift(step, before, after)
    how_far = f"{one} and {other} have moved by {moved:.3g} of {step.unit}"
    said = f"refit: {step.refit or 'never'}"
    limit = drift_limit(step.refit)
    if step.refit == ALWAYS or (limit is not None and moved > limit):
        return Decision(False, f"{what} is fitted anew ({said}): {how_far}; everything is made anew")
    return Decision(True, f"{what} keeps the fit that it began with ({said}): {how_far} since")


def drift(step: ChannelStep, before: Mapping[str, NDArray[np.float64]], after: Mapping[str, NDArray[np.float64]]) -> float:
    """By how much the two parameters have moved, in units of the scale before (the standard deviation, or the range): the greatest of all
    indices of `per`. Infinite where the scale was none."""
    _, scale = step.operands(before)
    with np.errstate(all="ignore"):
        moved = [np.abs(after[name] - before[name]) / scale for name in step.parameters]
    worst = np.array(
        [np.where((part == 0) | (after[n] == before[n]), 0.0, part) for n, part in zip(step.parameters, moved, strict=True)]
    )
    return float("inf") if np.isnan(worst).any() else float(worst.max(initial=0.0))
