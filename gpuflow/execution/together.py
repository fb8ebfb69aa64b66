"""Questions that wait for the network, asked at once."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def together(*calls: Callable[[], Any]) -> list[Any]:
    """Their results, in order. The last runs here, each other in a thread; the error of one that failed is raised when all have ended."""
    *others, here = calls
    with ThreadPoolExecutor(max(len(others), 1), thread_name_prefix="together") as pool:
        waiting = [pool.submit(call) for call in others]
        last = here()
    return [*(future.result() for future in waiting), last]
