"""Commits that are interrupted at every step, and what a chunk may be afterwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gpuflow.storage.disk import store_errors, write_file
from gpuflow.storage.node import NodeStore, Staged
from tests.storage.faults import Faults
from tests.storage.stores import ARRAY, content, new_replica, stage

SOURCE = "source.bin"
"""A file beside the store's root that the link scenario takes over."""


@dataclass(frozen=True)
class Scenario:
    """`staged` makes generation 2 of chunks that are at 1 (0 to 2), or generation 1 of chunks that are not there (3 to 5).

    after: bytes of the chunks that change, None for fill value."""

    staged: Callable[[NodeStore], list[Staged]]
    after: Mapping[int, bytes | None]
    durable: bool = True

    def run(self, store: NodeStore, faults: Faults) -> None:
        """Stage and commit, with the faults armed."""
        faults.armed = True
        try:
            store.commit(self.staged(store), durable=self.durable)
        finally:
            faults.armed = False


def _link(store: NodeStore) -> list[Staged]:
    replica = new_replica(0, 2, content(9, 9))
    return [store.stage_link(replica, store.root.parent / SOURCE, replaces=1)]


def _several(*chunks: tuple[int, int, bytes | None]) -> Callable[[NodeStore], list[Staged]]:
    def staged(store: NodeStore) -> list[Staged]:
        items: list[Staged] = []
        try:
            for chunk, generation, data in chunks:
                items.append(stage(store, chunk, generation, data))
        except BaseException:
            store.discard(items)
            raise
        return items

    return staged


def _over_spare(store: NodeStore) -> list[Staged]:
    """One chunk in a file that was longer, and one in a new file."""
    path = store.writer.temporary()
    with store_errors(store.root):
        write_file(path, bytes(100), durable=False)
    assert store.spares.give(path, 100)
    return _several((1, 2, None), (0, 2, None))(store)


_GROUP = ((0, 2, None), (3, 1, None), (1, 2, b""))
_GROUP_AFTER = {0: content(0, 2), 3: content(3, 1), 1: None}

SCENARIOS: dict[str, Scenario] = {
    "new chunk": Scenario(_several((3, 1, None)), {3: content(3, 1)}),
    "overwrite": Scenario(_several((0, 2, None)), {0: content(0, 2)}),
    "overwrite, in a spare file": Scenario(_over_spare, {0: content(0, 2), 1: content(1, 2)}),
    "same bytes": Scenario(_several((0, 2, content(0, 1))), {0: content(0, 1)}),
    "link": Scenario(_link, {0: content(9, 9)}),
    "empty over a file": Scenario(_several((0, 2, b"")), {0: None}),
    "empty and new": Scenario(_several((3, 1, b"")), {3: None}),
    "group of 3": Scenario(_several(*_GROUP), _GROUP_AFTER),
    "group, not durable": Scenario(_several(*_GROUP), _GROUP_AFTER, durable=False),
}

BEFORE = {chunk: content(chunk, 1) for chunk in (0, 1, 2)}


def seen(store: NodeStore, chunk: int) -> tuple[int, bytes | None]:
    """(generation, bytes) of a chunk, (0, None) when it is not there; fill value is (generation, None)."""
    replica = store.manifest.replica("d", ARRAY, chunk)
    if replica is None:
        return 0, None
    return replica.generation, store.read("d", ARRAY, chunk)[1] or None
