"""gpuflow: pipelines that run where the chunks of your Zarr data lie.

    calibrate  measure the limits of each node's hardware
    connect    a cluster to work on: a running one, or an embedded one on this machine
    ingest     a Zarr, a .npy file or a directory of images becomes a dataset
    open       a dataset to look at: as zarr, xarray and dask arrays, where its chunks lie
    nodes      the nodes: where they are, what they hold
    plan       what a pipeline would do, and a preview of it
    Pipeline   what is to be done to a dataset, as in the YAML file
    run        do it, and return the receipt
    watch      do it to what changes, as it changes
    events     what is committed, as it is committed
    on         a function to be called with a dataset's events
    loader     batches of a dataset's samples for a training loop
    errors     what can go wrong

Light to import: what needs Dask, Zarr or a GPU library is loaded when it is first used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpuflow import errors as errors
    from gpuflow.cluster.connection import connect as connect
    from gpuflow.explore.dataset import open_dataset as open
    from gpuflow.explore.nodes import nodes as nodes
    from gpuflow.explore.plans import plan as plan
    from gpuflow.facade import calibrate as calibrate
    from gpuflow.facade import ingest as ingest
    from gpuflow.facade import run as run
    from gpuflow.facade import watch as watch
    from gpuflow.pipelines.pipeline import Pipeline as Pipeline
    from gpuflow.training.loader import loader as loader
    from gpuflow.triggers.feed import events as events
    from gpuflow.triggers.functions import on as on

__version__ = "0.1.0"
__all__ = [
    "Pipeline",
    "__version__",
    "calibrate",
    "connect",
    "errors",
    "events",
    "ingest",
    "loader",
    "nodes",
    "on",
    "open",
    "plan",
    "run",
    "watch",
]

_ROOMS = {
    "Pipeline": "gpuflow.pipelines.pipeline",
    "calibrate": "gpuflow.facade",
    "connect": "gpuflow.cluster.connection",
    "events": "gpuflow.triggers.feed",
    "ingest": "gpuflow.facade",
    "loader": "gpuflow.training.loader",
    "nodes": "gpuflow.explore.nodes",
    "on": "gpuflow.triggers.functions",
    "open": "gpuflow.explore.dataset",
    "plan": "gpuflow.explore.plans",
    "run": "gpuflow.facade",
    "watch": "gpuflow.facade",
}
_CALLED = {"open": "open_dataset"}
"""Where a name shadows one of Python's own, it has another one in its room."""


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name == "errors":
        return import_module("gpuflow.errors")
    if name not in _ROOMS:
        raise AttributeError(f"module 'gpuflow' has no attribute {name!r}")
    return getattr(import_module(_ROOMS[name]), _CALLED.get(name, name))


def __dir__() -> list[str]:
    return sorted(__all__)
