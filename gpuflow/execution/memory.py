"""Memory of a plan on the workers that there are: asked of them, or of this machine where no cluster runs yet."""

from __future__ import annotations

import os
from collections import Counter
from urllib.parse import urlsplit

from distributed.system import MEMORY_LIMIT

from gpuflow.cluster.connection import Connection
from gpuflow.cluster.launch import share_out
from gpuflow.datasets.catalog import Nodes
from gpuflow.datasets.sizes import stored_sizes
from gpuflow.pipelines.memory import Prediction, WorkerRoom, check, need_to_map, need_to_read
from gpuflow.pipelines.plan import Plan
from gpuflow.storage.node import NodeStore
from gpuflow.storage.record import DatasetRecord

_PAUSE = 0.8  # Dask's default for distributed.worker.memory.pause


def check_memory(nodes: Nodes, plan: Plan) -> Prediction | None:
    """What the tightest worker would need. PlanTooLarge when it has not that much."""
    sizes = stored_sizes(nodes, plan.source.name, [array.path for array in plan.arrays])
    return check([need_to_map(array, sizes[array.path]) for array in plan.arrays if sizes[array.path].chunks], rooms(nodes))


def check_reading(nodes: Nodes, source: DatasetRecord, path: str) -> None:
    """PlanTooLarge when the chunks of an array are too large to be read on the workers at all."""
    stored = stored_sizes(nodes, source.name, [path])[path]
    check([need_to_read(path, source.array(path), stored)] if stored.chunks else [], rooms(nodes))


def rooms(nodes: Nodes) -> list[WorkerRoom]:
    """Every worker with what it may use. Without a cluster: those of the embedded one that a run would start."""
    if not isinstance(nodes, Connection):
        count = max(1, len(nodes.each_node(_node_id)))
        workers, threads = share_out(count)
        nbytes = int(MEMORY_LIMIT * min(1, threads / len(os.sched_getaffinity(0))) * _PAUSE)
        return [WorkerRoom("a worker", threads, nbytes)] * (count * workers)
    known = nodes.info()["workers"]
    machines = Counter(urlsplit(address).hostname for address in known)
    return [
        WorkerRoom(
            f"worker {address} of node {worker['node']}",
            worker["threads"],
            worker["usable_nbytes"] or worker["machine_nbytes"] // machines[urlsplit(address).hostname],
        )
        for address, worker in sorted(known.items())
    ]


def _node_id(store: NodeStore) -> str:
    return store.node_id
