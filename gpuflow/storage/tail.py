"""A node's commits in their order, from any number on: what a follower reads.

The manifest's rows are the log. Who was away for however long gets the newest state of each chunk that changed since, and then what
comes. Nothing is read through the connection that commits use, and nothing is asked of who commits, whatever process that is: the number
of the last commit, which takes some microseconds to look at, tells that there is something."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpuflow.errors import StoreError
from gpuflow.storage import seals
from gpuflow.storage.news import FORGOTTEN, PUBLISHED, REMOVED

PAGE_ROWS = 4096
LOOK_SECONDS = 0.015
"""Between looks at whether something has changed: microseconds each, and only while somebody follows."""
_BUSY_SECONDS = 60.0


class News(NamedTuple):
    """Of a dataset, or of the array of it that is named. kind: see news.py."""

    seq: int
    time: float
    kind: str
    dataset: str
    array: str
    version: int


@dataclass(frozen=True)
class Page:
    """Up to number `until` of a node. rows: seals.SEALED_DTYPE, by their numbers, of `arrays` by number. newest: the node's newest number;
    more: whether there is more up to it. moments: from which number on which time and run.

    versions: of the datasets' records here; news: ordered; forgotten: whether the news are of datasets as they are now, since what came
    between is not kept any more."""

    until: int
    newest: int
    more: bool = False
    rows: NDArray[Any] = field(default_factory=lambda: np.empty(0, seals.SEALED_DTYPE))
    arrays: Mapping[int, tuple[str, str]] = field(default_factory=dict)
    versions: Mapping[str, int] = field(default_factory=dict)
    moments: tuple[tuple[int, float, str], ...] = ()
    news: tuple[News, ...] = ()
    forgotten: bool = False

    @property
    def is_empty(self) -> bool:
        return not len(self.rows) and not self.news

    def to_wire(self) -> dict[str, Any]:
        """Plain values, as they cross Dask's wire."""
        plain = {name: getattr(self, name) for name in ("until", "newest", "more", "forgotten", "versions")}
        arrays = [[number, *name] for number, name in self.arrays.items()]
        return {**plain, "rows": self.rows.tobytes(), "arrays": arrays, "moments": list(self.moments), "news": list(self.news)}

    @classmethod
    def from_wire(cls, data: Mapping[str, Any]) -> Page:
        """The inverse of `to_wire`."""
        rows = np.frombuffer(data["rows"], seals.SEALED_DTYPE)
        arrays = {number: (dataset, path) for number, dataset, path in data["arrays"]}
        told = {"moments": tuple(map(tuple, data["moments"])), "news": tuple(News(*row) for row in data["news"])}
        return cls(**{**data, "rows": rows, "arrays": arrays, **told})


