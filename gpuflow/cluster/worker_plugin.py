"""A worker's side: its node's store, opened and recovered before it joins, and what it and the scheduler tell each other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from distributed import Worker, get_worker
from distributed.system import MEMORY_LIMIT
from distributed.utils import sync
from numpy.typing import NDArray

from gpuflow.backends.accelerator import Accelerator
from gpuflow.backends.inflight import InFlight
from gpuflow.cluster.messages import SHIPPED, NodeInfo, Transferred
from gpuflow.cluster.peers import Holders, Peers
from gpuflow.cluster.place import place_of
from gpuflow.cluster.ram import RamTier
from gpuflow.cluster.serving import Serving
from gpuflow.cluster.shell import Shells
from gpuflow.cluster.worker_device import CPU, WorkerDevice, kept_nbytes, used_nbytes
from gpuflow.settings import exec_is_allowed, shell_is_allowed
from gpuflow.storage import snapshots
from gpuflow.storage.buffers import Slots
from gpuflow.storage.calibration import Calibration, kept_or_reason
from gpuflow.storage.manifest import Replica
from gpuflow.storage.node import NodeStore
from gpuflow.storage.placing import write_chunk
from gpuflow.storage.tail import LOOK_SECONDS, Tail

T = TypeVar("T")

_LOCATE_SECONDS = 30.0  # for the scheduler's answer


class NodeRuntime:
    """`worker.gpuflow`: the store, the buffers, and the way to peers and scheduler. Methods are called from task threads."""

    def __init__(self, worker: Worker, store: NodeStore, device: WorkerDevice) -> None:
        self.worker, self.store = worker, store
        self.committer = ThreadPoolExecutor(worker.state.nthreads, thread_name_prefix="commit")  # threads that wait for the disk
        self.given_up = set[str]()
        """Runs that have waited in vain for a node to come back."""
        self.device = device
        self.serving, self.peers = Serving(store), Peers(worker)
        self.slots, self.ram = Slots(), RamTier(worker)
        self.accelerator: Accelerator | None = None
        """The worker's CUDA device, if it has one that CuPy can use."""
        self.flight: InFlight | None = None
        """Of the chunks on it."""
        if device.name != CPU and "cupy" not in device.lacks:
            from gpuflow.backends.cuda import Cuda

            self.use(Cuda(used_nbytes(device.nbytes)), kept_nbytes(device.nbytes))
        self._tail: Tail | None = None

    @property
    def calibration(self) -> Calibration | None:
        """What was measured of the node; None when nothing was, or the file is damaged."""
        found = kept_or_reason(self.store.root)
        return found if isinstance(found, Calibration) else None

    def use(self, accelerator: Accelerator, kept_nbytes: int) -> None:
        """Have chunks go to a device from now on; in `kept_nbytes` of its memory they stay. Before the first task."""
        ram = RamTier(self.worker, accelerator.memory, kept_nbytes)

        def give_back() -> None:
            if ram.vram is not None:
                ram.vram.trim(ram.vram.nbytes // 2)
            accelerator.release()

        self.slots, self.ram, self.accelerator = Slots(accelerator.pinned), ram, accelerator
        self.flight = InFlight(self.worker.state.nthreads, give_back)

    def info(self, worker: Worker) -> dict[str, Any]:
        """Startup information: what the scheduler learns when the worker joins."""
        manager = worker.memory_manager
        usable = int(manager.memory_limit * (manager.memory_pause_fraction or 1.0)) if manager.memory_limit else None
        root = self.store.root
        return asdict(
            NodeInfo(
                self.store.node_id,
                str(root),
                place_of(root),
                usable,
                MEMORY_LIMIT,
                allows_exec=exec_is_allowed(),
                allows_shell=shell_is_allowed(),
                device=self.device.name,
                device_name=self.device.title,
                device_nbytes=self.device.nbytes,
                why_cpu=self.device.why_cpu,
                lacks=self.device.lacks,
            )
        )

    # -- served to others -----------------------------------------------------------------------------------------------------

    async def changes(self, since: int) -> dict[str, Any]:
        """The replicas committed on this node after sequence number `since`, and what this worker has in memory."""
        newest, arrays = await asyncio.to_thread(self.store.manifest.changes, since)
        # As bytes: the scheduler does not deserialize what passes through it, but msgpack's bytes it has.
        reports = [(*name, chunks.tobytes(), generations.tobytes()) for name, (chunks, generations) in arrays.items()]
        return {"newest": newest, "arrays": reports, "ram": self.ram.contents()}

    async def forget(self, dataset: str, array: str | None) -> None:
        """What is in memory of a dataset, or an array of it, that was removed."""
        self.ram.forget(dataset, array)

    async def events(self, since: int, dataset: str | None, seconds: float) -> dict[str, Any]:
        """What was committed on this node after number `since`, by whatever process; waits up to `seconds` for something to come."""
        if self._tail is None:
            self._tail = Tail(self.store.root)
        tail, deadline = self._tail, self.worker.loop.time() + seconds
        page = await asyncio.to_thread(tail.page, since, dataset)
        while page.is_empty and not page.more and self.worker.loop.time() < deadline:
            await asyncio.sleep(LOOK_SECONDS)
            if tail.newest() != page.newest:
                page = await asyncio.to_thread(tail.page, page.until, dataset)
        return page.to_wire()

    async def put_chunk(
        self, dataset: str, array: str, chunk: int, data: NDArray[np.uint8], copy: Sequence[Any] | None
    ) -> tuple[Any, ...]:
        """Commit a chunk that somebody wrote, as the next generation, or as the copy of that which another node has. Its replica, from the
        generation on."""

        def commit() -> Replica:
            stored = data.tobytes()
            if copy is None:
                return write_chunk(self.store, dataset, array, chunk, stored)
            replica = Replica(dataset, array, chunk, *copy)
            self.store.adopt(replica, stored)
            return replica

        replica = await asyncio.to_thread(commit)
        self.announce([(dataset, array, [chunk], [replica.generation])])
        return astuple(replica)[3:]

    # -- asked of others --------------------------------------------------------------------------------------------------------

    def locate(self, dataset: str, array: str, chunks: Sequence[int]) -> Holders:
        """Addresses of workers that can serve each of `chunks`."""
        found = self._wait(self.worker.scheduler.gf_locate, dataset=dataset, array=array, chunks=list(chunks))
        return dict(zip(chunks, found, strict=True))

    def claim(self, dataset: str, array: str, chunks: Sequence[int], most: int) -> list[int]:
        """Those of `chunks` that this node may keep a copy of, so that there are at most `most`."""
        node = self.store.node_id
        granted = self._wait(
            self.worker.scheduler.gf_claim, node=node, dataset=dataset, array=array, chunks=list(chunks), most=most
        )
        return list(granted)

    def told(self) -> tuple[str, list[str]]:
        """Why the calling task was released to this worker, which does not hold its chunks, and who does; nothing when it was taken to
        hold them."""
        task = self.worker.state.tasks.get(self.worker.get_current_task())
        why, holders = ((task.annotations or {}).get(SHIPPED) if task else None) or ("", ())
        return why, list(holders)

    def announce(self, commits: Sequence[tuple[str, str, list[int], list[int]]], transfer: Transferred = (0, 0, 0.0)) -> None:
        """Tell the scheduler what was committed here, and what a transfer cost."""
        message = {"op": "gf_delta", "node": self.store.node_id, "commits": list(commits), "transfer": transfer}
        self.worker.loop.add_callback(self.worker.batched_send, message)

    def report_lack(self, dataset: str, array: str, chunks: Sequence[int]) -> None:
        """Tell the scheduler that this node cannot serve chunks that it may be taken to hold: they are not here, or damaged."""
        message = {"op": "gf_lacks", "node": self.store.node_id, "dataset": dataset, "array": array, "chunks": list(chunks)}
        self.worker.loop.add_callback(self.worker.batched_send, message)

    def ask(self, operation: str, **kwargs: Any) -> Any:
        """Call one of the plugin's handlers on the scheduler."""
        return self._wait(getattr(self.worker.scheduler, operation), **kwargs)

    def _wait(self, call: Callable[..., Any], **kwargs: Any) -> Any:
        async def bounded() -> Any:
            return await asyncio.wait_for(call(**kwargs), _LOCATE_SECONDS)

        return sync(self.worker.loop, bounded)


def runtime() -> NodeRuntime:
    """The runtime of the worker that runs the calling task."""
    found: NodeRuntime = get_worker().gpuflow
    return found


async def on_store(function: Callable[..., T], *args: Any, dask_worker: Worker) -> T:
    """Run `function(store, *args)` on a worker, beside its event loop: pass it to `Client.run`."""
    return await asyncio.to_thread(function, dask_worker.gpuflow.store, *args)


def sent_bytes(run: str, dask_worker: Worker) -> int:
    """Chunk bytes that left this worker for `run`."""
    return int(dask_worker.gpuflow.serving.sent[run])


def install(worker: Worker, root: Path, name: str | None, device: WorkerDevice) -> NodeRuntime:
    """Open and recover the store at `root`, and make `worker` one of its node's workers. StoreError when the root is unusable."""
    store = NodeStore(root, name=name)
    store.recover()
    snapshots.sweep_all(store)
    runtime = worker.gpuflow = NodeRuntime(worker, store, device)
    worker.startup_information["gpuflow"] = runtime.info
    worker.handlers["gf_changes"] = runtime.changes
    worker.handlers["gf_events"] = runtime.events
    worker.handlers["gf_forget"] = runtime.forget
    worker.handlers["gf_put_chunk"] = runtime.put_chunk
    worker.handlers["gf_get_chunks"] = runtime.serving.get_chunks
    worker.handlers["gf_get_kept"] = runtime.serving.get_kept
    worker.handlers["gf_get_ranges"] = runtime.serving.get_ranges
    shells = Shells(worker, store)
    for operation in ("open", "send", "read", "keep", "interrupt", "close"):
        worker.handlers[f"gf_shell_{operation}"] = getattr(shells, operation)
    return runtime
