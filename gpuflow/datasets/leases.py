"""The right to change a dataset in place, held on all nodes while a run lives."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from gpuflow.datasets.catalog import Nodes
from gpuflow.errors import GpuflowError, NameTaken
from gpuflow.storage import leases

logger = logging.getLogger(__name__)

_TRIES = 4  # of two that ask at the same moment, each may get some of the nodes
_PAUSE_SECONDS = 0.1


@contextmanager
def leased(nodes: Nodes, dataset: str, pipeline: str, run: str) -> Iterator[None]:
    """NameTaken while a run of another pipeline changes the dataset; runs of one pipeline may help each other."""
    _take(nodes, dataset, pipeline, run)
    ended = threading.Event()
    keeper = threading.Thread(target=_keep, args=(nodes, dataset, pipeline, run, ended), name="lease", daemon=True)
    keeper.start()
    try:
        yield
    finally:
        ended.set()
        keeper.join()
        try:
            nodes.each_node(leases.release, dataset, run)
        except (GpuflowError, OSError) as error:  # it runs out by itself
            logger.warning("the lease of %s was not given back: %s", dataset, error)


def _take(nodes: Nodes, dataset: str, pipeline: str, run: str) -> None:
    for left in reversed(range(_TRIES)):
        others = {other for other in nodes.each_node(leases.take, dataset, pipeline, run).values() if other is not None}
        if not others:
            return
        nodes.each_node(leases.release, dataset, run)
        if left:
            time.sleep(_PAUSE_SECONDS * random.random())
    seconds = f"{leases.LEASE_SECONDS:.0f} s"
    run = min(others).removeprefix(leases.ADDING)
    what = "appended to" if min(others).startswith(leases.ADDING) else "changed in place"
    reason = f"is being {what} by run {run}; wait for its end (of a run that died: {seconds} after that)"
    raise NameTaken(dataset, reason)


def _keep(nodes: Nodes, dataset: str, pipeline: str, run: str, ended: threading.Event) -> None:
    while not ended.wait(leases.LEASE_SECONDS / 3):
        try:
            nodes.each_node(leases.take, dataset, pipeline, run)
        except (GpuflowError, OSError) as error:  # a node that is away for a while loses it; its chunks tell generations apart
            logger.warning("the lease of %s was not prolonged: %s", dataset, error)
