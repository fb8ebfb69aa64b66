"""What the environment says: one function a setting, read when asked for.

GPUFLOW_ROOT, GPUFLOW_SCHEDULER, GPUFLOW_ROUTING."""

from __future__ import annotations

import os
from pathlib import Path

from gpuflow.errors import ConfigError, Problem


def store_root() -> Path:
    """Store root of this machine's node: `GPUFLOW_ROOT`, else `.gpuflow` in the working directory."""
    return Path(os.environ.get("GPUFLOW_ROOT") or ".gpuflow").absolute()


def scheduler_address() -> str | None:
    """Address of a running cluster: `GPUFLOW_SCHEDULER`, else None."""
    return os.environ.get("GPUFLOW_SCHEDULER") or None


def routing_mode() -> str:
    """`auto` (late binding on tested Dask versions, strict restrictions on others), `late` or `strict`: `GPUFLOW_ROUTING`."""
    mode = os.environ.get("GPUFLOW_ROUTING") or "auto"
    if mode not in ("auto", "late", "strict"):
        raise ConfigError([Problem(f"GPUFLOW_ROUTING is {mode!r}", hint="use auto, late or strict")])
    return mode
