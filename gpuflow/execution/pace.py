"""No faster than asked."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def at_rate(rate: float | None) -> Iterator[list[int]]:
    """Sleep after the block for as long as the bytes that it lists take at `rate` bytes/s, counted from its beginning."""
    began, moved = time.monotonic(), list[int]()
    yield moved
    if rate:
        time.sleep(max(0.0, sum(moved) / rate - (time.monotonic() - began)))
