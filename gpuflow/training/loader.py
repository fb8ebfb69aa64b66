"""`gpuflow.loader`: batches for a training loop, from where the chunks lie.

Batch k of epoch e is a function of the seed and the dataset, so that the state of a training is two numbers, whatever the ranks."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpuflow.cluster.place import disk_of
from gpuflow.errors import ClusterError, ConfigError, Problem
from gpuflow.settings import scheduler_address, store_root
from gpuflow.training.content import Content, content, look
from gpuflow.training.cut import Crop
from gpuflow.training.engine import Augmentation, Engine, Place, Ways
from gpuflow.training.options import Options, check_numbers, nbytes_of
from gpuflow.training.order import OrderName
from gpuflow.training.placement import Placement, where
from gpuflow.training.placement import place as lay
from gpuflow.training.ranks import find_ranks, from_first, gathered, has_neighbours
from gpuflow.training.shared_file import folder
from gpuflow.training.state import State
from gpuflow.training.tensors import check_device
from gpuflow.training.work import Work

if TYPE_CHECKING:
    from gpuflow.cluster.connection import Connection

_INHERITED: list[Engine] = []
"""Of the processes that forked this one: a connection of SQLite's must not even be closed here."""


class Loader:
    """An endless training in epochs: iterating over it gives the rest of the epoch that it is in; the next time, the next one.

    Pickles, and may be forked: a process that iterates opens files and starts threads of its own. One thread iterates at a time."""

    def __init__(
        self, content: Content, work: Work, state: State, place: Place, ways: Ways, connection: Connection | None
    ) -> None:
        """Made by `loader`."""
        self._content, self._work, self._place, self._ways = content, work, place, ways
        self._state, self._connection = state, connection
        self._engine: Engine | None = None
        self._finalizer: weakref.finalize[Any, Any] | None = None

    # -- what it is -----------------------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Batches of an epoch."""
        return self._work.batches.count

    @property
    def samples(self) -> int:
        """Of an epoch, on all ranks together."""
        return self._work.batches.order.size

    @property
    def batch_size(self) -> int:
        """Samples of a batch, on all ranks together."""
        return self._work.batches.batch_size

    @property
    def epoch(self) -> int:
        """The one that the next batch belongs to, from 0."""
        return self._state.epoch

    @property
    def device(self) -> str:
        """Where the batches are."""
        return self._ways.device

    @property
    def placement(self) -> Placement | None:
        """Where samples lie, as the ranks agreed; None for one rank, and for ranks that deal out samples in turn."""
        return self._work.placement

    @property
    def reads(self) -> dict[str, int]:
        """Stored objects that this process has opened "here" and fetched from "elsewhere"."""
        counted = self._engine.reader.access.opened if self._engine is not None else {}
        return {where: counted.get(where, 0) for where in ("here", "elsewhere")}

    @property
    def received_nbytes(self) -> int:
        """Stored bytes that this process has had from other nodes."""
        return self._engine.reader.access.received_nbytes if self._engine is not None else 0

    def numbers(self, epoch: int, batch: int) -> NDArray[np.int64]:
        """Numbers of this rank's samples of a batch, without reading them."""
        return self._work.choose(epoch, batch).numbers

    # -- where it stands ------------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Where the training stands behind the last batch that was delivered: plain data of less than 1 KB, the same on all ranks."""
        return self._state.to_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was. StateMismatch when it is of other data, another seed, order or batch size."""
        found = self._state.at(state, len(self))
        self._drop_ahead()
        self._state = found

    # -- batches ----------------------------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Any]:
        yield from self.every(1)

    def every(self, step: int) -> Iterator[Any]:
        """Of the epoch that it is in, from where it stands on every `step`-th batch."""
        epoch = self._state.epoch
        while self._state.epoch == epoch:
            yield self._next(step)

    def skip(self, epochs: int, batches: int) -> None:
        """Stand so much further on, within that epoch or at the beginning of the next one."""
        state = self._state if not epochs else replace(self._state, epoch=self._state.epoch + epochs, batch=0)
        self._drop_ahead()
        self._state = state.after(len(self), batches)

    def _next(self, step: int) -> Any:
        engine = self._running()
        batch = engine.take(self._state, step)
        self._state = self._state.after(len(self), step)
        return batch

    def _running(self) -> Engine:
        if self._engine is None or self._engine.process != os.getpid():  # nothing of a process that forked can be used
            if self._engine is not None and self._finalizer is not None:
                self._finalizer.detach()
                _INHERITED.append(self._engine)
            self._engine = Engine(self._content, self._work, self._place, self._ways, self._connection)
            self._finalizer = weakref.finalize(self, self._engine.close)
        return self._engine

    def _drop_ahead(self) -> None:
        if self._engine is not None and self._engine.process == os.getpid():
            self._engine.drop()

    # -- the end ------------------------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Give back threads, files and memory; what is iterated over afterwards opens them again. Twice is harmless."""
        engine, self._engine = self._engine, None
        if engine is not None and engine.process == os.getpid():
            assert self._finalizer is not None
            self._finalizer()

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_engine": None, "_finalizer": None, "_connection": None}

    def torch(self) -> Any:
        """As a `torch.utils.data.IterableDataset`: for `DataLoader(..., batch_size=None)` and torchdata's `StatefulDataLoader`."""
        from gpuflow.training.torch_dataset import BatchDataset

        return BatchDataset(self)