class Tail:
    """Of the store at `root`, which other processes write to. Thread-safe."""

    def __init__(self, root: Path) -> None:
        path = root / "manifest.sqlite"
        if not path.exists():
            raise StoreError(str(root), "holds no gpuflow store", "give the right root")
        self._root, self._lock = root, threading.Lock()
        self._connection, self._looks = (self._open(path) for _ in range(2))

    def _open(self, path: Path) -> sqlite3.Connection:
        connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA query_only=1")
        return connection

    def close(self) -> None:
        with self._lock:
            self._connection.close()
            self._looks.close()

    def newest(self) -> int:
        """The number of the last commit. Waits for nobody who reads a page."""
        try:
            return int(self._looks.execute("SELECT value FROM meta WHERE key = 'seq'").fetchone()[0])
        except (sqlite3.Error, TypeError, ValueError) as error:
            raise self._error(error) from error

    def page(self, since: int, dataset: str | None = None, limit: int = PAGE_ROWS) -> Page:
        """What came after number `since`, up to `limit` chunks of it; of one dataset, or of all. StoreError when it cannot be read."""
        with self._lock:
            try:
                self._connection.execute("BEGIN")
                try:
                    return self._page(since, dataset, limit)
                finally:
                    self._connection.execute("ROLLBACK")
            except (sqlite3.Error, LookupError, TypeError, ValueError) as error:
                raise self._error(error) from error

    def _error(self, error: Exception) -> StoreError:
        return StoreError(str(self._root), f"manifest: {error}", "see `gpuflow doctor`")

    def wait(self, since: int, seconds: float, dataset: str | None = None) -> Page:
        """The same, once there is something, for `seconds` at most."""
        deadline = time.monotonic() + seconds
        page = self.page(since, dataset)
        while page.is_empty and not page.more and time.monotonic() < deadline:
            time.sleep(LOOK_SECONDS)
            if self.newest() != page.newest:
                page = self.page(page.until, dataset)
        return page

    def _rows(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        return self._connection.execute(statement, parameters).fetchall()

    def _page(self, since: int, dataset: str | None, limit: int) -> Page:
        newest = int(self._rows("SELECT value FROM meta WHERE key = 'seq'")[0][0])
        if since >= newest:
            return Page(since, newest)
        columns = f"array, {seals.COLUMNS}, seal"
        found = self._rows(f"SELECT {columns} FROM replica WHERE seq > ? ORDER BY seq LIMIT ?", since, limit)
        table = seals.as_table(found)
        more = len(found) == limit
        until = int(table["seq"][-1]) if more and len(table) else newest
        versions = dict(self._rows("SELECT name, version FROM dataset"))
        arrays = {number: (name, path) for number, name, path in self._rows("SELECT id, dataset, path FROM array")}
        arrays = {number: name for number, name in arrays.items() if dataset in (None, name[0])}
        news, forgotten = self._news(since, until)
        return Page(
            until,
            newest,
            more,
            _sound(table, arrays),
            arrays,
            versions,
            self._moments(int(table["seq"][0]), until) if len(table) else (),
            tuple(one for one in news if dataset in (None, one.dataset)),
            forgotten,
        )

    def _moments(self, first: int, until: int) -> tuple[tuple[int, float, str], ...]:
        since = "coalesce((SELECT max(seq) FROM moment WHERE seq <= ?), 0)"
        rows = self._rows(f"SELECT seq, time, run, seal FROM moment WHERE seq >= {since} AND seq <= ? ORDER BY seq", first, until)
        # What is unknown must not be taken for what was before it.
        return tuple((n, at, run) if seals.seal_of_names(n, at, run) == seal else (n, 0.0, "") for n, at, run, seal in rows)

    def _news(self, since: int, until: int) -> tuple[list[News], bool]:
        rows = self._rows(
            "SELECT seq, time, kind, dataset, array, version, seal FROM news WHERE seq > ? AND seq <= ? ORDER BY seq",
            since,
            until,
        )
        sound = [News(*row) for *row, seal in rows if seals.seal_of_names(*row) == seal]
        gone = max((news.seq for news in sound if news.kind == FORGOTTEN), default=None)
        if gone is None and len(sound) == len(rows):
            return sound, False
        kinds = {"removed": REMOVED, "ready": PUBLISHED}
        records = self._rows("SELECT name, version, state FROM dataset WHERE state IN ('removed', 'ready') ORDER BY name")
        now = [News(gone or until, 0.0, kinds[state], name, "", version) for name, version, state in records]
        later = [news for news in sound if news.seq > (gone or until)]
        said = {(news.dataset, news.version) for news in later}
        return [news for news in now if (news.dataset, news.version) not in said] + later, True


def _sound(table: NDArray[Any], arrays: Mapping[int, tuple[str, str]]) -> NDArray[Any]:
    """Rows of `arrays` that are as they were sealed."""
    keep = np.zeros(len(table), bool)
    for number in np.unique(table["array"]).tolist():
        if number in arrays:
            mine = table["array"] == number
            keep[mine] = seals.are_sound(table[mine], seals.seal_of_names(*arrays[number]))
    return table if keep.all() else table[keep]
