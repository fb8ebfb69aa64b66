"""Light augmentations, of whole batches on the device where they are; and the random numbers that belong to their samples.

An augmentation is called with a batch and its `Draws`, and returns the batch. What it draws depends on the seed, the epoch and the sample,
so that a sample is augmented alike on however many ranks, and after a resume."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuflow.training.keyed import key_of, uniform


@dataclass(frozen=True)
class Draws:
    """Random numbers of the samples of a batch. device: where they are wanted; `numpy` for arrays."""

    key: int
    epoch: int
    samples: NDArray[np.int64]
    device: str

    def uniform(self, name: str) -> Any:
        """(samples,) float32 in [0, 1); others for another `name`."""
        drawn = uniform(key_of("augment", self.key, self.epoch, name), self.samples).astype(np.float32)
        if self.device == "numpy":
            return drawn
        import torch

        return torch.from_numpy(drawn).to(self.device)


@dataclass(frozen=True)
class Flip:
    """Mirror `names` of a sample together along `axis` of the batch's arrays (-1: left and right), with a probability."""

    names: tuple[str, ...]
    axis: int = -1
    probability: float = 0.5

    def __call__(self, batch: dict[str, Any], draws: Draws) -> dict[str, Any]:
        """batch: arrays of (samples, ...)."""
        chosen = draws.uniform(f"flip {self.axis}") < self.probability
        return {**batch, **{name: self._flipped(batch[name], chosen) for name in self.names}}

    def _flipped(self, values: Any, chosen: Any) -> Any:
        where = chosen.reshape((-1, *(1 for _ in values.shape[1:])))
        if isinstance(values, np.ndarray):
            return np.where(where, np.flip(values, self.axis), values)
        import torch

        return torch.where(where, torch.flip(values, (self.axis,)), values)


@dataclass(frozen=True)
class Scale:
    """`values * factors[name] + offset` as float32: bytes that were loaded as such become numbers on the device."""

    factors: Mapping[str, float]
    offset: float = 0.0

    def __call__(self, batch: dict[str, Any], draws: Draws) -> dict[str, Any]:
        """batch: arrays of (samples, ...)."""
        return {**batch, **{name: self._scaled(batch[name], factor) for name, factor in self.factors.items()}}

    def _scaled(self, values: Any, factor: float) -> Any:
        wide = values.astype(np.float32) if isinstance(values, np.ndarray) else values.float()
        return (
            wide * np.float32(factor) + np.float32(self.offset) if isinstance(values, np.ndarray) else wide * factor + self.offset
        )