def loader(
    dataset: str,
    batch_size: int,
    *,
    arrays: Sequence[str] | None = None,
    sample: Mapping[str, int] | None = None,
    split: Mapping[str, int] | None = None,
    stride: int = 1,
    step: int = 1,
    crop: Crop = "random",
    labels: Mapping[str, ArrayLike] | None = None,
    samples: slice | ArrayLike | None = None,
    order: OrderName = "full",
    window: int = 64,
    weights: Sequence[float] | NDArray[Any] | None = None,
    seed: int = 0,
    drop_last: bool = False,
    pad: bool = False,
    transform: Callable[..., Any] | None = None,
    collate: Callable[[list[dict[str, Any]]], Any] | None = None,
    augment: Augmentation | Sequence[Augmentation] = (),
    number_as: str | None = None,
    device: str = "cpu",
    cache: str | int = "1GiB",
    prefetch: int = 2,
    threads: int | None = None,
    rank: int | None = None,
    world: int | None = None,
    placement: Placement | None = None,
    connection: Connection | None = None,
    root: str | os.PathLike[str] | None = None,
    node: str | None = None,
) -> Loader:
    """Batches of samples of `dataset`, as dicts of PyTorch tensors by array, for a training loop.

    **Samples.** Sample i is row i of every array that is as long along its first axis (or of `arrays`, names or patterns).
    `sample={"time": 2, "y": 128, "x": 128}`: windows of 2 rows and crops of 128 by 128, by the names of dimensions, beginning every
    `stride` rows, their rows `step` apart; `split={"input": 1, "target": 1}` divides a window's rows, as `t2m.input` and `t2m.target`;
    crop: "random", keyed by seed, epoch and sample, or "center". labels: further values by name, one a sample of the dataset. samples:
    which are used, a slice or an array of numbers (for a part that is held out).

    **Order.** batch_size counts the samples of all ranks together: which they are depends on `seed`, the dataset's content and these
    options, never on the ranks. order: "full", a permutation every epoch; "buffered", stored objects permuted, then samples within
    `window` of them, which reads less where samples are small; "none"; "weighted", drawn with replacement by `weights`. A rest at the end
    of an epoch is a short batch, on every rank one, of which one may have no samples; `drop_last` leaves it out; `pad` fills it up with
    other samples of the epoch, whose numbers are then -1. number_as: under this name the numbers of the samples go along.

    **Work.** transform(sample) or transform(sample, rng): a dict of NumPy arrays to another one, in the reader's threads. collate: a list
    of such dicts to a batch. augment: functions (batch, draws) -> batch, on the device; see `gpuflow.training.augment`. device: "cpu",
    "cuda", "cuda:1", ... or "numpy" for NumPy arrays without PyTorch. cache: bytes of decoded data that stay in memory between epochs:
    of a machine, all whose ranks share them (in /dev/shm), so that what one has decoded no other reads again. prefetch: batches that are
    read ahead. threads: that read and decode (default: the cores of this process, shared by the ranks here).

    **Ranks** are those of torch.distributed when its process group is there; all must then call this. Samples of a batch go to ranks that
    have them on local disk, under equal counts. Else `rank` of `world`: samples are dealt out in turn, or by `placement`, which must be
    the same on all ranks (see `Loader.placement`).

    **Data** is looked for below `root` (default `GPUFLOW_ROOT`, else `.gpuflow`), without a cluster; or on the cluster of `connection`, or
    of `GPUFLOW_SCHEDULER`. node: the only node whose store this rank reads directly, where several are on one machine.

    NotFound, ConfigError, DeviceUnavailable, ChunkLost. While iterating: SampleError, DatasetChanged, ChunkCorrupt, ChunkLost."""
    options = Options(
        dataset, batch_size, arrays, sample, split, stride, step, crop, labels, samples, order, window, weights, seed, drop_last, pad,
        transform, collate, number_as,
    )  # fmt: skip
    place = Place(*_place(connection, root), node)
    own, count, grouped = find_ranks(rank, world)

    def make() -> _Made:
        check_device(device)
        check_numbers(batch_size=batch_size, prefetch=prefetch, threads=threads)
        return _made(options, place, connection, nbytes_of(cache))

    if grouped:
        made, everyone = _agreed(make)
        ranks = tuple(told.where for told in everyone)
        shares = [told.memory for told in everyone].count(everyone[own].memory) > 1
        placement = placement or from_first(lambda: lay(made.content, made.work.cut, ranks))
    else:
        made, shares = make(), has_neighbours(count)
        ranks = placement.ranks if placement is not None else (made.where,)
    if placement is not None and len(placement.ranks) != count:
        raise ConfigError([Problem(f"a placement of {len(placement.ranks)} ranks for {count}", "placement")])
    together = sum(other == ranks[min(own, len(ranks) - 1)] for other in ranks)
    ways = Ways(
        threads or max(1, len(os.sched_getaffinity(0)) // together),
        prefetch,
        made.cache_nbytes,
        f"{made.state.content} {made.state.samples}" if shares else None,
        device,
        (augment,) if callable(augment) else tuple(augment),
    )
    work = replace(made.work, rank=own, world=count, placement=placement)
    return Loader(made.content, work, made.state, place, ways, connection)


@dataclass(frozen=True)
class _Made:
    """What a rank finds by itself. where: which stores it reads directly."""

    content: Content
    work: Work
    state: State
    where: str
    cache_nbytes: int


def _made(options: Options, place: Place, connection: Connection | None, cache_nbytes: int) -> _Made:
    here, others, nodes, ids = place.open(connection)
    try:
        record = look(nodes, options.dataset)
        shape = options.cut(record)
        found = content(nodes, record, [part.path for part in shape.parts])
    finally:
        here.close()
        others.close()
        if connection is None and place.address is not None:
            nodes.close()
    return _Made(found, *options.work(found, shape), where(ids), cache_nbytes)


@dataclass(frozen=True)
class _Told:
    """What a rank tells the others. memory: equal for ranks that can share some."""

    state: State
    where: str
    memory: str


def _agreed(make: Callable[[], _Made]) -> tuple[_Made, list[_Told]]:
    """What was made here, and what all ranks told. ClusterError when they do not mean the same."""
    made: list[_Made] = []

    def tell() -> _Told:
        made.append(make())
        return _Told(made[0].state, made[0].where, disk_of(folder()))

    everyone = gathered(tell)
    first = everyone[0].state
    for rank, state in enumerate(told.state for told in everyone):
        if state != first:
            names = [name for name, value in state.to_dict().items() if value != first.to_dict()[name]]
            raise ClusterError(
                f"rank {rank} makes another loader than rank 0: {', '.join(names)} differ",
                "give all ranks the same arguments, and change no dataset meanwhile",
            )
    return made[0], everyone


def _place(connection: Connection | None, root: str | os.PathLike[str] | None) -> tuple[str | None, Path | None]:
    """(address of the cluster, else the root on this machine)."""
    if connection is not None:
        if root is not None:
            raise ConfigError([Problem("a connection and a root", "root", hint="give one of them")])
        return str(connection.client.scheduler.address), None
    address = scheduler_address() if root is None else None
    return address, (Path(root).absolute() if root is not None else store_root()) if address is None else None
