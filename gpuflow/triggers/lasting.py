"""Work that outlives the cluster it is done on: when that is lost, it is begun again with the next one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

from gpuflow.cluster.connection import Connection
from gpuflow.errors import ClusterError
from gpuflow.triggers.gathering import wait_after

_LASTED_SECONDS = 60.0  # a cluster that was there for so long is waited for as at the first time


def lasting(
    connect: Callable[[], AbstractContextManager[Connection]],
    work: Callable[[Connection], None],
    stop: threading.Event,
    say: Callable[[str], None],
) -> None:
    """Do `work` until it ends by itself, or `stop` is set. ClusterError when there is no cluster at the beginning; later it is waited for,
    with growing pauses."""
    lost, there = 0, False
    while not stop.is_set():
        began = time.monotonic()
        try:
            with connect() as connection:
                there = True
                work(connection)
            return
        except (ClusterError, OSError) as error:
            if not there:
                raise
            lost = 1 if time.monotonic() - began > _LASTED_SECONDS else lost + 1
            say(f"the cluster is lost ({error}); trying again in {wait_after(lost):g} s")
            stop.wait(wait_after(lost))
