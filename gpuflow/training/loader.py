"""`gpuflow.loader`: batches for a training loop, from where the chunks lie.

Batch k of epoch e is a function of the seed and the dataset, so that the state of a training is two numbers, whatever the ranks. What is
read ahead is bounded by `prefetch` batches; nothing is read while nobody takes them."""

from __future__ import annotations

import os
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash
from numpy.typing import ArrayLike, NDArray

from gpuflow.datasets.here import NodesHere
from gpuflow.errors import ClusterError, ConfigError, NotFound, Problem
from gpuflow.settings import scheduler_address
from gpuflow.storage.locator import Locator
from gpuflow.training.access import Access
from gpuflow.training.augment import Draws
from gpuflow.training.content import Content, content, look
from gpuflow.training.cut import Crop, Cut, cut
from gpuflow.training.keyed import key_of
from gpuflow.training.order import Batches, OrderName, make_order
from gpuflow.training.placement import Placement, place, where
from gpuflow.training.ranks import find_ranks, from_first, gathered
from gpuflow.training.reader import Reader, Wanted
from gpuflow.training.state import State
from gpuflow.training.tensors import NUMPY, Tensors, check_device
from gpuflow.training.work import Work
from gpuflow.units import parse_nbytes

if TYPE_CHECKING:
    from gpuflow.cluster.connection import Connection

_INHERITED: list[_Engine] = []
"""Of the processes that forked this one: a connection of SQLite's must not even be closed here."""

_RECENT_NBYTES = 256 * 2**20
"""Of decoded units of several samples, beside the cache: a window of `buffered` order over small stored objects."""

Augmentation = Callable[[Any, Draws], Any]


@dataclass(frozen=True)
class Place:
    """Where a process finds the chunks: a cluster's address, or a root on this machine. node: the only one whose store it reads directly;
    None for all that are on this machine."""

    address: str | None
    root: Path | None
    node: str | None

    def open(self, connection: Connection | None) -> tuple[Locator, Locator, NodesHere | Connection, list[str]]:
        """(what is read directly, the way to the rest, the nodes, ids of those that are read directly)."""
        if self.address is None and connection is None:
            others: Any = NodesHere.below(self.root)
            nodes: Any = others
        else:
            from gpuflow.cluster.connection import connect
            from gpuflow.cluster.locating import ClientLocator

            nodes = connection or connect(self.address)
            others = ClientLocator(nodes)
        if self.node is None:
            return others, others, nodes, list(others.stores)
        if self.node not in others.stores:
            raise NotFound("node", self.node, sorted(others.stores), "give one whose store is on this machine")
        return NodesHere(others.stores[self.node].root), others, nodes, [self.node]


@dataclass(frozen=True)
class Ways:
    """How batches are read: threads, batches ahead, bytes kept, and where they go."""

    threads: int
    prefetch: int
    cache_nbytes: int
    device: str
    augment: tuple[Augmentation, ...]


class Loader:
    """An endless training in epochs: iterating over it gives the rest of the epoch that it is in; the next time, the next one.

    Pickles, and may be forked: a process that iterates opens files and starts threads of its own. One thread iterates at a time."""

    def __init__(
        self, content: Content, work: Work, state: State, place: Place, ways: Ways, connection: Connection | None
    ) -> None:
        """Made by `loader`."""
        self._content, self._work, self._place, self._ways = content, work, place, ways
        self._state, self._connection = state, connection
        self._engine: _Engine | None = None
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

    def _running(self) -> _Engine:
        if (
            self._engine is None or self._engine.process != os.getpid()
        ):  # of the process that forked this one, nothing can be used
            if self._engine is not None and self._finalizer is not None:
                self._finalizer.detach()
                _INHERITED.append(self._engine)
            self._engine = _Engine(self._content, self._work, self._place, self._ways, self._connection)
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


