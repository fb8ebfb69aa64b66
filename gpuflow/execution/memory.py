"""Memory of a plan on the workers that there are: asked of them, or of this machine where no cluster runs yet."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from urllib.parse import urlsplit

from distributed.system import MEMORY_LIMIT

from gpuflow.cluster.connection import Connection
from gpuflow.cluster.launch import share_out
from gpuflow.cluster.worker_device import kept_nbytes, used_nbytes
from gpuflow.datasets.catalog import ChunkTable, Nodes
from gpuflow.datasets.sizes import stored_sizes
from gpuflow.datasets.survey import Survey
from gpuflow.pipelines.memory import Prediction, WorkerRoom, check, need_to_gather, need_to_map, need_to_read
from gpuflow.pipelines.plan import Plan
from gpuflow.storage.metadata import ArrayMetadata
from gpuflow.storage.node import NodeStore

_PAUSE = 0.8  # Dask's default for distributed.worker.memory.pause


def check_memory(nodes: Nodes, found: Survey, plan: Plan, workers: int | None = None) -> Prediction | None:
    """What the tightest worker would need. PlanTooLarge when it has not that much. workers: as for `rooms`."""
    there, needs = rooms(nodes, workers, plan.spec.run.memory), []
    if plan.spec.run.device == "cpu":
        there = [replace(room, device_nbytes=0) for room in there]
    for array in plan.arrays:
        tables = [found.table(plan.source.name, path, array.sources[path].grid.size) for path in array.flow.paths]
        sizes = [stored_sizes(table) for table in tables]
        if all(size.chunks for size in sizes):
            needs.append(need_to_gather(array, sizes, there) if array.gathered else need_to_map(array, sizes[0]))
    return check(needs, there)


def check_reading(nodes: Nodes, path: str, metadata: ArrayMetadata, table: ChunkTable) -> None:
    """PlanTooLarge when the chunks of an array are too large to be read on the workers at all."""
    check([need_to_read(path, metadata, stored_sizes(table))] if table.present.any() else [], rooms(nodes))


def rooms(nodes: Nodes, workers: int | None = None, most: int | None = None) -> list[WorkerRoom]:
    """Every worker with what it may use. Without a cluster: those of the embedded one that a run would start, `workers` on each node.

    most: bytes that a run may use of each, as `run.memory` has it."""
    there = _rooms(nodes, workers)
    if most is None:
        return there
    return [
        room if room.nbytes <= most else replace(room, name=f"{room.name}, within run.memory,", nbytes=most) for room in there
    ]


def _rooms(nodes: Nodes, workers: int | None) -> list[WorkerRoom]:
    if not isinstance(nodes, Connection):
        count = max(1, len(nodes.each_node(_node_id)))
        workers, threads = share_out(count, workers)
        nbytes = int(MEMORY_LIMIT * min(1, threads / len(os.sched_getaffinity(0))) * _PAUSE)
        return [WorkerRoom("a worker", threads, nbytes, node=str(number)) for number in range(count) for _ in range(workers)]
    known = nodes.seen()["workers"]
    machines = Counter(urlsplit(address).hostname for address in known)
    return [
        WorkerRoom(
            f"worker {address} of node {worker['node']}",
            worker["threads"],
            worker["usable_nbytes"] or worker["machine_nbytes"] // machines[urlsplit(address).hostname],
            used_nbytes(worker["device_nbytes"]) - kept_nbytes(worker["device_nbytes"]),
            worker["node"],
        )
        for address, worker in sorted(known.items())
    ]


def _node_id(store: NodeStore) -> str:
    return store.node_id
