"""A cluster's chunks as a `Locator`: of a client, and of a worker.

What lies where is asked of the scheduler. A client on the same machine as a node, such as that of an embedded cluster, opens the node's
store and reads there without the network; a worker has its own node's."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpuflow.cluster.connection import Connection
from gpuflow.cluster.messages import ChunkGroup, unpacked_column
from gpuflow.cluster.peers import Holders, Peers, Transfer
from gpuflow.cluster.place import place_of
from gpuflow.cluster.worker_plugin import NodeRuntime
from gpuflow.datasets import catalog
from gpuflow.datasets.here import NodesHere
from gpuflow.errors import ChunkCorrupt, ChunkLost, NotFound, StoreError
from gpuflow.storage.locator import Found, Whereabouts, find_record
from gpuflow.storage.manifest import Replica
from gpuflow.storage.node import NodeStore
from gpuflow.storage.record import DatasetRecord

logger = logging.getLogger(__name__)

_READ = "read"
"""The run that chunks are sent for when they are read outside of one."""


class _OnCluster:
    """What both have in common. ask: calls a handler of the scheduler's plugin."""

    def __init__(self, peers: Peers, ask: Callable[..., Any], here: Mapping[str, NodeStore]) -> None:
        self._peers, self._ask, self._here = peers, ask, here

    @property
    def stores(self) -> Mapping[str, NodeStore]:
        """Those that are read where they lie, by node id."""
        return self._here

    def whereabouts(self, dataset: str, array: str, count: int) -> Whereabouts:
        """See `Locator`."""
        told = self._ask("gf_whereabouts", dataset=dataset, array=array, count=count)
        sets = [frozenset(nodes) for nodes in told["sets"]]
        return Whereabouts(unpacked_column(told["generations"]), unpacked_column(told["holders"]), sets)

    def local(self, dataset: str, array: str, chunk: int) -> tuple[NodeStore, Replica] | None:
        """See `Locator`."""
        newest: tuple[NodeStore, Replica] | None = None
        for store in self._here.values():
            replica = store.manifest.replica(dataset, array, chunk)
            if replica is not None and (newest is None or replica.generation > newest[1].generation):
                newest = store, replica
        return newest

    def fetch(self, dataset: str, array: str, chunk: int, least: int, but: Set[str] = frozenset()) -> Found:
        """See `Locator`."""
        nodes: dict[str, str] = {}

        def locate(chunks: Sequence[int]) -> Holders:
            found = self._ask("gf_locate", dataset=dataset, array=array, chunks=list(chunks), named=True)
            nodes.update(address for held in found for address in held)
            return {at: [address for address, node in held if node not in but] for at, held in zip(chunks, found, strict=True)}

        name = self.record(dataset).chunk_name(array, chunk)
        group = ChunkGroup(_READ, dataset, array, (chunk,), (least,), (0,), nbytes=0, work=0)
        transfer = Transfer(self._peers, group, [chunk], locate([chunk]), locate)
        try:
            replica, data = transfer.take(chunk, name)
        except ChunkLost as error:
            raise ChunkLost(name, sorted({*(nodes.get(at, at) for at in error.searched), *nodes.values()} - but)) from error
        except ChunkCorrupt as error:
            raise ChunkCorrupt(name, nodes.get(error.node, error.node), error.reason) from error
        finally:
            transfer.close()
        return Found(replica, data, nodes.get(transfer.source, transfer.source), False)

    def record(self, dataset: str) -> DatasetRecord:
        """See `Locator`."""
        for store in self._here.values():
            try:
                return store.record(dataset)  # a record is given to every node before it counts
            except NotFound:
                continue
        return find_record(self.records(), dataset)

    def records(self) -> Mapping[str, DatasetRecord]:
        """See `Locator`."""
        raise NotImplementedError


class ClientLocator(_OnCluster):
    """Of a client. Nodes whose store is on this machine are read where they lie."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        client = connection.client
        peers = Peers(_Client(client.rpc, client.loop, client.id))
        connection.ask("gf_sync")
        self._nodes = NodesHere(*_roots_here(connection))
        super().__init__(peers, connection.ask, self._nodes.stores)

    def records(self) -> Mapping[str, DatasetRecord]:
        """See `Locator`."""
        return catalog.records(self._connection)

    def close(self) -> None:
        """See `Locator`. The connection stays open."""
        self._nodes.close()


class WorkerLocator(_OnCluster):
    """Of a worker, used in its tasks: local is what its own node holds."""

    def __init__(self, runtime: NodeRuntime) -> None:
        super().__init__(runtime.peers, runtime.ask, {runtime.store.node_id: runtime.store})

    def records(self) -> Mapping[str, DatasetRecord]:
        """See `Locator`: those that its node has been given, which are all but those that were made while it was away."""
        return catalog.live({record.name: record for store in self._here.values() for record in store.manifest.records()})

    def close(self) -> None:
        """See `Locator`. The store is the worker's."""


@dataclass(frozen=True)
class _Client:
    """What `Peers` needs of a Dask client."""

    rpc: Any
    loop: Any
    address: str


def _roots_here(connection: Connection) -> list[Path]:
    """Store roots of the cluster's nodes that lie on this machine and may be read."""
    found: dict[str, Path] = {}
    for worker in connection.info()["workers"].values():
        root = Path(worker["root"])
        try:
            if worker["node"] not in found and place_of(root) == worker["place"]:
                NodesHere(root).close()
                found[worker["node"]] = root
        except FileNotFoundError:
            continue
        except (StoreError, OSError) as error:
            logger.info("node %s is on this machine, and its chunks are asked of its workers: %s", worker["node"], error)
    return list(found.values())
