"""What a user asks of a loader, checked against the dataset: which samples, in which order, made into what."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import xxhash
from numpy.typing import ArrayLike, NDArray

from gpuflow.errors import ConfigError, Problem
from gpuflow.storage.record import DatasetRecord
from gpuflow.training.content import Content
from gpuflow.training.cut import Crop, Cut, cut
from gpuflow.training.keyed import key_of
from gpuflow.training.order import Batches, OrderName, make_order
from gpuflow.training.state import State
from gpuflow.training.work import Work
from gpuflow.units import parse_nbytes


@dataclass(frozen=True, eq=False)
class Options:
    """As `loader` describes them."""

    dataset: str
    batch_size: int
    arrays: Sequence[str] | None
    sample: Mapping[str, int] | None
    split: Mapping[str, int] | None
    stride: int
    step: int
    crop: Crop
    labels: Mapping[str, ArrayLike] | None
    samples: slice | ArrayLike | None
    order: OrderName
    window: int
    weights: Sequence[float] | NDArray[Any] | None
    seed: int
    drop_last: bool
    pad: bool
    transform: Callable[..., Any] | None
    collate: Callable[[list[dict[str, Any]]], Any] | None
    number_as: str | None

    def cut(self, record: DatasetRecord) -> Cut:
        """How the dataset is cut into samples."""
        return cut(
            record, self.arrays, self.sample, stride=self.stride, step=self.step, crop=self.crop, pieces=self.split
        )  # fmt: skip

    def work(self, found: Content, shape: Cut) -> tuple[Work, State]:
        """What a single rank does, and where it begins. ConfigError for what does not fit."""
        if not isinstance(self.seed, int):
            raise ConfigError([Problem(f"is {self.seed!r}", "seed", hint="give a whole number")])
        selected = self._selected(shape.count)
        total = shape.count if selected is None else len(selected)
        if self.batch_size > total:
            hint = f"give at most {total}"
            raise ConfigError([Problem(f"a batch of {self.batch_size}, of {total} samples", "batch_size", hint=hint)])
        key = key_of(self.seed, found.fingerprint)
        block = max(1, max(part.metadata.grid.chunks[0] for part in shape.parts) // self.stride)
        order = make_order(self.order, total, key, block=block, window=self.window, weights=self.weights)
        state = State(
            self.dataset,
            found.fingerprint,
            self._digest(shape, selected, block),
            self.seed,
            self.order,
            self.batch_size,
            self._last,
        )
        batches = Batches(order, self.batch_size, self._last)
        labels = self._labels(shape)
        work = Work(
            self.dataset, shape, batches, key, selected=selected, labels=labels, number_as=self.number_as, transform=self.transform,
            collate=self.collate,
        )  # fmt: skip
        return work, state

    @cached_property
    def _last(self) -> Literal["keep", "drop", "pad"]:
        if self.drop_last and self.pad:
            raise ConfigError([Problem("the last batch cannot be dropped and filled up", "pad", hint="give drop_last or pad")])
        return "pad" if self.pad else "drop" if self.drop_last else "keep"

    def _digest(self, shape: Cut, selected: NDArray[np.int64] | None, block: int) -> str:
        """Of all that decides which samples there are, and in which order, beside what the state names."""
        found = xxhash.xxh3_64(repr((shape.describe(), (block, self.window) if self.order == "buffered" else ())).encode())
        for numbers in (selected, None if self.weights is None else np.asarray(self.weights, np.float64)):
            found.update(b"all" if numbers is None else numbers.tobytes())
        return found.hexdigest()

    def _selected(self, count: int) -> NDArray[np.int64] | None:
        if self.samples is None:
            return None
        if isinstance(self.samples, slice):
            found = np.arange(count, dtype=np.int64)[self.samples]
        else:
            given = np.asarray(self.samples)
            if given.ndim != 1 or given.dtype.kind not in "iu":
                raise ConfigError([Problem("must be a slice, or whole numbers in one row", "samples")])
            found = given.astype(np.int64)
        if not len(found) or found.min() < 0 or found.max() >= count:
            reason, hint = (
                "names a sample that is not there" if len(found) else "selects none",
                f"the dataset has samples 0 to {count - 1}",
            )
            raise ConfigError([Problem(reason, "samples", hint=hint)])
        if len(np.unique(found)) != len(found):
            raise ConfigError([Problem("names a sample twice", "samples", hint="use order='weighted' to see some more often")])
        return found

    def _labels(self, shape: Cut) -> dict[str, NDArray[Any]]:
        found = {name: np.asarray(values) for name, values in (self.labels or {}).items()}
        for name, values in found.items():
            if values.ndim < 1 or len(values) != shape.count:
                size = len(values) if values.ndim else "one"
                raise ConfigError(
                    [Problem(f"{size} values for {shape.count} samples", f"labels.{name}", hint="give one a sample")]
                )
            if name in {part.path for part in shape.parts}:
                raise ConfigError([Problem("is the name of an array, too", f"labels.{name}", hint="give it another one")])
        return found


def check_numbers(**numbers: int | None) -> None:
    """ConfigError for one that is not a whole number from 1 up."""
    for name, value in numbers.items():
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ConfigError([Problem(f"is {value!r}", name, hint="give 1 or more")])


def nbytes_of(cache: str | int) -> int:
    """Bytes, of a number or a text such as `4GiB`. ConfigError when it is no size."""
    try:
        found = parse_nbytes(cache)
    except ValueError as error:
        raise ConfigError([Problem(str(error), "cache")]) from error
    if found < 0:
        raise ConfigError([Problem(f"is {found}", "cache", hint="give 0 or more bytes")])
    return found
