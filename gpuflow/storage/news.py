"""What a node's manifest tells of its own past, beside the rows that say how things are: when which run committed, and what records did.

A replica's row is the newest state of its chunk, numbered by its commit, so that the table itself is a log of chunks that never grows
beyond them: nothing more is written for a chunk. `moment` says from which number on commits were those of a run at a time; `news` has a
row for each dataset, or array of one, that was published or removed. Both are kept for a while, and nothing depends on either."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gpuflow.storage.seals import seal_of_names

if TYPE_CHECKING:
    from gpuflow.storage.record import DatasetRecord

PUBLISHED, REMOVED, FORGOTTEN = "published", "removed", "forgotten"
"""Kinds of news. FORGOTTEN: up to there news are not kept any more."""

TABLES = """
CREATE TABLE moment (seq INTEGER PRIMARY KEY, time REAL NOT NULL, run TEXT NOT NULL, seal INTEGER NOT NULL);
CREATE TABLE news (
    seq INTEGER PRIMARY KEY, time REAL NOT NULL, kind TEXT NOT NULL, dataset TEXT NOT NULL, array TEXT NOT NULL,
    version INTEGER NOT NULL, seal INTEGER NOT NULL);
INSERT INTO news SELECT value, 0.0, 'forgotten', '', '', 0, seal_of_names(value, 0.0, 'forgotten', '', '', 0)
    FROM meta WHERE key = 'seq' AND value > 0;
"""

RETENTION_SECONDS = 30 * 86400.0
MOST_NEWS, MOST_MOMENTS = 10_000, 100_000
"""About 1 MB and 4 MB."""
MOMENT_SECONDS = 0.05
"""Commits of one run that follow each other within this have one time: that of the first."""
_PRUNE_AFTER = 1024  # of the rows that this process wrote

Query = Callable[..., Any]


class Notes:
    """What one manifest's process writes of it, within the transaction of what it is about. query: `Manifest.query`; execute: that of the
    connection, for who has its lock already."""

    def __init__(self, query: Query, execute: Query) -> None:
        self._query, self._execute = query, execute
        self._last = ("", 0.0, -1)  # run, time, the newest number that it covers
        self._written = 0

    def committed(self, before: int, count: int, run: str) -> None:
        """Commits `before` + 1 to `before` + `count` are those of `run`, now. Mostly nothing has to be written."""
        now = time.time()
        known, since, newest = self._last
        if known != run or newest != before or not 0 <= now - since <= MOMENT_SECONDS:
            row = (before + 1, now, run)
            self._execute("REPLACE INTO moment VALUES (?, ?, ?, ?)", (*row, seal_of_names(*row)))
            since = now
            self._count(now)
        self._last = run, since, before + count

    def recorded(self, before: int, former: DatasetRecord | None, record: DatasetRecord) -> int:
        """What `record`, which takes the place of `former`, says that others want to know. How many numbers that takes after `before`."""
        rows = changes_told(former, record)
        for seq, (kind, array) in enumerate(rows, before + 1):
            row = (seq, time.time(), kind, record.name, array, record.version)
            self._query("REPLACE INTO news VALUES (?, ?, ?, ?, ?, ?, ?)", *row, seal_of_names(*row))
            self._count(row[1])
        return len(rows)

    def _count(self, now: float) -> None:
        self._written += 1
        if self._written >= _PRUNE_AFTER:
            self._written = 0
            self.prune(now)

    def prune(self, now: float) -> None:
        """Forget what is older, or more, than is kept."""
        for table, most in (("moment", MOST_MOMENTS), ("news", MOST_NEWS)):
            oldest = self._query(f"SELECT seq FROM {table} ORDER BY seq DESC LIMIT 1 OFFSET ?", most)
            aged = self._query(f"SELECT max(seq) FROM {table} WHERE time < ? AND time > 0", now - RETENTION_SECONDS)
            until = max([row[0] or 0 for row in (*oldest, *aged)], default=0)
            if not until:
                continue
            self._query(f"DELETE FROM {table} WHERE seq <= ?", until)
            if table == "news":
                row = (until, 0.0, FORGOTTEN, "", "", 0)
                self._query("REPLACE INTO news VALUES (?, ?, ?, ?, ?, ?, ?)", *row, seal_of_names(*row))


def changes_told(former: DatasetRecord | None, record: DatasetRecord) -> list[tuple[str, str]]:
    """(kind, array or "" for the dataset) that a record tells beside what the one before it did. Pure."""
    there = former is not None and former.state != "removed"
    if record.state == "removed":
        return [(REMOVED, "")]
    gone = [path for path in former.arrays if path not in record.arrays] if there and former is not None else []
    told = [(REMOVED, path) for path in gone]
    was_ready = there and former is not None and former.state == "ready"
    if record.state == "ready" and not (was_ready and former is not None and former.arrays == record.arrays):
        told.append((PUBLISHED, ""))
    return told
