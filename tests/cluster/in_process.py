"""A cluster in this process, with a real scheduler that checks its invariants at every transition, and workers of nodes without disks."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict
from types import MappingProxyType
from typing import Any

import dask
import numpy as np
from dask.task_spec import Task
from distributed import Client, LocalCluster, Worker, get_worker

from gpuflow.cluster import scheduler_plugin
from gpuflow.cluster.messages import PREFIX, ChunkGroup, NodeInfo, packed_column
from gpuflow.cluster.scheduler_plugin import GpuflowPlugin

CHUNKS = 40


def group(chunk: int, run: str = "r", **options: Any) -> ChunkGroup:
    return ChunkGroup(run, "d", "x", (chunk,), (1,), (0,), nbytes=1000, work=100_000_000, **options)


def where(part: ChunkGroup | None, seconds: float = 0.0) -> str:
    time.sleep(seconds)
    return str(get_worker().name).split("-")[0]


def fail(part: ChunkGroup) -> None:
    raise KeyError(part.chunks[0])


class Cluster:
    """A scheduler with the plugin, workers of fake nodes that hold what `held` says, and a client."""

    def __init__(self, cluster: Any, client: Any, plugin: GpuflowPlugin) -> None:
        self.cluster, self.client, self.plugin = cluster, client, plugin
        self.scheduler = cluster.scheduler
        self.workers: dict[str, Worker] = {}

    async def start(
        self, name: str, held: Any = (), says: Mapping[str, Any] = MappingProxyType({}), ram: Any = (), **options: Any
    ) -> Worker:
        """A worker of node `name` (up to a dash), which holds chunks `held` at generation 1. says: what it says otherwise of itself. ram:
        chunks that it has decoded in memory."""
        worker = Worker(self.scheduler.address, nthreads=1, name=name, memory_limit=0, **options)
        columns = (np.array(list(held), np.uint32).tobytes(), np.ones(len(held), np.uint32).tobytes())

        async def changes(since: int) -> dict[str, Any]:
            in_memory = [("d", "x", packed_column(np.array(list(ram))), packed_column(np.zeros(0, int)))] if ram else []
            return {"newest": 1, "arrays": [("d", "x", *columns)] if since < 1 and len(held) else [], "ram": in_memory}

        node = name.split("-")[0]
        worker.handlers["gf_changes"] = changes
        worker.startup_information["gpuflow"] = lambda worker: (
            asdict(NodeInfo(node, f"/{node}", f"the disk of {node}")) | dict(says)
        )
        self.workers[name] = await worker
        return worker

    def submit(self, number: int, run: str = "r", function: Any = where, **options: Any) -> list[Any]:
        seconds = options.pop("seconds", 0.0)
        keys = [(f"{PREFIX}map-{run}", i) for i in range(number)]
        graph = {
            key: Task(key, function, group(key[1], run, **options), *([seconds] if function is where else [])) for key in keys
        }
        futures: list[Any] = self.client.get(graph, keys, sync=False)
        return futures

    async def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < deadline, "it did not come about"
            await asyncio.sleep(0.005)

    def states(self) -> Counter[str]:
        return Counter(task.state for task in self.scheduler.tasks.values())

    def assert_clean(self) -> None:
        assert not self.plugin.groups
        assert not self.plugin.router.waiting
        assert not self.plugin.router._flying
        assert not self.plugin.router._shares
        assert not self.plugin._tasks


@asynccontextmanager
async def started(nodes: int = 3, *, dashboard: bool = False) -> AsyncIterator[Cluster]:
    """`nodes` nodes n0, n1, ...; chunk i is on node i % nodes."""
    options = {"dashboard_address": ":0", "scheduler_kwargs": {"validate": True, "dashboard": dashboard}}
    async with (
        LocalCluster(n_workers=0, processes=False, asynchronous=True, **options) as local,
        Client(local, asynchronous=True) as client,
    ):
        cluster = Cluster(local, client, scheduler_plugin.install(local.scheduler))
        try:
            for i in range(nodes):
                await cluster.start(f"n{i}", range(i, CHUNKS, nodes))
            await cluster.until(lambda: len(cluster.plugin._cursors) == nodes)
            yield cluster
        finally:
            await asyncio.gather(*(worker.close() for worker in cluster.workers.values()))


def scenario(test: Callable[..., Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        async with started(**options) as cluster:
            await test(cluster)

    with dask.config.set({"distributed.comm.timeouts.connect": "5s", "distributed.worker.validate": True}):
        asyncio.run(main())
