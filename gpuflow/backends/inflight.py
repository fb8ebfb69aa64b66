"""How many chunks are on a device at once: as many as there are threads, until it is full; then half as many, and so on."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TypeVar

from gpuflow.errors import DeviceFull

logger = logging.getLogger(__name__)

T = TypeVar("T")


class InFlight:
    """Of one device of a worker process. release: gives back what the device's pool holds and nobody uses."""

    def __init__(self, most: int, release: Callable[[], None]) -> None:
        self._most, self._release = most, release
        self._now, self._change = 0, threading.Condition()

    @property
    def most(self) -> int:
        """Chunks that may be there at once."""
        return self._most

    def run(self, work: Callable[[], T]) -> T:
        """What `work` gives, done when there is a place for it; again from its beginning, with half as many others, when the device was
        full.

        DeviceFull when it is so for one alone."""
        while True:
            with self._change:
                self._change.wait_for(lambda: self._now < self._most)
                self._now += 1
                allowed = self._most
            try:
                return work()
            except DeviceFull as error:
                if allowed == 1:
                    raise
                self._halve(allowed, error)
            finally:
                with self._change:
                    self._now -= 1
                    self._change.notify_all()

    def _halve(self, allowed: int, error: DeviceFull) -> None:
        """Once for all those that were there together."""
        with self._change:
            if self._most == allowed:
                self._most = max(1, allowed // 2)
                logger.warning("%s: %d chunks at once from now on instead of %d", error, self._most, allowed)
        self._release()
