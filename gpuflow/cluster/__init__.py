"""gpuflow on a Dask cluster: routing, inventory, shipping, launch.

The module that `dask scheduler` and `dask worker` take with `--preload gpuflow.cluster`."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "dask_setup":  # looked up by Dask's preloading; importing distributed for anything else would be waste
        from gpuflow.cluster.preload import dask_setup

        return dask_setup
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
