"""One node's store: `node.json`, `manifest.sqlite`, `staging/`, and a plain Zarr v3 tree per dataset under `datasets/`.

A chunk is read with its digest checked, and changed by a commit: temporary file, fsync, intent, rename, fsync of the directory, row. At
every instant the file is either the old one or the new one, and manifest and file together say which. `recover` reads that off after a
crash. Several processes may have one root open; nothing here knows of a cluster."""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gpuflow.errors import ChunkCorrupt, ChunkLost, NotFound, StaleChunk, StoreError
from gpuflow.storage.codecs import ArrayCodec
from gpuflow.storage.disk import (
    digest,
    make_directories,
    read_file,
    store_errors,
    sync_directories,
    write_durably,
    write_file,
)
from gpuflow.storage.manifest import Intent, Manifest, Replica
from gpuflow.storage.record import DatasetRecord
from gpuflow.storage.writer import Writer, dead_writers

logger = logging.getLogger(__name__)

EMPTY = bytes(16)
"""Digest of a chunk that has no file: all fill value, as Zarr allows. It is recorded, so that it is not mistaken for a lost one."""

_SETTLE_SECONDS = 0.005  # a commit's rename and its row are microseconds to milliseconds apart
_COMMIT_PATIENCE_SECONDS = 60.0  # how long a live commit of another process may hold a chunk: an fsync on a busy disk


@dataclass(frozen=True, slots=True)
class Staged:
    """A replica whose bytes lie in `temporary`, ready to be committed; None when it has no file (EMPTY).

    replaces: the generation that this node must have when it is committed, 0 for none."""

    replica: Replica
    temporary: Path | None
    replaces: int


