"""The pages of many nodes as one stream of events: each thing once, each chunk's in order.

Pure. What several nodes hold is told once, by whichever tells first. A dataset counts as published when every node that is followed has
said so, each after the chunks that it has of it; so that of all nodes together the chunks come before."""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gpuflow.storage.news import REMOVED as REMOVED_NEWS
from gpuflow.storage.record import is_first
from gpuflow.storage.tail import News, Page
from gpuflow.triggers.event import CREATED, PUBLISHED, REMOVED, UPDATED, Event

PATIENCE_SECONDS = 2.0
"""For nodes that have not said yet that a dataset is published: they may have gone away."""

_Thing = tuple[str, int]  # dataset, version


@dataclass
class _Held:
    event: Event
    since: float
    told: dict[str, int] = field(default_factory=dict)  # node -> its number of it


class Merging:
    """What has been told so far: 4 bytes a chunk, whatever the number of events."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str], NDArray[np.uint32]] = {}
        self._removed: dict[str, int] = {}  # dataset -> version at which it was removed
        self._said: dict[tuple[str, str, str], int] = {}  # (kind, dataset, array) -> version
        self._held: dict[_Thing, _Held] = {}

    def events(self, node: str, page: Page, now: float) -> Iterator[Event]:
        """Of a node's page that follows the one before."""
        news, chunks = list(page.news), self._chunks(node, page)
        for event in chunks:
            while news and news[0].seq < event.sequence:
                yield from self._news(node, news.pop(0), now)
            if page.versions.get(event.dataset, 0) >= self._removed.get(event.dataset, 0) and self._is_new(event):
                yield event
        for one in news:
            yield from self._news(node, one, now)

    def due(self, nodes: Set[str], now: float, ended: bool = False) -> Iterator[Event]:
        """Datasets that are published by now, `nodes` being those that are followed. ended: nobody tells more."""
        for thing, held in list(self._held.items()):
            if ended or nodes <= held.told.keys() or now - held.since > PATIENCE_SECONDS:
                del self._held[thing]
                yield held.event

    def held(self, node: str) -> int | None:
        """The first number of the node that has been taken and not been told on."""
        return min((held.told[node] for held in self._held.values() if node in held.told), default=None)

    def _chunks(self, node: str, page: Page) -> Iterator[Event]:
        rows = page.rows
        if not len(rows):
            return
        known = [0.0, *(time for _, time, _ in page.moments)], ["", *(run for _, _, run in page.moments)]
        place = np.searchsorted([seq for seq, _, _ in page.moments], rows["seq"].astype(np.int64), "right").tolist()
        names = ("array", "chunk", "generation", "nbytes", "seq")
        columns = [rows[name].tolist() for name in names]
        texts = [[value.hex() for value in rows[name].tolist()] for name in ("digest", "recipe")]
        for array, chunk, generation, nbytes, seq, digest, recipe, at in zip(*columns, *texts, place, strict=True):
            dataset, path = page.arrays[array]
            kind = CREATED if is_first(generation) else UPDATED
            yield Event(
                seq, node, dataset, path, chunk, generation, digest, nbytes, recipe, known[1][at], known[0][at] or None, kind
            )

    def _is_new(self, event: Event) -> bool:
        seen, chunk = self._seen.get((event.dataset, event.array)), event.chunk or 0
        if seen is None or chunk >= len(seen):
            grown = np.zeros(max(64, 2 * chunk + 2), np.uint32)
            if seen is not None:
                grown[: len(seen)] = seen
            seen = self._seen[event.dataset, event.array] = grown
        if seen[chunk] >= event.generation:
            return False
        seen[chunk] = event.generation
        return True

    def _news(self, node: str, news: News, now: float) -> Iterator[Event]:
        kind = REMOVED if news.kind == REMOVED_NEWS else PUBLISHED
        event = Event(news.seq, node, news.dataset, news.array, None, news.version, "", 0, "", "", news.time or None, kind)
        if kind == PUBLISHED and (held := self._held.get((news.dataset, news.version))) is not None:
            held.told[node] = news.seq
        if self._said.get((kind, news.dataset, news.array), 0) >= news.version:
            return
        self._said[kind, news.dataset, news.array] = news.version
        if kind == PUBLISHED:
            self._held[news.dataset, news.version] = _Held(event, now, {node: news.seq})
            return
        if not news.array:
            self._removed[news.dataset] = news.version
        for name in [name for name in self._seen if name[0] == news.dataset and news.array in ("", name[1])]:
            del self._seen[name]
        for thing in [thing for thing in self._held if thing[0] == news.dataset and not news.array]:
            del self._held[thing]
        yield event
