"""Which samples a batch holds: a function of (key, epoch, batch), and of nothing else.

Pure. A batch is looked up, whatever was delivered before it and on how many ranks; no table as long as the dataset is made for it. In
every order but `weighted` an epoch has each sample exactly once.

How well an order mixes is measured (`mixing`): the mean number of different stored objects among the samples of a batch, over that of a
full permutation. 1.00 for `full`; for `buffered` with 64 objects a window 0.65 at 64 samples a batch of 1,000 objects of 100 samples,
0.91 with 256; `none` 0.03. tests/training/test_order.py measures these, and `full` against NumPy's permutation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from gpuflow.errors import ConfigError, Problem
from gpuflow.training.keyed import Permutation, key_of, uniform

OrderName = Literal["full", "buffered", "none", "weighted"]
Samples = NDArray[np.int64]


class Order(Protocol):
    """size: samples of an epoch."""

    @property
    def size(self) -> int: ...

    def samples(self, epoch: int, positions: Samples) -> Samples:
        """What stands at `positions` of an epoch, each in range(size)."""
        ...


@dataclass(frozen=True)
class Plain:
    """As they lie."""

    size: int

    def samples(self, epoch: int, positions: Samples) -> Samples:
        return positions


@dataclass(frozen=True)
class Full:
    """Every epoch a permutation of its own."""

    size: int
    key: int

    def samples(self, epoch: int, positions: Samples) -> Samples:
        return _permutation(key_of("full", self.key, epoch), self.size)(positions)


@dataclass(frozen=True)
class Buffered:
    """The blocks, of `block` samples that lie together, are permuted; then the samples within each `window` blocks of that order.

    So only `window` blocks are in use at a time: for data whose stored objects are large, or far."""

    size: int
    key: int
    block: int
    window: int

    def samples(self, epoch: int, positions: Samples) -> Samples:
        blocks = _permutation(key_of("blocks", self.key, epoch), self._blocks)
        short = int(blocks.inverse(np.array([self._blocks - 1]))[0])  # where the last block comes, which may have fewer samples
        lacking = self._blocks * self.block - self.size
        found = np.empty_like(positions)
        full = self.window * self.block
        windows = (
            np.where(positions < self._start(short // self.window + 1, short, lacking), positions, positions + lacking) // full
        )
        for number in np.unique(windows).tolist():
            mine = windows == number
            start = self._start(number, short, lacking)
            size = min(self._start(number + 1, short, lacking), self.size) - start
            shuffled = _permutation(key_of("window", self.key, epoch, number), size)(positions[mine] - start)
            gap = (short + 1) * self.block - lacking - number * full  # where the short block ends, if it is in this window
            if short // self.window == number:
                shuffled = np.where(shuffled < gap, shuffled, shuffled + lacking)
            order = number * self.window + shuffled // self.block
            found[mine] = blocks(order) * self.block + shuffled % self.block
        return found

    @cached_property
    def _blocks(self) -> int:
        return -(-self.size // self.block)

    def _start(self, window: int, short: int, lacking: int) -> int:
        """Position of the first sample of a window, or of the end of the one before it."""
        return window * self.window * self.block - (lacking if short < window * self.window else 0)


@dataclass(frozen=True, eq=False)
class Weighted:
    """Drawn with replacement, each as often as its weight says: `weights`, one a sample, >= 0."""

    size: int
    key: int
    weights: NDArray[np.float64]

    def samples(self, epoch: int, positions: Samples) -> Samples:
        drawn = uniform(key_of("weighted", self.key, epoch), positions) * self._sums[-1]
        found: Samples = np.minimum(np.searchsorted(self._sums, drawn, side="right"), self._last).astype(np.int64)
        return found

    @cached_property
    def _sums(self) -> NDArray[np.float64]:
        return np.cumsum(self.weights)

    @cached_property
    def _last(self) -> int:
        """The last sample that has a weight: rounding leads to none behind it."""
        return int(np.flatnonzero(self.weights)[-1])


@lru_cache(maxsize=256)
def _permutation(key: int, size: int) -> Permutation:
    return Permutation(key, size)


def make_order(
    name: OrderName,
    count: int,
    key: int,
    *,
    block: int = 1,
    window: int = 64,
    weights: Sequence[float] | NDArray[Any] | None = None,
) -> Order:
    """The order called `name` over `count` samples. block: samples that lie together. ConfigError when the options do not fit."""
    if (weights is not None) != (name == "weighted"):
        hint = "give weights=, one a sample" if weights is None else "use order='weighted', or leave the weights out"
        raise ConfigError([Problem(f"order {name!r} with{'out' if weights is None else ''} weights", "weights", hint=hint)])
    match name:
        case "none":
            return Plain(count)
        case "full":
            return Full(count, key)
        case "buffered":
            if window < 1:
                raise ConfigError([Problem(f"a window of {window} blocks", "window", hint="give 1 or more")])
            return Buffered(count, key, block, window)
        case "weighted":
            return Weighted(count, key, _checked(weights, count))
    raise ConfigError([Problem(f"order {name!r} is unknown", "order", hint="use full, buffered, none or weighted")])


def reach(order: Order) -> int | None:
    """How many blocks of samples that lie together are in use at a time; None for all of them."""
    match order:
        case Plain():
            return 1
        case Buffered():
            return order.window
    return None


def _checked(weights: Any, count: int) -> NDArray[np.float64]:
    found = np.asarray(weights, dtype=np.float64)
    if found.shape != (count,):
        raise ConfigError([Problem(f"{found.size} weights for {count} samples", "weights", hint="give one a sample")])
    if not np.isfinite(found).all() or (found < 0).any() or not found.any():
        raise ConfigError([Problem("weights must be finite, not below 0, and not all 0", "weights")])
    return found


@dataclass(frozen=True)
class Batches:
    """The global batches of an epoch: `batch_size` samples each. last: what becomes of a rest: it is a short batch ("keep"), it is left
    out ("drop"), or filled up with samples from the beginning of the epoch ("pad")."""

    order: Order
    batch_size: int
    last: Literal["keep", "drop", "pad"] = "keep"

    @cached_property
    def count(self) -> int:
        """Batches of an epoch."""
        whole, rest = divmod(self.order.size, self.batch_size)
        return whole + (1 if rest and self.last != "drop" else 0)

    def samples(self, epoch: int, batch: int) -> tuple[Samples, int]:
        """The samples of a batch, and how many of them count: those after them are repeated to fill it up."""
        positions = np.arange(batch * self.batch_size, (batch + 1) * self.batch_size, dtype=np.int64)
        inside = int((positions < self.order.size).sum())
        positions = positions % self.order.size if self.last == "pad" else positions[:inside]
        return self.order.samples(epoch, positions), inside


def mixing(batches: Batches, block: int, epoch: int = 0) -> float:
    """How many different blocks a batch has samples of, over how many it would have under a full permutation. Looks at 64 batches."""
    size, count = batches.order.size, batches.count
    blocks = -(-size // block)
    numbers = np.unique(np.linspace(0, count - 1, 64).astype(np.int64))
    seen, expected = 0.0, 0.0
    for number in numbers.tolist():
        samples, _ = batches.samples(epoch, number)
        seen += len(np.unique(samples // block))
        expected += blocks * (1 - (1 - len(samples) / size) ** block)
    return seen / expected
