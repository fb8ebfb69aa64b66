"""Where a training stands: the batch after the last one that was delivered. Small, plain data, the same on every rank.

It says which samples it is of, so that another dataset, seed or order is refused by name; not how many ranks there were, nor where the
data lay: with others it goes on just the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from gpuflow.errors import StateMismatch

FORMAT = 1

_MEANINGS = {
    "dataset": "the dataset",
    "content": "the content of the dataset",
    "samples": "what a sample is (arrays, sample, stride, samples, weights)",
    "seed": "the seed",
    "order": "the order",
    "batch_size": "the batch size",
    "last": "what becomes of the last batch",
}


@dataclass(frozen=True)
class State:
    """epoch, batch: what is delivered next. content: of the chunks, by their digests; samples: digest of how they are cut into samples."""

    dataset: str
    content: str
    samples: str
    seed: int
    order: str
    batch_size: int
    last: str
    epoch: int = 0
    batch: int = 0

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it, within 1 KB."""
        return {"format": FORMAT, **asdict(self)}

    def at(self, given: Mapping[str, Any], batches: int) -> State:
        """This one, moved to where `given`, an earlier `to_dict`, stood. batches: of an epoch. StateMismatch when it is of another order
        of other samples; the name of a dataset with the same content may be another."""
        if not isinstance(given, Mapping) or given.get("format") != FORMAT or {f.name for f in fields(self)} - given.keys():
            raise StateMismatch([("its format", "that of a loader", "something else")])
        names = [name for name in _MEANINGS if name != "dataset" or given["content"] != self.content]
        differing = [(_MEANINGS[name], given[name], getattr(self, name)) for name in names if given[name] != getattr(self, name)]
        if differing:
            raise StateMismatch(differing)
        epoch, batch = given["epoch"], given["batch"]
        if not (isinstance(epoch, int) and isinstance(batch, int) and epoch >= 0 and 0 <= batch <= batches):
            raise StateMismatch([("its place", f"epoch {epoch}, batch {batch}", f"of {batches} batches an epoch")])
        return replace(self, epoch=epoch, batch=batch).settled(batches)

    def settled(self, batches: int) -> State:
        """Behind the last batch of an epoch the next one begins."""
        return replace(self, epoch=self.epoch + 1, batch=0) if self.batch >= batches else self

    def after(self, batches: int, step: int = 1) -> State:
        """One batch later."""
        return replace(self, batch=self.batch + step).settled(batches)
