"""What crosses Dask's wire between client, scheduler and workers. Plain frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuflow import __version__

Transferred = tuple[int, int, float]
"""Chunks and bytes that came from peers, and the seconds that took."""

PREFIX = "gpuflow-"
"""First element of a chunk task's key: `("gpuflow-<job>-<run>", number)`."""
SHIPPED = "gpuflow-shipped"
"""Annotation of a task that was released to a worker which does not hold its chunks: (why, addresses of workers that do)."""


@dataclass(frozen=True, slots=True)
class ChunkGroup:
    """What one Dask task works on: chunks of one array with the same holders. The scheduler routes by this value.

    generations: of the chunks to be read, as planned; an older replica is not taken for them. newest: of the chunks to be written,
    0 where there is none yet. nbytes: encoded bytes to be read; work: decoded bytes: what
    shipping and computing cost is estimated from. node: the node that must take it (an ingest's placement). movable: whether
    another node than a holder may take it when waiting costs more than shipping; chunks changed in place stay where they are.

    device: what its worker must have: `cuda` or `cuda:N`; `auto` and `cpu` are for any worker, which takes its device or its CPU for it.

    homes: for chunks that are computed from several of the source: the nodes that hold most of these. chunks are then those that are
    written, nbytes what would have to be shipped to other nodes in addition, and inputs the digest of what each is computed from.

    keeps_nbytes: decoded chunks that a worker may keep in memory meanwhile, None where the plan does not say; takes, fills: whether this
    run takes some from there, and adds some."""

    run: str
    dataset: str
    array: str
    chunks: tuple[int, ...]
    generations: tuple[int, ...]
    newest: tuple[int, ...]
    nbytes: int
    work: int
    node: str | None = None
    movable: bool = True
    homes: tuple[str, ...] = ()
    inputs: tuple[bytes, ...] = ()
    device: str = "cpu"
    keeps_nbytes: int | None = None
    takes: bool = False
    fills: bool = False


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """What a worker says of itself when it joins. place: where `root` really is (see `place`). usable_nbytes: of memory, before Dask
    pauses it; None without a limit. machine_nbytes: what its machine, or its cgroup, has.
    allows_exec: whether steps may run programs there; allows_shell: whether it opens shells. device: cpu, or cuda:N of its machine;
    device_name, device_nbytes: of that one, and of its memory; why_cpu: why it is none of CUDA's; lacks: libraries for CUDA that are of no
    use there, and why."""

    node: str
    root: str
    place: str
    usable_nbytes: int | None = None
    machine_nbytes: int = 0
    allows_exec: bool = False
    allows_shell: bool = False
    device: str = "cpu"
    device_name: str = ""
    device_nbytes: int = 0
    why_cpu: str = ""
    lacks: Mapping[str, str] = field(default_factory=dict)
    version: str = __version__


def packed_column(column: NDArray[Any]) -> tuple[str, bytes]:
    """Non-negative integers in as few bytes as the greatest needs: (dtype, bytes), which cross Dask's wire as they are."""
    least = column.astype(np.min_scalar_type(int(column.max(initial=0))))
    return least.dtype.str, least.tobytes()


def unpacked_column(packed: tuple[str, bytes]) -> NDArray[np.uint32]:
    """What `packed_column` packed."""
    return np.frombuffer(packed[1], packed[0]).astype(np.uint32)