class _Engine:
    """The reader of one process, and the batches that it reads ahead."""

    def __init__(self, content: Content, work: Work, place: Place, ways: Ways, connection: Connection | None) -> None:
        self.process = os.getpid()
        self._work, self._ways = work, ways
        here, others, nodes, _ = place.open(connection)
        self._own_connection = nodes if connection is None and place.address is not None else None
        self._tensors = Tensors(ways.device) if ways.device != NUMPY else None
        self._ahead: deque[tuple[State, Wanted]] = deque()
        access = Access(content, here, others)
        self.reader = Reader(
            access, work, self._finished, threads=ways.threads, kept_nbytes=ways.cache_nbytes, recent_nbytes=_RECENT_NBYTES
        )

    def _finished(self, wanted: Wanted) -> Any:
        batch = self._work.finish(wanted.chosen, wanted.arrays)
        return self._tensors.begin(batch) if self._tensors is not None else batch

    def take(self, state: State, step: int) -> Any:
        """The batch at `state`; those after it are begun."""
        if not self._ahead or self._ahead[0][0] != state:
            self.drop()
        self._fill(state, step)
        _, wanted = self._ahead.popleft()
        result = wanted.result.result()
        self._fill(state.after(self._work.batches.count, step), step)
        batch = self._tensors.end(result) if self._tensors is not None else result
        draws = Draws(self._work.key, state.epoch, wanted.chosen.samples, self._ways.device)
        for augmentation in self._ways.augment:
            batch = augmentation(batch, draws)
        return batch

    def _fill(self, state: State, step: int) -> None:
        """Begin batches until `prefetch` are ahead, from `state` on where none is."""
        count = self._work.batches.count
        following = self._ahead[-1][0].after(count, step) if self._ahead else state
        while len(self._ahead) < self._ways.prefetch:
            wanted = Wanted(following.epoch, following.batch)
            self._ahead.append((following, wanted))
            self.reader.submit(wanted)
            following = following.after(count, step)

    def drop(self) -> None:
        """What was read ahead is not wanted."""
        for _, wanted in self._ahead:
            wanted.drop()
        self._ahead.clear()

    def close(self) -> None:
        """Give back threads and files, in the process that has them."""
        if self.process != os.getpid():
            return
        self.drop()
        self.reader.close()
        if self._own_connection is not None:
            self._own_connection.close()


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
    "cuda", "cuda:1", ... or "numpy" for NumPy arrays without PyTorch. cache: bytes of decoded data that stay in memory between epochs.
    prefetch: batches that are read ahead. threads: that read and decode (default: the cores of this process, shared by the ranks here).

    **Ranks** are those of torch.distributed when its process group is there; all must then call this. Samples of a batch go to ranks that
    have them on local disk, under equal counts. Else `rank` of `world`: samples are dealt out in turn, or by `placement`, which must be
    the same on all ranks (see `Loader.placement`).

    **Data** is looked for below `root` (default `GPUFLOW_ROOT`, else `.gpuflow`), without a cluster; or on the cluster of `connection`, or
    of `GPUFLOW_SCHEDULER`. node: the only node whose store this rank reads directly, where several are on one machine.

    NotFound, ConfigError, DeviceUnavailable, ChunkLost. While iterating: SampleError, DatasetChanged, ChunkCorrupt, ChunkLost."""
    check_device(device)
    _check(batch_size, seed, prefetch, threads, drop_last, pad)
    address = _address(connection, root)
    where_data_is = Place(address, Path(root).absolute() if root is not None else None, node)
    own, count, grouped = find_ranks(rank, world)

    def make() -> tuple[Content, Work, State, str]:
        here, others, nodes, ids = where_data_is.open(connection)
        try:
            record = look(nodes, dataset)
            shape = cut(record, arrays, sample, stride=stride, step=step, crop=crop, pieces=split)
            found = content(nodes, record, [part.path for part in shape.parts])
        finally:
            here.close()
            others.close()
            if connection is None and address is not None:
                nodes.close()
        selected = _selected(samples, shape.count)
        total = shape.count if selected is None else len(selected)
        key = key_of(seed, found.fingerprint)
        last = "pad" if pad else "drop" if drop_last else "keep"
        block = max(1, max(part.metadata.grid.chunks[0] for part in shape.parts) // stride)
        ordered = make_order(order, total, key, block=block, window=window, weights=weights)
        if batch_size > total:
            raise ConfigError(
                [Problem(f"a batch of {batch_size}, of {total} samples", "batch_size", hint=f"give at most {total}")]
            )
        described = repr(
            (shape.describe(), None if selected is None else selected.tobytes(), block, window if order == "buffered" else 0)
        )
        if weights is not None:
            described += np.asarray(weights, np.float64).tobytes().hex()
        summed = xxhash.xxh3_64_hexdigest(described.encode())
        state = State(dataset, found.fingerprint, summed, seed, order, batch_size, last)
        given = _labels(labels or {}, shape)
        batches = Batches(ordered, batch_size, last)  # type: ignore[arg-type]
        work = Work(dataset, shape, batches, key, own, count, selected, placement, given, number_as, transform, collate)
        return found, work, state, where(ids)

    if grouped:
        found, work, state, ranks = _agreed(make)
        work = replace(work, placement=placement or from_first(lambda: place(found, work.cut, ranks)))
    else:
        found, work, state, mine = make()
        ranks = work.placement.ranks if work.placement is not None else (mine,)
    if work.placement is not None and len(work.placement.ranks) != count:
        raise ConfigError([Problem(f"a placement of {len(work.placement.ranks)} ranks for {count}", "placement")])
    together = max(1, sum(other == ranks[min(own, len(ranks) - 1)] for other in ranks))
    threads = threads or max(1, len(os.sched_getaffinity(0)) // together)
    augmentations = (augment,) if callable(augment) else tuple(augment)
    ways = Ways(threads, prefetch, _nbytes(cache), device, augmentations)
    return Loader(found, work, state, where_data_is, ways, connection)


def _agreed(make: Callable[[], tuple[Content, Work, State, str]]) -> tuple[Content, Work, State, tuple[str, ...]]:
    """What was made here, and where all ranks are. ClusterError when the ranks do not mean the same."""
    made: list[tuple[Content, Work, State, str]] = []

    def told() -> tuple[State, str]:
        made.append(make())
        return made[0][2], made[0][3]

    everyone = gathered(told)
    first = everyone[0][0]
    for rank, (state, _) in enumerate(everyone):
        if state != first:
            names = [name for name, value in state.to_dict().items() if value != first.to_dict()[name]]
            raise ClusterError(
                f"rank {rank} makes another loader than rank 0: {', '.join(names)} differ",
                "give all ranks the same arguments, and change no dataset meanwhile",
            )
    found, work, state, _ = made[0]
    return found, work, state, tuple(place for _, place in everyone)


def _address(connection: Connection | None, root: Any) -> str | None:
    if connection is not None:
        if root is not None:
            raise ConfigError([Problem("a connection and a root", "root", hint="give one of them")])
        return str(connection.client.scheduler.address)
    return scheduler_address() if root is None else None


def _check(batch_size: int, seed: int, prefetch: int, threads: int | None, drop_last: bool, pad: bool) -> None:
    for name, value in (("batch_size", batch_size), ("prefetch", prefetch), ("threads", threads)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ConfigError([Problem(f"is {value!r}", name, hint="give 1 or more")])
    if not isinstance(seed, int):
        raise ConfigError([Problem(f"is {seed!r}", "seed", hint="give a whole number")])
    if drop_last and pad:
        raise ConfigError([Problem("the last batch cannot be dropped and filled up", "pad", hint="give drop_last or pad")])


def _selected(samples: slice | ArrayLike | None, count: int) -> NDArray[np.int64] | None:
    if samples is None:
        return None
    if isinstance(samples, slice):
        found = np.arange(count, dtype=np.int64)[samples]
    else:
        given = np.asarray(samples)
        if given.ndim != 1 or given.dtype.kind not in "iu":
            raise ConfigError([Problem("must be a slice, or whole numbers in one row", "samples")])
        found = given.astype(np.int64)
    if not len(found) or found.min() < 0 or found.max() >= count:
        hint = f"the dataset has samples 0 to {count - 1}"
        raise ConfigError(
            [Problem("selects none" if not len(found) else "names a sample that is not there", "samples", hint=hint)]
        )
    if len(np.unique(found)) != len(found):
        raise ConfigError([Problem("names a sample twice", "samples", hint="use order='weighted' to see some more often")])
    return found


def _labels(labels: Mapping[str, ArrayLike], shape: Cut) -> dict[str, NDArray[Any]]:
    found = {name: np.asarray(values) for name, values in labels.items()}
    for name, values in found.items():
        if values.ndim < 1 or len(values) != shape.count:
            size = len(values) if values.ndim else "one"
            raise ConfigError([Problem(f"{size} values for {shape.count} samples", f"labels.{name}", hint="give one a sample")])
        if name in {part.path for part in shape.parts}:
            raise ConfigError([Problem("is the name of an array, too", f"labels.{name}", hint="give it another one")])
    return found


def _nbytes(cache: str | int) -> int:
    try:
        found = parse_nbytes(cache)
    except ValueError as error:
        raise ConfigError([Problem(str(error), "cache")]) from error
    if found < 0:
        raise ConfigError([Problem(f"is {found}", "cache", hint="give 0 or more bytes")])
    return found
