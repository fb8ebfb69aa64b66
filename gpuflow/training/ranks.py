"""Which of how many ranks this is, and what all of them have to agree on.

Ranks talk to each other when their loaders are made, and never after: a loader cannot hang because another rank is gone."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from gpuflow.errors import ClusterError, ConfigError, GpuflowError, Problem

T = TypeVar("T")


def find_ranks(rank: int | None, world: int | None) -> tuple[int, int, bool]:
    """(rank, number of ranks, whether they are a process group of torch.distributed). Given both, else the process group's, else one.

    ConfigError for one without the other, and when a launcher has started several processes which have no process group yet."""
    if (rank is None) != (world is None):
        raise ConfigError([Problem("rank and world belong together", "rank", hint="give both, or neither")])
    if rank is not None and world is not None:
        if not 0 <= rank < world:
            raise ConfigError([Problem(f"rank {rank} of {world}", "rank", hint="ranks count from 0")])
        return rank, world, False
    group = _group()
    if group is not None:
        return int(group.get_rank()), int(group.get_world_size()), group.get_world_size() > 1
    launched = os.environ.get("WORLD_SIZE", "1")
    if launched.isdigit() and int(launched) > 1:
        hint = "call torch.distributed.init_process_group first, or give rank= and world="
        raise ConfigError(
            [Problem(f"this is one of {launched} processes (WORLD_SIZE), without a process group", "rank", hint=hint)]
        )
    return 0, 1, False


def has_neighbours(world: int) -> bool:
    """Whether other ranks, none of a process group, may be on this machine: unless the launcher says that it started one alone there."""
    return world > 1 and os.environ.get("LOCAL_WORLD_SIZE") != "1"


def _group() -> Any:
    """torch.distributed, where it is in use; nothing is imported for it."""
    torch = sys.modules.get("torch")
    group = getattr(torch, "distributed", None)
    return group if group is not None and group.is_available() and group.is_initialized() else None


def gathered(make: Callable[[], T]) -> list[T]:
    """What `make` returns on each rank of the process group. When it raises on one, all ranks raise: that one its error, the others
    ClusterError, which says which one it was. So no rank waits for one that has given up."""
    group, mine, error = _group(), None, None
    try:
        mine = make()
    except Exception as raised:  # noqa: BLE001 - raised below, when the others know
        error = raised
    told: list[Any] = [None] * group.get_world_size()
    group.all_gather_object(told, (mine, None if error is None else f"{type(error).__name__}: {error}"))
    if error is not None:
        raise error
    for rank, (_, trouble) in enumerate(told):
        if trouble is not None:
            raise ClusterError(f"the loader of rank {rank} could not be made: {trouble}")
    return [value for value, _ in told]


def from_first(make: Callable[[], T]) -> T:
    """What `make` returns on the first rank of the process group."""
    group = _group()
    told: list[Any] = [None]
    if group.get_rank() == 0:
        try:
            told = [(make(), None)]
        except GpuflowError as error:
            told = [(None, str(error))]
    group.broadcast_object_list(told, src=0)
    value, trouble = told[0]
    if trouble is not None:
        raise ClusterError(f"the loader of rank 0 could not be made: {trouble}")
    return value  # type: ignore[no-any-return]
