"""Shipped chunks that stay where they were shipped to, as further replicas: so hot chunks spread, and the next run finds them local.

A dataset says by its greatest number of replicas that its chunks will be wanted again; by default that is 1, and nothing is kept. A
copy is one more, so that it need not survive a power loss, and a chunk does not fail because there is no room for it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence

from gpuflow.cluster.serving import PART_NBYTES
from gpuflow.errors import NotFound
from gpuflow.storage.manifest import Replica
from gpuflow.storage.node import NodeStore

logger = logging.getLogger(__name__)

_RESERVE = 0.1  # of a disk, which is left for what runs write


def has_room(nbytes: int, free_nbytes: int, disk_nbytes: int) -> bool:
    """Whether `nbytes` of copies leave enough of a disk free."""
    return free_nbytes - nbytes >= _RESERVE * disk_nbytes


class Keeper:
    """Of one group's chunks. claim: which chunks this node may keep, as the scheduler says; announce: tell it which it has kept.

    kept: bytes of copies that are now here."""

    def __init__(
        self, store: NodeStore, claim: Callable[[Sequence[int]], Sequence[int]], announce: Callable[[Sequence[Replica]], None]
    ) -> None:
        self._store, self._claim, self._announce = store, claim, announce
        self._copies: list[tuple[Replica, bytes | memoryview]] = []
        self._nbytes = self.kept = 0

    def add(self, replica: Replica, data: bytes | memoryview) -> None:
        """A verified chunk. Its memory is held on to until there are enough of them for a commit."""
        self._copies.append((replica, data))
        self._nbytes += len(data)
        if self._nbytes >= PART_NBYTES:
            self.flush()

    def flush(self) -> None:
        """Keep what has been added."""
        copies, nbytes = self._copies, self._nbytes
        self._copies, self._nbytes = [], 0
        disk = os.statvfs(self._store.root)
        if not copies or not has_room(nbytes, disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize):
            return
        try:
            granted = set(self._claim([replica.chunk for replica, _ in copies]))
            kept = self._store.adopt_all([copy for copy in copies if copy[0].chunk in granted], durable=False)
        except (OSError, NotFound) as error:  # StoreError is one
            logger.warning("shipped chunks are not kept: %s", error)
            return
        self.kept += sum(replica.nbytes for replica in kept)
        self._announce(kept)
