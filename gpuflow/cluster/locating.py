"""A cluster's chunks as a `Locator`: of a client, and of a worker.

What lies where is asked of the scheduler. A client on the same machine as a node, such as that of an embedded cluster, opens the node's
store and reads there without the network; a worker has its own node's."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import asdict, astuple, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from gpuflow.cluster.connection import Connection, connect
from gpuflow.cluster.messages import ChunkGroup, unpacked_column
from gpuflow.cluster.peers import Holders, Peers, Transfer
from gpuflow.cluster.place import place_of
from gpuflow.cluster.worker_plugin import NodeRuntime, runtime
from gpuflow.datasets import catalog
from gpuflow.datasets.here import NodesHere, newest_local
from gpuflow.datasets.settled import changed_by
from gpuflow.datasets.writing import Data, Writing
from gpuflow.errors import ChunkCorrupt, ChunkLost, ClusterError, NotFound, StoreError
from gpuflow.storage import placing
from gpuflow.storage.disk import digest
from gpuflow.storage.locator import Found, Locator, Parts, Placer, Whereabouts, find_record
from gpuflow.storage.manifest import Replica
from gpuflow.storage.node import EMPTY, NodeStore
from gpuflow.storage.record import DatasetRecord
from gpuflow.storage.snapshots import Kept

logger = logging.getLogger(__name__)

T = TypeVar("T")

_WINDOW, _MOMENT_SECONDS = 64, 5.0
"""Chunks whose holders are asked for together, and how long the answer is taken for good."""
_Addresses = dict[int, list[tuple[str, str]]]
"""By chunk: (address of a worker that has it, its node)."""
_READ = "read"
"""The run that chunks are sent for when they are read outside of one."""


class _OnCluster(Writing):
    """What both have in common. ask: calls a handler of the scheduler's plugin; address: the scheduler's."""

    def __init__(self, address: str, peers: Peers, ask: Callable[..., Any], here: Mapping[str, NodeStore]) -> None:
        self.address, self._peers, self._ask, self._here = address, peers, ask, here
        self.reads: Counter[str] = Counter()
        self._located: dict[tuple[str, str, int], tuple[float, _Addresses]] = {}
        self._records: dict[str, tuple[float, DatasetRecord]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return Elsewhere, (self.address,)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _OnCluster | Elsewhere) and self.address == other.address

    def __hash__(self) -> int:
        return hash(self.address)

    def generations(self, dataset: str, array: str, count: int) -> NDArray[np.uint32]:
        """See `Locator`."""
        column = self.whereabouts(dataset, array, count).generations
        return np.broadcast_to(column[:1], (count,)) if count and (column == column[0]).all() else column

    def holders(self, dataset: str, array: str, chunk: int) -> list[str]:
        """See `Writing`."""
        (held,) = self._ask("gf_locate", dataset=dataset, array=array, chunks=[chunk], named=True)
        return sorted({node for _, node in held})

    def write_on(self, node: str, dataset: str, array: str, chunk: int, data: Data) -> Replica:
        """See `Writing`."""
        if node in self._here:
            replica = placing.write_chunk(self._here[node], dataset, array, chunk, data)
            self._wrote(node, replica)
            return replica
        return self._put(node, dataset, array, chunk, data)

    def copy_to(self, node: str, replica: Replica, data: Data) -> None:
        """See `Writing`."""
        if node not in self._here:
            self._put(node, replica.dataset, replica.array, replica.chunk, data, replica)
        elif self._here[node].adopt(replica, data):
            self._wrote(node, replica)

    def _put(self, node: str, dataset: str, array: str, chunk: int, data: Data, copy: Replica | None = None) -> Replica:
        """On a worker of `node`. Its errors are raised here."""
        (held,) = self._ask("gf_locate", dataset=dataset, array=array, chunks=[chunk], named=True)
        address = min(address for address, at in held if at == node)
        question = {"dataset": dataset, "array": array, "chunk": chunk, "copy": astuple(copy)[3:] if copy else None}
        return Replica(dataset, array, chunk, *self._peers.put(address, np.frombuffer(data, np.uint8), question))

    def kept_on(self, node: str, what: Kept, array: str, chunk: int) -> tuple[Replica, bytes]:
        """See `Keepers`."""
        workers = self._ask("gf_info")["workers"]
        for address in sorted(address for address, worker in workers.items() if worker["node"] == node):
            try:
                values, data = self._peers.kept(address, {**asdict(what), "array": array, "chunk": chunk})
            except (OSError, TimeoutError) as error:
                logger.info("worker %s did not give chunk %d of a snapshot: %s", address, chunk, error)
                continue
            replica = Replica(what.dataset, array, chunk, *values)
            if replica.digest != EMPTY and digest(data) != replica.digest:
                raise ChunkCorrupt(f"{what.dataset}/{array} number {chunk} of snapshot {what.tag!r}", node, "it arrived damaged")
            return replica, data
        raise ChunkLost(f"{what.dataset}/{array} number {chunk} of snapshot {what.tag!r}", [node])

    def _wrote(self, node: str, replica: Replica) -> None:
        """Tell the scheduler what was committed on a node of this machine."""
        commit = (replica.dataset, replica.array, [replica.chunk], [replica.generation])
        self._ask("gf_wrote", node=node, commits=[commit])

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
        return self.local_many(dataset, array, [chunk]).get(chunk)

    def local_many(self, dataset: str, array: str, chunks: Sequence[int]) -> dict[int, tuple[NodeStore, Replica]]:
        """See `Locator`."""
        return newest_local(self._here.values(), dataset, array, chunks)

    def fetch(self, dataset: str, array: str, chunk: int, least: int, but: Set[str] = frozenset()) -> Found:
        """See `Locator`."""
        nodes: dict[str, str] = {}

        def serving(chunks: Sequence[int], known: _Addresses) -> Holders:
            nodes.update(address for at in chunks for address in known[at])
            return {at: [address for address, node in known[at] if node not in but] for at in chunks}

        def locate(chunks: Sequence[int]) -> Holders:
            self._located.pop((dataset, array, chunk // _WINDOW), None)
            return serving(chunks, self._locate(dataset, array, list(chunks)))

        name = self._known_record(dataset).chunk_name(array, chunk)
        group = ChunkGroup(_READ, dataset, array, (chunk,), (least,), (0,), nbytes=0, work=0)
        transfer = Transfer(self._peers, group, [chunk], serving([chunk], self._near(dataset, array, chunk)), locate)
        try:
            replica, data = transfer.take(chunk, name)
        except ChunkLost as error:
            raise ChunkLost(name, sorted({*(nodes.get(at, at) for at in error.searched), *nodes.values()} - but)) from error
        except ChunkCorrupt as error:
            raise ChunkCorrupt(name, nodes.get(error.node, error.node), error.reason) from error
        finally:
            transfer.close()
        return Found(replica, data, nodes.get(transfer.source, transfer.source), False)

    def parts(self, replica: Replica, but: Set[str] = frozenset()) -> Parts | None:
        """See `PartLocator`."""
        known = dict(self._near(replica.dataset, replica.array, replica.chunk)[replica.chunk])
        addresses = self._peers.in_order([address for address, node in known.items() if node not in but])
        if not addresses:
            return None
        return Parts(known[addresses[0]], partial(self._peers.ranges, addresses[0], replica, _READ))

    def _near(self, dataset: str, array: str, chunk: int) -> _Addresses:
        """Who serves the chunk and those beside it, as it was a moment ago. When they do not, the transfer asks anew."""
        key, now = (dataset, array, chunk // _WINDOW), time.monotonic()
        asked, known = self._located.get(key, (0.0, {}))
        if chunk not in known or now - asked > _MOMENT_SECONDS:
            count = self._known_record(dataset).array(array).grid.size
            start = chunk // _WINDOW * _WINDOW
            known = self._locate(dataset, array, list(range(start, min(start + _WINDOW, count))))
            self._located[key] = now, known
        return known

    def _locate(self, dataset: str, array: str, chunks: list[int]) -> _Addresses:
        found = self._ask("gf_locate", dataset=dataset, array=array, chunks=chunks, named=True)
        return dict(zip(chunks, found, strict=True))

    def _known_record(self, dataset: str) -> DatasetRecord:
        """For names and numbers of chunks: any version of the record will do, but that a dataset may have been made anew."""
        known = self._records.get(dataset)
        if known is None or time.monotonic() - known[0] > _MOMENT_SECONDS:
            known = self._records[dataset] = time.monotonic(), self.record(dataset)
        return known[1]

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
    """Of a client. Nodes whose store is on this machine are read where they lie. owned: the connection is closed with it."""

    def __init__(self, connection: Connection, *, owned: bool = False) -> None:
        self.connection, self._owned = connection, owned
        client = connection.client
        peers = Peers(_Client(client.rpc, client.loop, client.id))
        connection.ask("gf_sync")
        self._nodes = NodesHere(*_roots_here(connection))
        super().__init__(client.scheduler_info(n_workers=0)["address"], peers, connection.ask, self._nodes.stores)

    def each_node(self, function: Callable[..., T], *args: Any) -> dict[str, T]:
        """See `Nodes`."""
        return self.connection.each_node(function, *args)

    def sizes(self, dataset: str, array: str, count: int) -> NDArray[np.uint64]:
        """See `Locator`."""
        return np.asarray(catalog.chunk_table(self, dataset, array, count).rows["nbytes"], np.uint64)

    def changed_by(self, record: DatasetRecord) -> str:
        """See `Locator`."""
        return changed_by(self, record)

    def lay(self, record: DatasetRecord, array: str, first: int = 0) -> None:
        """See `Placer`."""
        super().lay(record, array, first)
        self._ask("gf_sync")

    def forget(self, dataset: str, array: str | None = None) -> None:
        """See `Placer`."""
        self._ask("gf_drop", dataset=dataset, array=array)

    def records(self) -> Mapping[str, DatasetRecord]:
        """See `Locator`."""
        return catalog.records(self.connection)

    def close(self) -> None:
        """See `Locator`. A connection that was given stays open."""
        self._nodes.close()
        if self._owned:
            self.connection.close()


class WorkerLocator(_OnCluster):
    """Of a worker, used in its tasks: local is what its own node holds."""

    def __init__(self, runtime: NodeRuntime) -> None:
        address = runtime.worker.scheduler.address
        super().__init__(address, runtime.peers, runtime.ask, {runtime.store.node_id: runtime.store})
        self._runtime = runtime

    def each_node(self, function: Callable[..., T], *args: Any) -> dict[str, T]:
        """Not from here: ClusterError."""
        raise ClusterError(
            "a task can read and write chunks, and not make or change arrays", "do that where the cluster's client is"
        )

    def sizes(self, dataset: str, array: str, count: int) -> NDArray[np.uint64]:
        """Not from here: ClusterError."""
        raise ClusterError("a task cannot list chunks", "do that where the cluster's client is")

    def changed_by(self, record: DatasetRecord) -> str:
        """See `Locator`: who opened the dataset has seen to that."""
        return ""

    def _wrote(self, node: str, replica: Replica) -> None:
        self._runtime.announce([(replica.dataset, replica.array, [replica.chunk], [replica.generation])])

    def records(self) -> Mapping[str, DatasetRecord]:
        """See `Locator`: those that its node has been given, which are all but those that were made while it was away."""
        return catalog.live({record.name: record for store in self._here.values() for record in store.manifest.records()})

    def close(self) -> None:
        """See `Locator`. The store is the worker's."""


