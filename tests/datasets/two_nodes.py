"""A dataset over two open stores, and a model of what it and its snapshots should be."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gpuflow.datasets import catalog
from gpuflow.datasets.snapshots import _kept_tables, delete_snapshot, roll_back, take_snapshot
from gpuflow.storage.disk import digest
from gpuflow.storage.manifest import Replica
from gpuflow.storage.node import EMPTY, NodeStore
from gpuflow.storage.snapshots import folder_of
from tests.storage.stores import ARRAY, CHUNKS, new_record

State = tuple[tuple[bytes, ...], int]
"""The bytes of every chunk, none for fill value; how many in-place pipelines the record tells of."""


class Stores:
    """`Nodes` of this process."""

    def __init__(self, *roots: Path) -> None:
        self.stores = [NodeStore(root, name=f"n{number}") for number, root in enumerate(roots)]

    def each_node(self, function: Callable[..., Any], *args: Any) -> dict[str, Any]:
        return {store.node_id: function(store, *args) for store in self.stores}

    def close(self) -> None:
        for store in self.stores:
            store.close()


@dataclass
class Model:
    """Dataset `d` of six chunks on `nodes`, and what it should be."""

    nodes: Stores
    now: State = ((), 0)
    snapshots: dict[str, State] = field(default_factory=dict)

    @classmethod
    def begun(cls, nodes: Stores) -> Model:
        """Even chunks on the first node, odd ones on the second, chunk 5 of fill value."""
        model = cls(nodes, ((b"",) * CHUNKS, 0))
        catalog.publish(nodes, new_record())
        for chunk in range(CHUNKS):
            model.write(chunk, chunk % len(nodes.stores), 1 if chunk < 5 else 0)
        return model

    def write(self, chunk: int, node: int, value: int) -> None:
        """A commit as a run makes it: the generation after the newest. Value 0 is fill value, which has no file."""
        data = np.full(4, value, "<i4").tobytes() if value else b""
        store = self.nodes.stores[node]
        table = catalog.chunk_table(self.nodes, "d", ARRAY, CHUNKS)
        here = store.manifest.replica("d", ARRAY, chunk)
        checksum = digest(data) if data else EMPTY
        generation = int(table.rows["generation"][chunk]) + 1
        replica = Replica("d", ARRAY, chunk, generation, len(data), checksum, digest(b"recipe" + data), digest(b"in"))
        replaces = here.generation if here else 0
        staged = store.stage(replica, data, replaces=replaces) if data else store.stage_empty(replica, replaces=replaces)
        store.commit([staged])
        self.now = (tuple(data if number == chunk else old for number, old in enumerate(self.now[0])), self.now[1])

    def apply_pipeline(self) -> None:
        record = catalog.find(self.nodes, "d")
        assert catalog.publish(self.nodes, record.next(transforms=(*record.transforms, {"declared": "x", "steps": {}})))
        self.now = (self.now[0], self.now[1] + 1)

    def take(self, tag: str) -> None:
        take_snapshot(self.nodes, "d", tag)
        self.snapshots[tag] = self.now

    def back(self, tag: str) -> None:
        roll_back(self.nodes, "d", tag)
        self.now = self.snapshots[tag]

    def delete(self, tag: str) -> None:
        delete_snapshot(self.nodes, "d", tag)
        del self.snapshots[tag]

    def check(self) -> None:
        """Dataset, record, snapshots and files are what they should be, on every node."""
        record = catalog.find(self.nodes, "d")
        assert (record.state, len(record.transforms)) == ("ready", self.now[1])
        table = catalog.chunk_table(self.nodes, "d", ARRAY, CHUNKS)
        assert tuple(self.read(table.holder_sets[chunk], chunk) for chunk in range(CHUNKS)) == self.now[0]
        assert set(record.snapshots) == set(self.snapshots)
        for tag, (chunks, transforms) in self.snapshots.items():
            assert len(record.snapshots[tag]["transforms"]) == transforms
            assert self.kept(tag) == chunks
        for store in self.nodes.stores:
            assert store.manifest.intents() == []
            base = store.root / "snapshots" / "d"
            assert ({path.name for path in base.iterdir()} if base.exists() else set()) == set(self.snapshots)

    def read(self, holders: frozenset[str], chunk: int) -> bytes:
        """The chunk, the same from every holder."""
        found = {store.read("d", ARRAY, chunk)[1] for store in self.nodes.stores if store.node_id in holders}
        assert len(found) == 1
        return found.pop()

    def kept(self, tag: str) -> tuple[bytes, ...]:
        """What the files of a snapshot hold, all nodes together."""
        record = catalog.find(self.nodes, "d")
        table = _kept_tables(self.nodes, record, record.snapshots[tag]["id"])[ARRAY]
        roots = {store.node_id: folder_of(store, "d", tag) for store in self.nodes.stores}
        found = []
        for chunk, holders in enumerate(table.holder_sets):
            path = roots[min(holders)] / ARRAY / record.array(ARRAY).key(chunk)
            found.append(path.read_bytes() if os.path.exists(path) else b"")
        return tuple(found)