class NodeStore:
    """A store root opened by this process. Thread-safe."""

    def __init__(self, root: str | os.PathLike[str], *, name: str | None = None, create: bool = True) -> None:
        """`name` goes into a new node's id. Without `create`, a root that is not a store is a StoreError."""
        self.root = Path(root).absolute()
        with store_errors(self.root):
            if create:
                make_directories(self.root / "datasets")
                make_directories(self.root / "staging")
            self.node_id = self._identity(name, create)
            self.manifest = Manifest(self.root / "manifest.sqlite", create=create)
        self._writer: Writer | None = None
        self._records: dict[str, DatasetRecord] = {}
        self._codecs: dict[tuple[str, str], tuple[DatasetRecord, ArrayCodec]] = {}

    def _identity(self, name: str | None, create: bool) -> str:
        path = self.root / "node.json"
        if not path.exists():
            if not create:
                raise StoreError(str(self.root), "holds no gpuflow store", "ingest something first, or give the right root")
            label = re.sub(r"[^A-Za-z0-9.-]", "-", name or socket.gethostname())
            fresh = {"format": 1, "node_id": f"{label}-{uuid.uuid4().hex[:6]}"}
            temporary = self.root / f".node.json.{uuid.uuid4().hex}"
            write_file(temporary, json.dumps(fresh).encode())
            try:
                os.link(temporary, path)  # the first of several starting processes wins
            except FileExistsError:
                logger.debug("another process has just named this node")
            finally:
                temporary.unlink()
            sync_directories([self.root])
        try:
            return str(json.loads(read_file(path))["node_id"])
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(str(self.root), f"node.json is damaged ({error})", "restore it or choose another root") from error

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self.manifest.close()

    @property
    def writer(self) -> Writer:
        """This process's writer, made at the first use."""
        if self._writer is None:
            with store_errors(self.root):
                self._writer = Writer(self.root)
        return self._writer

    # -- datasets -------------------------------------------------------------------------------------------------------------

    def put_record(self, record: DatasetRecord) -> None:
        """Keep the record, unless a newer one is here, and lay its `zarr.json` files."""
        with store_errors(self.root):
            known = self.manifest.record(record.name)
            if known is not None and known.version >= record.version:
                return
            base = self.root / "datasets" / record.name
            for path, attributes in record.groups.items():
                document = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
                write_durably(base / path / "zarr.json", json.dumps(document, indent=2).encode())
            for path, metadata in record.metadata.items():
                write_durably(base / path / "zarr.json", metadata.to_json())
            self.manifest.put_record(record)
            self._records.pop(record.name, None)

    def record(self, name: str) -> DatasetRecord:
        """The dataset's record as this node last knew it. NotFound when it never heard of it."""
        record = self._records.get(name) or self.manifest.record(name)
        if record is None:
            raise NotFound("dataset", name, [known.name for known in self.manifest.records()])
        self._records[name] = record
        return record

    def codec(self, dataset: str, array: str) -> ArrayCodec:
        """The array's codec, made once."""
        record = self.record(dataset)
        known = self._codecs.get((dataset, array))
        if known is None or known[0] is not record:
            known = self._codecs[dataset, array] = (record, ArrayCodec(record.array(array)))
        return known[1]

    def path(self, dataset: str, array: str, chunk: int) -> Path:
        """The file of a chunk, whether it is here or not."""
        return self.root / "datasets" / self.record(dataset).chunk_name(array, chunk)

    # -- reading --------------------------------------------------------------------------------------------------------------

    def read(self, dataset: str, array: str, chunk: int) -> tuple[Replica, bytes]:
        """The chunk's replica here and its encoded bytes, verified; no bytes when it is EMPTY.

        ChunkLost when this node has none, ChunkCorrupt when the file is missing or differs from what was committed. During a commit
        by another thread or process the reader gets the generation before or the one after, never a mix."""
        name = self.record(dataset).chunk_name(array, chunk)
        deadline = time.monotonic() + _COMMIT_PATIENCE_SECONDS
        while True:
            replica = self.manifest.replica(dataset, array, chunk)
            if replica is None:
                raise ChunkLost(name, [self.node_id])
            if replica.digest == EMPTY:
                return replica, b""
            try:
                data = read_file(self.path(dataset, array, chunk))
                reason = f"{len(data)} bytes with digest {digest(data).hex()}, committed were {replica.nbytes}"
                if len(data) == replica.nbytes and digest(data) == replica.digest:
                    return replica, data
            except FileNotFoundError:
                reason = "its file is missing"
            # The order matters: a commit that ended since the row was read shows in the row, one that goes on shows in the intent.
            under_way = self.manifest.has_intent(dataset, array, chunk)
            if self.manifest.replica(dataset, array, chunk) == replica:
                if not under_way or time.monotonic() > deadline:
                    self.manifest.mark_damaged(replica)
                    raise ChunkCorrupt(name, self.node_id, reason)
                self.recover()
                time.sleep(_SETTLE_SECONDS)

    # -- committing -----------------------------------------------------------------------------------------------------------

    def stage(self, replica: Replica, data: bytes | memoryview, *, replaces: int = 0, durable: bool = True) -> Staged:
        """Write the chunk's bytes beside the tree. StoreError when there is no room; nothing is left behind then."""
        temporary = self.writer.temporary()
        with store_errors(self.root):
            write_file(temporary, data, durable)
        return Staged(replica, temporary, replaces)

    def stage_link(self, replica: Replica, source: Path, *, replaces: int = 0) -> Staged:
        """Take `source` by a hard link: no bytes are copied, and it is never written to, since commits replace files."""
        temporary = self.writer.temporary()
        with store_errors(self.root):
            os.link(source, temporary)
        return Staged(replica, temporary, replaces)

    def stage_empty(self, replica: Replica, *, replaces: int = 0) -> Staged:
        """A chunk that is all fill value and has no file."""
        return Staged(replica, None, replaces)

    def commit(self, staged: Sequence[Staged], *, durable: bool = True) -> None:
        """Make staged replicas the current ones, all in one group; each atomically by itself.

        StaleChunk when a chunk is no longer at the generation it replaces, in which case nothing of the group is changed."""
        if not staged:
            return
        replicas = [item.replica for item in staged]
        self._announce(staged)
        try:
            with store_errors(self.root):
                folders = set()
                for item in staged:
                    target = self.path(item.replica.dataset, item.replica.array, item.replica.chunk)
                    if item.temporary is None:
                        continue
                    make_directories(target.parent, durable)
                    os.rename(item.temporary, target)
                    folders.add(target.parent)
                if durable:
                    sync_directories(folders)
            self.manifest.finish(replicas)
        except BaseException:
            mine = {(replica.dataset, replica.array, replica.chunk) for replica in replicas}
            intents = self.manifest.intents(self.writer.name)  # this writer's other threads have theirs there too
            self._settle([i for i in intents if (i.replica.dataset, i.replica.array, i.replica.chunk) in mine])
            self.discard(staged)
            raise

    def _announce(self, staged: Sequence[Staged]) -> None:
        deadline = time.monotonic() + _COMMIT_PATIENCE_SECONDS
        try:
            while blocked := self.manifest.announce([(item.replica, item.replaces) for item in staged], self.writer.name):
                for replica, replaces, found in blocked:
                    if found != replaces or time.monotonic() > deadline:
                        name = self.record(replica.dataset).chunk_name(replica.array, replica.chunk)
                        raise StaleChunk(name, replaces, found)
                self.recover()
                time.sleep(_SETTLE_SECONDS)
        except BaseException:
            self.discard(staged)
            raise

    def discard(self, staged: Sequence[Staged]) -> None:
        """Drop staged replicas that will not be committed."""
        for item in staged:
            if item.temporary is not None:
                item.temporary.unlink(missing_ok=True)

    # -- after a crash --------------------------------------------------------------------------------------------------------

    def recover(self) -> int:
        """Settle what dead writers of this root left: finished commits get their rows, others leave the old chunk. How many."""
        with store_errors(self.root), dead_writers(self.root) as dead:
            names = {*dead, *(intent.writer for intent in self.manifest.intents() if not self._is_known(intent.writer))}
            intents = [intent for name in sorted(names) for intent in self.manifest.intents(name)]
            self._settle(intents)
        return len(intents)

    def _is_known(self, writer: str) -> bool:
        return (self.root / "staging" / writer).exists()

    def _settle(self, intents: Sequence[Intent]) -> None:
        """The file decides: the new bytes are there, and the commit is finished; or they are not, and it never happened."""
        done, undone, folders = [], [], []
        for intent in intents:
            path = self.path(intent.replica.dataset, intent.replica.array, intent.replica.chunk)
            found = digest(read_file(path)) if path.exists() else None
            if intent.replica.digest in (found, EMPTY):
                done.append(intent.replica)
                folders.append(path.parent)
            else:
                undone.append(intent.replica)
        sync_directories(folder for folder in folders if folder.exists())
        if done:
            self.manifest.finish(done)
        if undone:
            self.manifest.withdraw(undone)
        if intents:
            logger.warning("node %s: %d unfinished commits completed, %d undone", self.node_id, len(done), len(undone))
