"""Questions that wait for the network, asked at once."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def together(*calls: Callable[[], Any]) -> list[Any]:
    """Their results, in order. Each runs in a thread; when all have ended, the error of the first that failed is raised."""
    with ThreadPoolExecutor(len(calls), thread_name_prefix="together") as pool:
        waiting = [pool.submit(call) for call in calls]
    return [future.result() for future in waiting]
