"""The reader of one process, and the batches that it reads ahead: at most `prefetch`, and none while nobody takes them."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpuflow.datasets.here import NodesHere
from gpuflow.errors import NotFound
from gpuflow.storage.locator import Locator, PartLocator
from gpuflow.training.access import Access
from gpuflow.training.augment import Draws
from gpuflow.training.content import Content
from gpuflow.training.order import reach
from gpuflow.training.reader import Reader, Wanted
from gpuflow.training.state import State
from gpuflow.training.tensors import NUMPY, Tensors
from gpuflow.training.work import Work

if TYPE_CHECKING:
    from gpuflow.cluster.connection import Connection

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

    def open(self, connection: Connection | None) -> tuple[Locator, PartLocator, NodesHere | Connection, list[str]]:
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
    """How batches are read: threads, batches ahead, bytes kept, and where they go. shared: the name of the cache that this process shares
    with others of the machine; None for one of its own."""

    threads: int
    prefetch: int
    cache_nbytes: int
    shared: str | None
    device: str
    augment: tuple[Augmentation, ...]


class Engine:
    """The reader of one process, and the batches that it reads ahead."""

    def __init__(self, content: Content, work: Work, place: Place, ways: Ways, connection: Connection | None) -> None:
        self.process = os.getpid()
        self._work, self._ways = work, ways
        here, others, nodes, _ = place.open(connection)
        self._own_connection = nodes if connection is None and place.address is not None else None
        self._tensors = Tensors(ways.device) if ways.device != NUMPY else None
        self._ahead: deque[tuple[State, Wanted]] = deque()
        access = Access(content, here, others, reach(work.batches.order))
        self.reader = Reader(
            access,
            work,
            self._finished,
            threads=ways.threads,
            kept_nbytes=ways.cache_nbytes,
            recent_nbytes=_RECENT_NBYTES,
            shared=ways.shared,
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
