"""Which nodes may keep a copy of a chunk that was shipped to them, so that there are never more than its dataset allows.

Pure: time is an argument. A claim counts as a copy until the copy has been reported, or for some time: who claimed it may have died."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from gpuflow.cluster.inventory import ArrayName

_SECONDS = 60.0  # from claim to report: a commit on a busy disk

Chunk = tuple[ArrayName, int]


class Claims:
    """Those that are open."""

    def __init__(self) -> None:
        self._nodes: dict[Chunk, set[str]] = {}
        self._order: deque[tuple[float, Chunk, str]] = deque()

    def grant(
        self, node: str, array: ArrayName, chunks: Sequence[int], holders: Sequence[frozenset[str]], most: int, now: float
    ) -> list[int]:
        """Those of `chunks` that `node` may keep. holders: of each of them now; most: how many there may be; now: in seconds."""
        self._expire(now)
        granted = []
        for chunk, known in zip(chunks, holders, strict=True):
            key = array, chunk
            copies = known | self._nodes.get(key, set())
            if node not in copies and len(copies) < most:
                self._nodes.setdefault(key, set()).add(node)
                self._order.append((now + _SECONDS, key, node))
                granted.append(chunk)
        return granted

    def _expire(self, now: float) -> None:
        while self._order and self._order[0][0] <= now:
            _, key, node = self._order.popleft()
            self._nodes[key].discard(node)
            if not self._nodes[key]:
                del self._nodes[key]
