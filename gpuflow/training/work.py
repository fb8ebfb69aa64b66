"""What a rank does for a batch: which samples are its own, and what is made of their arrays. Pickles; knows of no thread or file."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuflow.errors import SampleError
from gpuflow.training.cut import Cut
from gpuflow.training.keyed import key_of
from gpuflow.training.order import Batches
from gpuflow.training.placement import Placement

Sample = dict[str, Any]
"""One sample: arrays by name, and labels."""

PADDING = -1
"""Number of a sample that only fills up the last batch."""


@dataclass(frozen=True)
class Chosen:
    """A rank's share of a global batch. samples: their numbers in the dataset; offsets: of their crops, by the name of the axis; numbers:
    the same as `samples`, `PADDING` for those that do not count."""

    epoch: int
    batch: int
    samples: NDArray[np.int64]
    numbers: NDArray[np.int64]
    offsets: Mapping[str, Sequence[int]]


@dataclass(frozen=True, eq=False)
class Work:
    """selected: the samples of the dataset that are used, by the numbers that the order knows; None for all. placement: None when samples
    are dealt out in turn. labels: by name, one a sample of the dataset. number_as: under which name the samples' numbers go along."""

    dataset: str
    cut: Cut
    batches: Batches
    key: int
    rank: int = 0
    world: int = 1
    selected: NDArray[np.int64] | None = None
    placement: Placement | None = None
    labels: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    number_as: str | None = None
    transform: Callable[..., Any] | None = None
    collate: Callable[[list[Sample]], Any] | None = None

    def choose(self, epoch: int, batch: int) -> Chosen:
        """This rank's samples of a global batch. The same whenever it is asked."""
        ordered, count = self.batches.samples(epoch, batch)
        samples = ordered if self.selected is None else self.selected[ordered]
        dealt = np.arange(self.rank, len(samples), self.world)
        mine = dealt if self.placement is None else self.placement.split(samples)[self.rank]
        own = samples[mine]
        return Chosen(epoch, batch, own, np.where(mine < count, own, PADDING), self.cut.offsets(self.key, epoch, own))

    def finish(self, chosen: Chosen, arrays: Mapping[str, NDArray[Any]]) -> Any:
        """The batch. SampleError names the sample for which the user's function raised, or that has another shape than the others."""
        batch: dict[str, Any] = {}
        for path, array in arrays.items():
            batch.update(self._pieces(path, array))
        for name, values in self.labels.items():
            batch[name] = values[chosen.samples]
        if self.transform is None and self.collate is None:
            return self._numbered(batch, chosen)
        samples = [{name: values[place] for name, values in batch.items()} for place in range(len(chosen.samples))]
        if self.transform is not None:
            samples = [
                self._transformed(sample, number, chosen.epoch) for sample, number in zip(samples, chosen.samples, strict=True)
            ]
        if self.collate is not None:
            return self._numbered(self.collate(samples), chosen)
        return self._numbered(stack(self.dataset, samples, chosen.samples) if samples else batch, chosen)

    def _pieces(self, path: str, array: NDArray[Any]) -> dict[str, NDArray[Any]]:
        if not self.cut.pieces:
            return {path: array}
        found, start = {}, 0
        for name, rows in self.cut.pieces.items():
            found[f"{path}.{name}"] = array[:, start : start + rows]
            start += rows
        return found

    def _numbered(self, batch: Any, chosen: Chosen) -> Any:
        if self.number_as is not None and isinstance(batch, dict):
            batch[self.number_as] = chosen.numbers
        return batch

    def _transformed(self, sample: Sample, number: int, epoch: int) -> Sample:
        assert self.transform is not None
        try:
            if not self._takes_random:
                found = self.transform(sample)
            else:
                found = self.transform(sample, np.random.default_rng(key_of("transform", self.key, epoch, int(number))))
        except Exception as error:
            raise SampleError(self.dataset, int(number), f"the transform raised {type(error).__name__}: {error}") from error
        if not isinstance(found, dict):
            reason = f"the transform returned {type(found).__name__}, not a dict of arrays"
            raise SampleError(self.dataset, int(number), reason, "" if self.collate else "return a dict, or give collate=")
        return found

    @cached_property
    def _takes_random(self) -> bool:
        """Whether the transform has a second parameter, for a NumPy generator of the sample's own."""
        assert self.transform is not None
        try:
            kinds = [parameter.kind for parameter in inspect.signature(self.transform).parameters.values()]
        except (TypeError, ValueError):  # built in: it does not tell
            return False
        places = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        return sum(kind in places for kind in kinds) > 1


def stack(dataset: str, samples: Sequence[Sample], numbers: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """Samples with the same names and shapes as one batch. SampleError names the first that differs from the one before all others."""
    first = {name: np.asarray(value) for name, value in samples[0].items()}
    for sample, number in zip(samples, numbers.tolist(), strict=True):
        if sample.keys() != first.keys():
            reason = f"has {', '.join(sorted(sample))}, sample {numbers[0]} {', '.join(sorted(first))}"
            raise SampleError(dataset, number, reason, "return the same names for every sample")
        for name, value in sample.items():
            if np.shape(value) != first[name].shape:
                reason = f"{name!r} has shape {np.shape(value)}, that of sample {numbers[0]} {first[name].shape}"
                raise SampleError(dataset, number, reason, "bring samples to one shape in `transform`, or give collate=")
    return {name: np.stack([np.asarray(sample[name]) for sample in samples]) for name in first}
