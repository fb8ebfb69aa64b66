"""Which chunk is being worked on, for steps that have to say so to others. Set by whoever works on it, around `compute`."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Place:
    """chunk: its Zarr key below the array. scratch: a folder on the node's own disk; what is left in it goes when the process is dead."""

    dataset: str
    array: str
    chunk: str
    scratch: Path


current: ContextVar[Place | None] = ContextVar("gpuflow-place", default=None)
