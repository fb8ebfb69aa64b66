"""`gpuflow.events`: what is committed, as it is committed, from any cursor on.

At least once, in order per chunk. A follower that was away, or that begins, gets the newest state of every chunk that changed since its
cursor, and then what comes; what it was not told of in between is in `notices`."""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from types import TracebackType

from gpuflow.cluster.connection import Connection
from gpuflow.errors import ConfigError, GpuflowError, Problem
from gpuflow.storage.tail import Page
from gpuflow.triggers.event import Cursor, Event
from gpuflow.triggers.merging import Merging
from gpuflow.triggers.sources import Source, source_for

logger = logging.getLogger(__name__)

_WAIT_SECONDS = 5.0  # of one question for what comes next
_AGAIN_SECONDS = 0.5  # before a node that did not answer is asked again
_LOOK_SECONDS = 0.05  # at what is held, and at whether the feed was closed
_NODES_SECONDS = 1.0  # between looks for nodes that have joined
_PAGES = 4  # that are read ahead


def events(
    since: str | None = None,
    *,
    follow: bool = False,
    dataset: str | None = None,
    connection: Connection | None = None,
    root: str | os.PathLike[str] | None = None,
) -> Feed:
    """The events of a cluster, or without one of the nodes below `root` (default `GPUFLOW_ROOT`, else `./.gpuflow`), of one dataset or all.

    since: a cursor, as `Feed.cursor` gave it; None for the newest state of all there is, "now" for what comes. follow: wait for more,
    without end. To be iterated over, with `for` or `async for`; close it, or use it in a `with` block. ConfigError when the cursor is
    none, or of other nodes; ClusterError and NotFound when nothing is there."""
    cursor = None if since is None or since == "now" else Cursor.parse(since)
    return Feed(source_for(connection, root), cursor, follow=follow, dataset=dataset, from_now=since == "now")


