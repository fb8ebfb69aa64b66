"""`--preload gpuflow.cluster`: what makes an ordinary Dask scheduler or worker one of gpuflow's."""

from __future__ import annotations

import importlib
import os
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

import click
from distributed import Nanny, Scheduler, Worker

from gpuflow.cluster import scheduler_plugin, worker_plugin
from gpuflow.cluster.worker_device import take_device
from gpuflow.errors import GpuflowError
from gpuflow.settings import allow_exec, allow_shell, store_root

_FIRST_TASK = ("gpuflow.execution.jobs", "numba", "gpuflow.explore.blocks")
"""What the first task would have to import, which takes a second: named here, since it is not for this layer to use."""
_IDLE_SECONDS = 1.0


@click.command()
@click.option("--root", type=click.Path(path_type=Path), default=None, help="Store root of this worker's node (or GPUFLOW_ROOT).")
@click.option("--node-name", default=None, help="Name of a new node; the default is the host's name.")
@click.option("--allow-exec", "may_exec", is_flag=True, help="Let `exec` steps run programs on this worker.")
@click.option("--allow-shell", "may_shell", is_flag=True, help="Let `gpuflow shell` open shells on this worker.")
@click.option("--device", default="auto", help="What this worker computes on: auto, cpu, cuda or cuda:N.")
@click.option("--share-device", is_flag=True, help="Let other workers that say so too have the same CUDA device.")
def dask_setup(
    server: Any, root: Path | None, node_name: str | None, may_exec: bool, may_shell: bool, device: str, share_device: bool
) -> None:
    """gpuflow's part of a Dask scheduler or worker."""
    if may_exec:
        allow_exec()
    if may_shell:
        allow_shell()
    embedded = os.environ.pop("GPUFLOW_LIFELINE", None)  # taken out: a nanny's worker has no lifeline, it dies with the nanny
    if embedded:
        _die_with_parent()
    try:
        if isinstance(server, Scheduler):
            scheduler_plugin.install(server)
        elif isinstance(server, Worker):
            worker_plugin.install(server, root or store_root(), node_name, take_device(device, share=share_device))
            if not embedded:  # there a run follows at once
                server.loop.call_later(_IDLE_SECONDS, threading.Thread(target=_import_ahead, daemon=True).start)
        elif not isinstance(server, Nanny):
            raise TypeError(f"gpuflow.cluster preloads into a scheduler or a worker, not {type(server).__name__}")
    except Exception as error:  # noqa: BLE001 - Dask goes on without a preload that raises; a worker without its store must not
        if not isinstance(error, GpuflowError):
            traceback.print_exception(error)
        print(f"error: {error}", file=sys.stderr, flush=True)  # noqa: T201
        os._exit(1)


def _import_ahead() -> None:
    for name in _FIRST_TASK:
        importlib.import_module(name)


def _die_with_parent() -> None:
    """End this process when its standard input closes: the embedded cluster must not outlive a killed client."""

    def watch() -> None:
        while os.read(0, 1):
            pass
        os._exit(1)

    threading.Thread(target=watch, name="gpuflow-lifeline", daemon=True).start()
