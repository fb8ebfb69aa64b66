"""What the scheduler reads off a chunk task.

Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gpuflow.cluster.inventory import ArrayName
from gpuflow.cluster.messages import PREFIX, ChunkGroup

_CHUNK_WORK = 2**20
"""What a chunk costs whatever its size, as so many decoded bytes: else one of 42 bytes makes all others look slow."""


def is_chunk_task(key: Any) -> bool:
    """Whether a key is one of ours."""
    return isinstance(key, tuple) and isinstance(key[0], str) and key[0].startswith(PREFIX)


def group_of(run_spec: Any) -> ChunkGroup | None:
    """The ChunkGroup among a task's arguments: tasks are routed by what they hold, since annotations get lost on the way."""
    if isinstance(run_spec, ChunkGroup):
        return run_spec
    if isinstance(run_spec, dict):
        parts: Iterable[Any] = run_spec.values()
    elif isinstance(run_spec, list | tuple):
        parts = run_spec
    elif hasattr(run_spec, "args"):
        parts = [*run_spec.args, *getattr(run_spec, "kwargs", {}).values()]
    else:
        return None
    return next((found for part in parts if (found := group_of(part)) is not None), None)


def array_of(group: ChunkGroup) -> ArrayName:
    """What its chunks are of."""
    return group.dataset, group.array


def work_of(group: ChunkGroup) -> int:
    """What the time of a task is proportional to."""
    return group.work + _CHUNK_WORK * len(group.chunks)


def compute_seconds(startstops: Iterable[Mapping[str, Any]]) -> float:
    """How long a task ran: a difference of two times by the same clock, the worker's."""
    return float(sum(part["stop"] - part["start"] for part in startstops if part["action"] == "compute"))
