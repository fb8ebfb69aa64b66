"""A directory followed: each file that is complete is appended to a dataset, in order of name among those that came together.

What is in is what the dataset's record says, so that whoever is killed goes on where it stopped. A file that cannot be appended is named
once, and the others go on; when it is written anew, it is looked at again."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpuflow.cluster.connection import Connection
from gpuflow.datasets import catalog
from gpuflow.datasets.growth import Axis
from gpuflow.errors import ClusterError, GpuflowError, NameTaken, SourceError
from gpuflow.execution.receipt import Receipt
from gpuflow.objectstore.append import append_sources, check_appendable
from gpuflow.objectstore.arrivals import Arrival, Stamp, arrivals
from gpuflow.objectstore.sources import Source, open_source
from gpuflow.storage.leases import LEASE_SECONDS
from gpuflow.storage.record import DatasetRecord

_TOGETHER = 64
"""Files that are appended by one commit of the record, which grows by each of them."""
_LOOK_SECONDS = 30.0
"""From one look at the directory to the next where nothing is heard of it: of network file systems nothing is."""
_BUSY_SECONDS = 0.5


@dataclass(frozen=True)
class Round:
    """What came of one look. appended: files; receipts: of the appends; refused: file -> why it is left out, each told once; waiting:
    files that are still being written."""

    appended: tuple[str, ...] = ()
    receipts: tuple[Receipt, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    waiting: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {
            "appended": list(self.appended),
            "receipts": [receipt.to_dict() for receipt in self.receipts],
            "refused": dict(self.refused),
            "waiting": list(self.waiting),
        }


class Follower:
    """Of one directory, for dataset `name`. options: of the sources."""

    def __init__(
        self,
        connection: Connection,
        directory: str | os.PathLike[str],
        name: str,
        *,
        axis: Axis | None = None,
        options: Mapping[str, Any] | None = None,
        replicas: Mapping[str, int] | None = None,
    ) -> None:
        self.directory = Path(directory).expanduser().absolute()
        self._connection, self._name, self._axis = connection, name, axis
        self._options, self._replicas = dict(options or {}), replicas
        self._handled: dict[Path, Stamp] = {}

    def look(self) -> Round:
        """Append what is complete and not in yet. NameTaken for a dataset that takes nothing; a run that has it is waited for."""
        appended, receipts, refused, waiting = list[str](), list[Receipt](), dict[str, str](), list[str]()
        fresh = [one for one in arrivals(self.directory) if self._handled.get(one.path) != one.stamp]
        record = catalog.records(self._connection).get(self._name)
        if record is not None and record.state == "writing":
            record = None  # it was being made of one of the files: that is gone on with
        elif record is not None:
            check_appendable(record)
        known = _known(record)
        group = list[tuple[Arrival, Source]]()
        for one in fresh:
            if one.waiting:
                waiting.append(str(one.path))
                continue
            source = self._opened(one, known, refused)
            if source is not None:
                group.append((one, source))
            if len(group) == _TOGETHER:  # no more are opened at once
                self._append(group, appended, receipts, refused)
                group = []
        if group:
            self._append(group, appended, receipts, refused)
        return Round(tuple(appended), tuple(receipts), refused, tuple(waiting))

    def _opened(self, one: Arrival, known: Mapping[str, Mapping[str, Any]], refused: dict[str, str]) -> Source | None:
        """The source, if it can be appended and is not in."""
        reason = one.reason
        try:
            if not reason:
                part = known.get(str(one.path))
                if part is not None:
                    there = open_source(one.path, **part["options"])
                    if part["identity"].split(" coordinates=")[0] == there.identity():
                        self._handled[one.path] = one.stamp
                        return None
                source = open_source(one.path, **self._options)
                source.layout()
                return source
        except GpuflowError as error:
            reason = str(error)
        self._refuse(one, reason, refused)
        return None

    def _refuse(self, one: Arrival, reason: str, refused: dict[str, str]) -> None:
        refused[str(one.path)] = reason
        self._handled[one.path] = one.stamp

    def _append(
        self, group: list[tuple[Arrival, Source]], appended: list[str], receipts: list[Receipt], refused: dict[str, str]
    ) -> None:
        """All of a group at once; where that fails, one after the other, so that those which can be appended are."""
        try:
            receipt = self._patiently([source for _, source in group])
            reason = receipt.outcome.tally.failures[0].error if receipt.outcome.tally.failures else ""
        except (NameTaken, ClusterError):
            raise
        except GpuflowError as error:
            reason = str(error)
        else:
            if receipt.outcome.interrupted:
                raise KeyboardInterrupt
            if not reason:
                receipts.append(receipt)
                appended += [str(one.path) for one, _ in group]
                self._handled.update({one.path: one.stamp for one, _ in group})
                return
        if len(group) == 1:
            self._refuse(group[0][0], reason, refused)
            return
        for each in group:
            self._append([each], appended, receipts, refused)

    def _patiently(self, sources: list[Source]) -> Receipt:
        """Of one that died while it appended, the lease runs out."""
        until = time.monotonic() + LEASE_SECONDS + 5
        while True:
            try:
                return append_sources(self._connection, sources, self._name, axis=self._axis, replicas=self._replicas)
            except NameTaken as error:
                if "by run" not in error.reason or time.monotonic() > until:
                    raise
                time.sleep(_BUSY_SECONDS)

    def follow(self, stopped: threading.Event | None = None) -> Iterator[Round]:
        """Look whenever something happens in the directory, until `stopped`."""
        stopped = stopped or threading.Event()
        with _changes(self.directory) as changed:
            while not stopped.is_set():
                changed.clear()
                yield self.look()
                until = time.monotonic() + _LOOK_SECONDS
                while not stopped.is_set() and not changed.wait(_BUSY_SECONDS) and time.monotonic() < until:
                    pass


def _known(record: DatasetRecord | None) -> dict[str, Mapping[str, Any]]:
    """By location, the last part of the dataset that came from there."""
    if record is None:
        return {}
    origin = record.origin
    parts = [origin, *origin.get("appended", ())]
    options = origin.get("options", {})
    return {part["location"]: {"identity": part["identity"], "options": part.get("options", options)} for part in parts}


@contextmanager
def _changes(directory: Path) -> Iterator[threading.Event]:
    """Set whenever a file below the directory was closed after writing, or renamed, or made."""
    from watchdog.events import FileSystemEvent, FileSystemEventHandler
    from watchdog.observers import Observer

    changed = threading.Event()

    class Wake(FileSystemEventHandler):
        def on_any_event(self, event: FileSystemEvent) -> None:
            if event.event_type in ("closed", "moved", "created"):
                changed.set()

    if not directory.is_dir():
        raise SourceError(str(directory), "is no directory", "give one that is there")
    observer = Observer()
    observer.schedule(Wake(), str(directory), recursive=True)
    observer.start()
    try:
        yield changed
    finally:
        observer.stop()
        observer.join()
