"""Events handed on to somebody, in their order, each until it is taken or given up; from where it was left, whatever died in between.

At least once: the cursor is written down after what it covers was taken. While nobody takes anything the feed waits, and gathers no more
than the newest state of each chunk, which is in the manifests anyway."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from gpuflow.cluster.connection import Connection
from gpuflow.errors import ConfigError, NameTaken
from gpuflow.triggers.event import Event
from gpuflow.triggers.feed import Feed, events
from gpuflow.triggers.gathering import wait_after
from gpuflow.triggers.state import Claim, WatchState, load_state, save_state

_SAVE_SECONDS = 1.0
_LOOK_SECONDS = 0.25
_TAKE_SECONDS = 0.002

Say = Callable[[str], None]


class NotTaken(Exception):
    """Who is told did not take it: says why. final: trying again is of no use. left: the events that were not taken, None for all."""

    def __init__(self, reason: str, final: bool = False, left: Sequence[Event] | None = None) -> None:
        super().__init__(reason)
        self.reason, self.final, self.left = reason, final, left


class Delivery:
    """Of the events of `dataset` (None: of all) to `hand`, some at a time. name: under which is kept how far it has come. tries: how often
    each is tried; give_up: takes events that nobody took, and why."""

    def __init__(
        self,
        connection: Connection,
        name: str,
        dataset: str | None,
        hand: Callable[[Sequence[Event]], None],
        give_up: Callable[[Sequence[Event], str], None],
        *,
        tries: int = 5,
        most: int = 100,
        say: Say = lambda text: None,
    ) -> None:
        self._connection, self._name, self._dataset = connection, name, dataset
        self._hand, self._give_up, self._tries, self._most, self._say = hand, give_up, tries, most, say
        self.state = WatchState(name, dataset or "", "")
        self._saved, self._undelivered = 0.0, False

    def follow(self, stop: threading.Event, since: str = "now") -> None:
        """Until `stop`. since: where to begin when it was never begun. NameTaken when another process does it."""
        claim = Claim(self._connection, self._name)
        try:
            if (other := claim.take()) is not None:
                raise NameTaken(self._name, f"is delivered by {other}; stop that one first")
            known = load_state(self._connection, self._name)
            self.state = known or self.state
            with self._feed(since) as feed:
                if known is None:
                    self._save(feed)
                while not stop.is_set() and claim.is_held():
                    self._step(feed, stop)
                self._save(feed)
        finally:
            claim.give_back()

    def _feed(self, since: str) -> Feed:
        cursor = self.state.cursor or (since if since != "all" else None)
        try:
            return events(cursor, follow=True, dataset=self._dataset, connection=self._connection)
        except ConfigError as error:
            self._say(f"{error}; the newest state of all there is follows")
            return events(None, follow=True, dataset=self._dataset, connection=self._connection)

    def _step(self, feed: Feed, stop: threading.Event) -> None:
        first = feed.next(_LOOK_SECONDS)
        if first is not None:
            taken = [first]
            while len(taken) < self._most and (event := feed.next(_TAKE_SECONDS)) is not None:
                taken.append(event)
            if not self._deliver(taken, stop):
                return
            self.state = self.state.counted(events=len(taken))
        if time.monotonic() - self._saved > _SAVE_SECONDS and feed.cursor != self.state.cursor:
            self._save(feed)

    def _deliver(self, taken: Sequence[Event], stop: threading.Event) -> bool:
        """False when it was stopped in between: they come again."""
        for number in range(1, self._tries + 1):
            try:
                self._hand(taken)
                return True
            except NotTaken as error:
                taken = taken if error.left is None else error.left
                self._say(f"{len(taken)} events were not taken ({error.reason}), try {number} of {self._tries}")
                if error.final or number == self._tries:
                    self._give_up(taken, error.reason)
                    self.state = self.state.counted(given_up=len(taken))
                    return True
                if stop.wait(wait_after(number)):
                    self._undelivered = True
                    return False
        return True

    def _save(self, feed: Feed) -> None:
        if not self._undelivered:
            self.state = save_state(self._connection, replace(self.state, cursor=feed.cursor))
            self._saved = time.monotonic()
