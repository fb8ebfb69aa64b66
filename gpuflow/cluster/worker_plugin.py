"""A worker's side: its node's store, opened and recovered before it joins, and the chunks it serves to its peers."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from distributed import Worker, get_worker
from distributed.protocol import to_serialize
from distributed.system import MEMORY_LIMIT
from distributed.utils import sync

from gpuflow.cluster.messages import NodeInfo
from gpuflow.errors import ChunkCorrupt, ChunkLost
from gpuflow.storage.buffers import Slots
from gpuflow.storage.disk import digest
from gpuflow.storage.manifest import Replica
from gpuflow.storage.node import NodeStore

T = TypeVar("T")

_SERVED_AT_ONCE = 4  # chunks in memory for peers, so that a hot node does not fill up; two cores saturate a 10 Gbit/s link
_FETCH_SECONDS = 60.0  # a chunk that takes longer comes from a peer that stalls


class NodeRuntime:
    """`worker.gpuflow`: the store, the buffers, and the way to peers and scheduler. Methods are called from task threads."""

    def __init__(self, worker: Worker, store: NodeStore) -> None:
        self.worker, self.store, self.slots = worker, store, Slots()
        self.committer = ThreadPoolExecutor(worker.state.nthreads, thread_name_prefix="commit")  # threads that wait for the disk
        self.sent: Counter[str] = Counter()  # run -> chunk bytes that left this worker
        self._serving = asyncio.Semaphore(_SERVED_AT_ONCE)

    def info(self, worker: Worker) -> dict[str, Any]:
        """Startup information: what the scheduler learns when the worker joins."""
        manager = worker.memory_manager
        usable = int(manager.memory_limit * (manager.memory_pause_fraction or 1.0)) if manager.memory_limit else None
        return asdict(NodeInfo(self.store.node_id, str(self.store.root), usable, MEMORY_LIMIT))

    # -- served to others -----------------------------------------------------------------------------------------------------

    async def changes(self, since: int) -> dict[str, Any]:
        """The replicas committed on this node after sequence number `since`."""
        newest, arrays = await asyncio.to_thread(self.store.manifest.changes, since)
        # As bytes: the scheduler does not deserialize what passes through it, but msgpack's bytes it has.
        reports = [(*name, chunks.tobytes(), generations.tobytes()) for name, (chunks, generations) in arrays.items()]
        return {"newest": newest, "arrays": reports}

    async def get_chunk(self, dataset: str, array: str, chunk: int, run: str) -> dict[str, Any]:
        """A verified chunk for a peer. It is named by its place in the manifest; no path is ever taken from the wire."""
        async with self._serving:
            try:
                replica, data = await asyncio.to_thread(self.store.read, dataset, array, chunk)
            except ChunkCorrupt as error:
                return {"damaged": [error.chunk, error.node, error.reason]}
            except LookupError:
                return {"missing": True}
            self.sent[run] += len(data)
            return {"replica": asdict(replica), "data": to_serialize(np.frombuffer(data, dtype=np.uint8))}

    # -- asked of others --------------------------------------------------------------------------------------------------------

    def locate(self, dataset: str, array: str, chunks: Sequence[int]) -> list[list[str]]:
        """Addresses of workers that can serve each of `chunks`, this one left out."""
        found = self._wait(self.worker.scheduler.gf_locate, dataset=dataset, array=array, chunks=list(chunks))
        return [[address for address in addresses if address != self.worker.address] for addresses in found]

    def fetch(self, name: str, addresses: Sequence[str], dataset: str, array: str, chunk: int, run: str) -> tuple[Replica, bytes]:
        """A chunk from the first of the peers that has it whole. ChunkCorrupt when one had it damaged, else ChunkLost."""
        damaged: ChunkCorrupt | None = None
        for address in addresses:
            try:
                answer = self._wait(self.worker.rpc(address).gf_get_chunk, dataset=dataset, array=array, chunk=chunk, run=run)
            except (OSError, TimeoutError):
                continue
            if "replica" not in answer:
                damaged = ChunkCorrupt(*answer["damaged"]) if "damaged" in answer else damaged
                continue
            replica, data = Replica(**answer["replica"]), memoryview(answer["data"]).tobytes()
            if data and digest(data) != replica.digest:
                damaged = ChunkCorrupt(name, address, "its bytes changed on the way")
                continue
            return replica, data
        raise damaged or ChunkLost(name, addresses)

    def announce(self, commits: Sequence[tuple[str, str, list[int], list[int]]], transfer: tuple[int, float]) -> None:
        """Tell the scheduler what was committed here, and what a transfer cost."""
        message = {"op": "gf_delta", "node": self.store.node_id, "commits": list(commits), "transfer": transfer}
        self.worker.loop.add_callback(self.worker.batched_send, message)

    def _wait(self, call: Callable[..., Any], **kwargs: Any) -> Any:
        async def bounded() -> Any:
            return await asyncio.wait_for(call(**kwargs), _FETCH_SECONDS)

        return sync(self.worker.loop, bounded)


def runtime() -> NodeRuntime:
    """The runtime of the worker that runs the calling task."""
    found: NodeRuntime = get_worker().gpuflow
    return found


def on_store(function: Callable[..., T], *args: Any, dask_worker: Worker) -> T:
    """Run `function(store, *args)` on a worker: pass it to `Client.run`."""
    return function(dask_worker.gpuflow.store, *args)


def sent_bytes(run: str, dask_worker: Worker) -> int:
    """Chunk bytes that left this worker for `run`."""
    return int(dask_worker.gpuflow.sent[run])


def install(worker: Worker, root: Path, name: str | None = None) -> NodeRuntime:
    """Open and recover the store at `root`, and make `worker` one of its node's workers. StoreError when the root is unusable."""
    store = NodeStore(root, name=name)
    store.recover()
    runtime = worker.gpuflow = NodeRuntime(worker, store)
    worker.startup_information["gpuflow"] = runtime.info
    worker.handlers["gf_changes"] = runtime.changes
    worker.handlers["gf_get_chunk"] = runtime.get_chunk
    return runtime
