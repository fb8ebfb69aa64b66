"""Tasks of users' own Dask graphs that read chunks: routed like gpuflow's own, and otherwise as Dask has them.

A task that is restricted by its user stays as it is. One whose chunks no live node has must not wait for ever: after some seconds it runs
anywhere, and its reading says what is lost."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from itertools import count
from typing import Any

from distributed import Scheduler
from distributed.scheduler import TaskState

from gpuflow.cluster.messages import ChunkGroup
from gpuflow.cluster.references import ChunkRef, find_reference

logger = logging.getLogger(__name__)

GRACE_SECONDS = 10.0
"""For a node to come back: its workers are started again when they die."""
RUN = "user-"
"""What the runs of such graphs begin with; gpuflow's own are hexadecimal numbers."""

_numbers = count()


def is_foreign(group: ChunkGroup) -> bool:
    """Whether it is of a user's own task."""
    return group.run.startswith(RUN)


def foreign_groups(scheduler: Scheduler, keys: Iterable[Any]) -> dict[Any, ChunkGroup]:
    """Groups of those of `keys`, tasks of one graph, that read chunks."""
    run, found = f"{RUN}{next(_numbers)}", dict[Any, ChunkGroup]()

    def spec_of(key: Any) -> Any:
        task = scheduler.tasks.get(key)
        return None if task is None else task.run_spec

    for key in keys:
        task = scheduler.tasks.get(key)
        if task is None or not _is_free(task):
            continue
        try:
            ref = find_reference(task.run_spec, spec_of)
        except Exception:
            logger.exception("what %s reads cannot be told", key)
            continue
        if ref is not None:
            found[key] = _group(run, ref)
    return found


def _is_free(task: TaskState) -> bool:
    """Whether nothing was said of where it is to run, and it does not run yet."""
    restricted = task.worker_restrictions or task.host_restrictions or task.resource_restrictions
    return not restricted and not task.actor and task.run_spec is not None and task.state in ("released", "waiting")


def _group(run: str, ref: ChunkRef) -> ChunkGroup:
    zeros = (0,) * len(ref.chunks)
    return ChunkGroup(run, ref.dataset, ref.array, ref.chunks, ref.generations, zeros, ref.work, ref.work, device=ref.device)