class Feed:
    """An iterator over events. cursor: up to the last event that was handed out, as text. notices: what its user should know."""

    def __init__(
        self,
        source: Source,
        cursor: Cursor | None = None,
        *,
        follow: bool = False,
        dataset: str | None = None,
        from_now: bool = False,
    ) -> None:
        self._source, self._dataset, self._follow = source, dataset, follow
        self.notices: list[str] = []
        self._merging, self._ready = Merging(), deque[Event]()
        self._pages: queue.Queue[tuple[str, Page | BaseException | None]] = queue.Queue(_PAGES)
        self._closed, self._asked = threading.Event(), -_NODES_SECONDS
        self._readers: dict[str, threading.Thread] = {}
        self._current: tuple[str, Page, Iterator[Event]] | None = None
        self._reading = set[str]()
        try:
            nodes = source.nodes()
            self._at = dict(cursor.nodes) if cursor is not None else {}
            if cursor is not None:
                self._check(cursor, nodes)
            if from_now:
                self._at = {node: source.page(node, 2**62, dataset, 0).newest for node in nodes}
        except BaseException:
            source.close()
            raise
        self._given = cursor is not None or from_now

    def _check(self, cursor: Cursor, nodes: Sequence[str]) -> None:
        there = set(nodes)
        if cursor.nodes and not there & cursor.nodes.keys():
            hint = "give a cursor of this cluster, or none to begin with all there is"
            named = f"{', '.join(sorted(cursor.nodes)[:3])}; here are {', '.join(sorted(there)[:3])}"
            raise ConfigError([Problem(f"the cursor is of other nodes: {named}", "since", hint=hint)])
        for node in sorted(cursor.nodes.keys() - there):
            self._note(f"node {node} is not there: what it committed is told when it is back")

    def _note(self, text: str) -> None:
        logger.info("events: %s", text)
        self.notices.append(text)

    @property
    def cursor(self) -> str:
        """Where to go on: `events(since=...)`."""
        held = {node: self._merging.held(node) for node in self._at}
        return str(Cursor({node: min(at, (held[node] or at + 1) - 1) for node, at in self._at.items()}))

    # -- iterating --------------------------------------------------------------------------------------------------------------

    def __iter__(self) -> Feed:
        return self

    def __next__(self) -> Event:
        event = self.next(None)
        if event is None:
            raise StopIteration
        return event

    def next(self, seconds: float | None) -> Event | None:
        """The next event, within `seconds`; None when there is none by then, or there will be none."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while not self._closed.is_set():
            event = self._take()
            if event is not None:
                return event
            self._start_readers()
            self._ready += self._merging.due(self._reading, time.monotonic(), self._has_ended())
            if self._ready:
                continue
            if self._has_ended() or (deadline is not None and time.monotonic() >= deadline):
                return None
            left = _LOOK_SECONDS if deadline is None else min(_LOOK_SECONDS, max(0.0, deadline - time.monotonic()))
            try:
                self._receive(*self._pages.get(timeout=left))
            except queue.Empty:
                continue
        return None

    def _take(self) -> Event | None:
        if self._ready:
            return self._ready.popleft()
        if self._current is None:
            return None
        node, page, found = self._current
        for event in found:
            self._at[node] = max(self._at.get(node, 0), event.sequence)
            return event
        self._at[node], self._current = page.until, None
        return None

    def _has_ended(self) -> bool:
        return not self._follow and bool(self._readers) and not self._reading and self._pages.empty() and self._current is None

    def _receive(self, node: str, page: Page | BaseException | None) -> None:
        if page is None:
            self._reading.discard(node)
        elif isinstance(page, BaseException):
            self._reading.discard(node)
            raise page
        else:
            if page.forgotten and self._given and self._at.get(node):
                self._note(f"node {node} does not know any more what became of datasets since the cursor: as they are now")
            if page.newest < self._at.get(node, 0):
                self._at[node] = 0  # it counts anew
            self._current = node, page, self._merging.events(node, page, time.monotonic())

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        event = self._take() or await asyncio.to_thread(self.next, None)
        if event is None:
            raise StopAsyncIteration
        return event

    # -- reading ----------------------------------------------------------------------------------------------------------------

    def _start_readers(self) -> None:
        """One for each node that is there, once."""
        if self._readers and (not self._follow or time.monotonic() - self._asked < _NODES_SECONDS):
            return
        self._asked = time.monotonic()
        try:
            nodes = self._source.nodes()
        except GpuflowError as error:
            if not self._readers:
                raise
            logger.info("events: who is there is not known just now: %s", error)
            return
        for node in nodes:
            if node not in self._readers:
                self._reading.add(node)
                reader = threading.Thread(target=self._read, args=(node, self._at.get(node, 0)), name="events", daemon=True)
                self._readers[node] = reader
                reader.start()

    def _read(self, node: str, since: int) -> None:
        """A node's pages, one after the other, in a thread."""
        fresh = True
        while not self._closed.is_set():
            try:
                page = self._source.page(node, since, self._dataset, _WAIT_SECONDS if self._follow else 0)
            except GpuflowError as error:
                return self._hand(node, error)
            except OSError as error:
                if not self._follow:
                    self._note(f"node {node} did not answer: what it committed is told from this cursor on when it is back")
                    return self._hand(node, None)
                logger.info("events: %s", error)
                self._closed.wait(_AGAIN_SECONDS)
                continue
            except BaseException as error:  # noqa: BLE001 - raised where the events are taken
                return self._hand(node, error)
            if fresh and since > page.newest:
                self._note(
                    f"node {node} counts its commits anew: the cursor's number of it is not known any more, all it has follows"
                )
                since, fresh = 0, False
                continue
            fresh = False
            if not page.is_empty or page.until > since:
                self._hand(node, page)
            since = page.until
            if not self._follow and not page.more:
                return self._hand(node, None)

    def _hand(self, node: str, page: Page | BaseException | None) -> None:
        while not self._closed.is_set():
            try:
                return self._pages.put((node, page), timeout=_LOOK_SECONDS)
            except queue.Full:
                continue

    # -- the end ------------------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Stop reading."""
        if not self._closed.is_set():
            self._closed.set()
            self._source.close()

    def __enter__(self) -> Feed:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
