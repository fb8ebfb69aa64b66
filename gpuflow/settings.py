"""What the environment says: one function a setting, read when asked for.

GPUFLOW_ROOT, GPUFLOW_SCHEDULER, GPUFLOW_ROUTING, GPUFLOW_ALLOW_EXEC, GPUFLOW_ALLOW_SHELL, GPUFLOW_DIRECT_STORAGE."""

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


def exec_is_allowed() -> bool:
    """Whether steps may run programs in this process: `GPUFLOW_ALLOW_EXEC` is 1, which `--allow-exec` sets for a worker."""
    return os.environ.get("GPUFLOW_ALLOW_EXEC") == "1"


def allow_exec() -> None:
    """From now on, in this process and those that it starts."""
    os.environ["GPUFLOW_ALLOW_EXEC"] = "1"


def shell_is_allowed() -> bool:
    """Whether this process may open shells for others: `GPUFLOW_ALLOW_SHELL` is 1, which `--allow-shell` sets for a worker."""
    return os.environ.get("GPUFLOW_ALLOW_SHELL") == "1"


def allow_shell() -> None:
    """From now on, in this process and those that it starts."""
    os.environ["GPUFLOW_ALLOW_SHELL"] = "1"


def direct_storage_is_allowed() -> bool:
    """Whether a CUDA device of this process may read files by itself, through KvikIO: `GPUFLOW_DIRECT_STORAGE` is 1."""
    return os.environ.get("GPUFLOW_DIRECT_STORAGE") == "1"