_PASSED_ON = frozenset(
    name for name in {*vars(Locator), *vars(Placer), "reads", "stores", "kept_on", "each_node"} if not name.startswith("_")
)


class Elsewhere:
    """What is left of a locator when it is pickled: in a task it is the worker's, elsewhere that of a client of the same scheduler. Found
    at the first use of a locator's own methods, and of nothing else: the scheduler unpickles it too, and must not look for workers."""

    def __init__(self, address: str) -> None:
        self.address = address

    def __reduce__(self) -> tuple[Any, ...]:
        return Elsewhere, (self.address,)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _OnCluster | Elsewhere) and self.address == other.address

    def __hash__(self) -> int:
        return hash(self.address)

    def __getattr__(self, name: str) -> Any:
        if name not in _PASSED_ON:
            raise AttributeError(name)
        return getattr(self._found, name)

    @cached_property
    def _found(self) -> Locator:
        try:
            return worker_locator()
        except (ValueError, AttributeError):  # no worker, or one without gpuflow
            return ClientLocator(connect(self.address), owned=True)


_of_worker: WeakKeyDictionary[NodeRuntime, WorkerLocator] = WeakKeyDictionary()


def worker_locator() -> WorkerLocator:
    """That of the worker that runs the calling task. ValueError or AttributeError when none does."""
    here = runtime()
    return _of_worker.setdefault(here, WorkerLocator(here))


def reads_of(dask_worker: Any) -> dict[str, int]:
    """What the tasks of a worker have read outside of runs (see `Locator.reads`): pass it to `Client.run`."""
    locator = _of_worker.get(dask_worker.gpuflow)
    return dict(locator.reads) if locator else {}


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
