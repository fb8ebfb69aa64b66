"""One node's store: `node.json`, `manifest.sqlite`, `staging/`, and a plain Zarr v3 tree per dataset under `datasets/`.

A chunk is read with its digest checked, and changed by a commit: temporary file, fsync, intent, rename, fsync of the directory, row.
At every instant the file is either the old one or the new one, and manifest and file together say which. `recover` reads that off
after a crash. Several processes may have one root open; nothing here knows of a cluster."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gpuflow.errors import ChunkCorrupt, ChunkLost, ConfigError, GpuflowError, NotFound, Problem, StaleChunk, StoreError
from gpuflow.storage.buffers import Buffer
from gpuflow.storage.codecs import ArrayCodec
from gpuflow.storage.disk import (
    digest,
    exchange,
    make_directories,
    read_file,
    read_into,
    store_errors,
    sync_data,
    sync_directories,
    write_durably,
    write_file,
)
from gpuflow.storage.manifest import UNKNOWN, Intent, Manifest, Replica
from gpuflow.storage.record import DatasetRecord
from gpuflow.storage.spares import Spares, write_over
from gpuflow.storage.writer import Writer, dead_writers

logger = logging.getLogger(__name__)

EMPTY = bytes(16)
"""Digest of a chunk that has no file: all fill value, as Zarr allows. It is recorded, so that it is not taken for a lost one."""

_SETTLE_SECONDS = 0.005  # a commit's rename and its row are microseconds to milliseconds apart
_COMMIT_PATIENCE_SECONDS = 60.0  # how long a live commit of another process may hold a chunk: an fsync on a busy disk


@dataclass(frozen=True, slots=True)
class Staged:
    """A replica whose bytes lie in `temporary`, ready to be committed; None when it has no file (EMPTY).

    replaces: the generation that this node must have when it is committed, 0 for none. linked: other names may share the file."""

    replica: Replica
    temporary: str | None
    replaces: int
    linked: bool = False


class NodeStore:
    """A store root opened by this process. Thread-safe."""

    def __init__(
        self, root: str | os.PathLike[str], *, name: str | None = None, rack: str | None = None, create: bool = True
    ) -> None:
        """`name` goes into a new node's id; `rack`, which the node keeps, is where it stands. Without `create`, a root that is not a store
        is a StoreError."""
        self.root = Path(root).absolute()
        self._lock = threading.Lock()
        self._writer: Writer | None = None
        self.spares = Spares()
        self._unsettled: set[Replica] = set()  # announced here, and the attempt to settle them failed: a full disk
        self._records: dict[str, DatasetRecord] = {}
        self._codecs: dict[tuple[str, str, bool], tuple[DatasetRecord, ArrayCodec]] = {}
        try:
            with store_errors(self.root):
                if create:
                    make_directories(self.root / "datasets")
                    make_directories(self.root / "staging")
                self.node_id, self.rack = self._identity(name, rack, create)
                if not (self.root / "manifest.sqlite").exists() and any((self.root / "datasets").glob("*")):
                    raise StoreError(str(self.root), "its manifest.sqlite is lost", "run `gpuflow doctor --rebuild`")
                self.manifest = Manifest(self.root / "manifest.sqlite", create=create)
        except BaseException:
            self._close_writer()
            raise

    def _identity(self, name: str | None, rack: str | None, create: bool) -> tuple[str, str]:
        """(node id, rack or "")."""
        path = self.root / "node.json"
        if not path.exists():
            if not create:
                raise StoreError(str(self.root), "holds no gpuflow store", "ingest something first, or give the right root")
            label = re.sub(r"[^A-Za-z0-9.-]", "-", name or socket.gethostname())
            fresh = {"format": 1, "node_id": f"{label}-{uuid.uuid4().hex[:6]}"}
            temporary = self.writer.temporary()
            write_file(temporary, json.dumps(fresh).encode())
            with contextlib.suppress(FileExistsError):
                os.link(temporary, path)  # the first of several starting processes wins
            os.unlink(temporary)
            sync_directories([self.root])
        try:
            known = json.loads(read_file(path))
            node_id, kept = known["node_id"], known.get("rack", "")
            if not isinstance(node_id, str) or not node_id or not isinstance(kept, str):
                raise ValueError(f"node_id is {node_id!r}, rack is {kept!r}")
            if rack is not None and rack != kept:
                kept = rack
                write_durably(path, json.dumps({**known, "rack": rack}).encode(), self.writer.temporary())
            return node_id, kept
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(str(self.root), f"node.json is damaged ({error})", "restore it or choose another root") from error

    def close(self) -> None:
        """Closing twice is harmless; what was staged and not committed goes."""
        self._close_writer()
        self.manifest.close()

    def _close_writer(self) -> None:
        if self._writer is not None:
            self._writer.close()

    @property
    def writer(self) -> Writer:
        """This process's writer, made at the first use."""
        with self._lock:
            if self._writer is None:
                with store_errors(self.root):
                    self._writer = Writer(self.root)
            return self._writer

    # -- datasets -------------------------------------------------------------------------------------------------------------

    def put_record(self, record: DatasetRecord) -> None:
        """Keep the record, unless that version or a newer one is here, and lay its `zarr.json` files.

        State "removed" deletes the dataset here: its rows with the record, in one transaction, then its folder, by way of `staging/`,
        so that a crash leaves no half tree (`recover` ends what was begun). The record stays as a tombstone. A commit that it overtakes
        raises NotFound and leaves nothing.

        A later version makes the name live again, empty: no row or file of the former dataset is left by then. Generations count from
        1 again, while the manifest's sequence numbers go on; an inventory must forget the former dataset."""
        folder = self._folder(record.name)
        moved = self.writer.temporary()  # its maker waits for recoverers, who wait for transactions: never within one
        deadline = time.monotonic() + _COMMIT_PATIENCE_SECONDS
        with store_errors(self.root):
            while not self._try_put(record, folder, moved):
                if time.monotonic() > deadline:
                    reason = f"commits into the former dataset {record.name!r}, which was removed, do not end"
                    raise StoreError(str(self.root), reason, "stop the process that makes them, and run again")
                self.recover()
                time.sleep(_SETTLE_SECONDS)
            shutil.rmtree(moved, ignore_errors=True)
            if record.state == "removed":
                self._sweep()

    def _folder(self, name: str) -> Path:
        """A dataset's folder. ConfigError for a name that would lead elsewhere."""
        if not name or name in (".", "..") or "/" in name or "\0" in name:
            raise ConfigError([Problem(f"{name!r} cannot name a dataset", hint="use letters, digits, - and _")])
        return self.root / "datasets" / name

    def _try_put(self, record: DatasetRecord, folder: Path, moved: str) -> bool:
        """False when commits into a removed dataset of that name are still under way."""
        known = self.manifest.version(record.name)
        if known is not None and known[0] >= record.version:
            return True
        with self.manifest.transaction():  # so that files and row are of one version, whoever else puts one
            known = self.manifest.version(record.name)
            if record.state != "removed" and (known is None or known[0] < record.version):
                if known is not None and known[1] == "removed":
                    if record.name not in self.manifest.removed():
                        return False
                    if folder.exists():
                        os.rename(folder, moved)
                elif not self._clear(record, folder, moved):
                    return False
                self._lay(record, folder)
            self.manifest.put_record(record)
        return True

    def _lay(self, record: DatasetRecord, folder: Path) -> None:
        for key, data in record.documents().items():
            target = folder / key
            if not target.is_file() or read_file(target) != data:  # most versions of a record change nothing of it
                write_durably(target, data, self.writer.temporary(), below=self.root / "datasets")

    def _clear(self, record: DatasetRecord, folder: Path, moved: str) -> bool:
        """Take away what this node has of the former version and `record` has no more. False while commits into such an array are under
        way."""
        former = self.manifest.record(record.name)
        if former is None or former.state == "removed":
            return True
        gone = [path for path in former.arrays if path not in record.arrays]
        if not all(self.manifest.forget_array(record.name, path) for path in gone):
            return False
        keys = former.documents().keys() - record.documents().keys()
        for key in keys:
            (folder / key).unlink(missing_ok=True)
        if gone:
            os.makedirs(moved)
        for number, path in enumerate(gone):
            if (folder / path).exists() and not any(other.startswith(f"{path}/") for other in record.arrays):
                os.rename(folder / path, f"{moved}/{number}")
        return True

    def _sweep(self) -> None:
        """Delete the folders of removed datasets, but for those that a commit is under way in: it sweeps when it ends."""
        if not any(self._folder(name).exists() for name in self.manifest.removed()):
            return
        moved = []
        writer = self.writer
        with self.manifest.transaction():
            for name in self.manifest.removed():
                if self._folder(name).exists():
                    moved.append(writer.temporary())
                    os.rename(self._folder(name), moved[-1])
        sync_directories([self.root / "datasets"])
        for folder in moved:
            shutil.rmtree(folder, ignore_errors=True)

    def record(self, name: str) -> DatasetRecord:
        """The dataset's record. NotFound when this node never heard of it, or it was removed."""
        known = self.manifest.version(name)
        if known is None or known[1] == "removed":
            raise NotFound("dataset", name, [other.name for other in self.manifest.records() if other.state != "removed"])
        record = self._records.get(name)
        if record is None or record.version != known[0]:
            record = self.manifest.record(name)
            assert record is not None, name  # records are replaced, never deleted
            self._records[name] = record
        return record

    def codec(self, dataset: str, array: str, *, becoming: bool = False) -> ArrayCodec:
        """The array's codec, made once. becoming: of the array as it will be once it has grown."""
        record = self.record(dataset)
        key = dataset, array, becoming and array in record.growth.get("arrays", {})
        known = self._codecs.get(key)
        if known is None or known[0] is not record:
            metadata = record.array(array)
            known = self._codecs[key] = (record, ArrayCodec(record.becoming[array] if key[2] else metadata))
        return known[1]

    def path(self, dataset: str, array: str, chunk: int) -> Path:
        """The file of a chunk, whether it is here or not."""
        return self._folder(dataset).parent / self.record(dataset).chunk_name(array, chunk)

    # -- reading --------------------------------------------------------------------------------------------------------------

    def read(self, dataset: str, array: str, chunk: int) -> tuple[Replica, bytes]:
        """The chunk's replica here and its encoded bytes, verified; no bytes when it is EMPTY.

        ChunkLost when this node has none, ChunkCorrupt when the file is missing or differs from what was committed. During a commit
        by another thread or process the reader gets the generation before or the one after, never a mix."""
        name = self.record(dataset).chunk_name(array, chunk)
        path = self.root / "datasets" / name
        deadline = time.monotonic() + _COMMIT_PATIENCE_SECONDS
        while True:
            replica = self.manifest.replica(dataset, array, chunk)
            if replica is None:
                if self.manifest.is_broken(dataset, array, chunk):
                    raise ChunkCorrupt(name, self.node_id, "its row in the manifest is not as it was sealed")
                raise ChunkLost(name, [self.node_id])
            data, reason = self._verified(path, replica)
            if not reason:
                if replica.recipe != UNKNOWN:
                    return replica, data
                self.manifest.mark_damaged(replica, False)
                return self.manifest.replica(dataset, array, chunk) or replica, data
            # The order matters: a commit that ended since the row was read shows in the row, one that goes on in the intent.
            under_way = self.manifest.has_intent(dataset, array, chunk)
            if self.manifest.replica(dataset, array, chunk) == replica:
                if not under_way:
                    self.manifest.mark_damaged(replica)
                if not under_way or time.monotonic() > deadline:
                    raise ChunkCorrupt(name, self.node_id, reason)
                self.recover()
                time.sleep(_SETTLE_SECONDS)

    def read_known(self, path: str, replica: Replica, buffer: Buffer, *, cached: bool = False) -> memoryview[int] | None:
        """The verified bytes of a chunk whose row and file were looked up before, in `buffer`. None when they are no longer the file's:
        then `read` knows what is the case. cached: None, too, when they are not in the page cache."""
        if replica.digest == EMPTY or replica.recipe == UNKNOWN:
            return None
        try:
            data = read_into(path, replica.nbytes, buffer, cached=cached)
        except OSError:
            return None
        return data if data is not None and digest(data) == replica.digest else None

    def _verified(self, path: Path, replica: Replica) -> tuple[bytes, str]:
        """The bytes of a replica, and what is wrong with them."""
        if replica.digest == EMPTY:
            return b"", ""
        try:
            data = read_file(path)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return b"", "its file is missing"
        except OSError as error:
            return b"", f"its file cannot be read ({error.strerror})"
        if len(data) == replica.nbytes and digest(data) == replica.digest:
            return data, ""
        return b"", f"{len(data)} bytes with digest {digest(data).hex()}, committed were {replica.nbytes}"

    # -- committing -----------------------------------------------------------------------------------------------------------

    def stage(self, replica: Replica, data: bytes | memoryview, *, replaces: int = 0, durable: bool = True) -> Staged:
        """Write the chunk's bytes beside the tree. durable: they are to be committed so, and are on their way to the disk from now on.
        StoreError when there is no room; nothing is left behind then."""
        with store_errors(self.root):
            try:
                temporary = self._write(data, durable)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not self.spares.drop():
                    raise
                temporary = self._write(data, durable)
        return Staged(replica, temporary, replaces)

    def _write(self, data: bytes | memoryview, durable: bool) -> str:
        spare = self._over_spare(data, durable)
        if spare is not None:
            return spare
        temporary = self.writer.temporary()
        write_file(temporary, data, durable=False, soon=durable)
        return temporary

    def _over_spare(self, data: bytes | memoryview, durable: bool) -> str | None:
        """A spare file that now holds `data`, if there is one and nobody else has it."""
        spare = self.spares.take()
        if spare is None:
            return None
        try:
            if write_over(spare, data, soon=durable):
                return spare
        except BaseException:
            os.unlink(spare)
            raise
        os.unlink(spare)
        return None

    def stage_link(self, replica: Replica, source: Path, *, replaces: int = 0) -> Staged:
        """Take `source` by a hard link: no bytes are copied, and it is never written to, since commits replace files."""
        temporary = self.writer.temporary()
        with store_errors(self.root):
            os.link(source, temporary)
        return Staged(replica, temporary, replaces, linked=True)

    def stage_empty(self, replica: Replica, *, replaces: int = 0) -> Staged:
        """A chunk that is all fill value and has no file."""
        return Staged(replica, None, replaces)

    def commit(self, staged: Sequence[Staged], *, durable: bool = True, run: str = "") -> None:
        """Make staged replicas the current ones, all in one group; each atomically by itself. Durable: they survive a power loss; else
        only the death of processes, and a chunk that a power loss damaged is found by its digest. run: whose they are, for followers.

        StaleChunk when a chunk is no longer at the generation it replaces, NotFound when its dataset was removed; nothing of the
        group is changed then, except that of two datasets of which one goes during the commit the other keeps its chunks. After a
        StoreError each chunk is at the old generation or at the new."""
        if not staged:
            return
        replicas = [item.replica for item in staged]
        targets = self._announce(staged, durable)
        try:
            with store_errors(self.root):
                replaced = [item for item, target in zip(staged, targets, strict=True) if self._put_file(item, target, durable)]
                if durable:
                    folders = {os.path.dirname(target) for target in targets}
                    sync_directories(folder for folder in folders if os.path.exists(folder))
            gone = self.manifest.finish(
                replicas, durable=False, run=run
            )  # not waited for: until it is durable, the intent stands
        except BaseException:
            self._undo(staged)
            raise
        self._keep_spares(replaced)
        if gone:
            self._sweep()
            raise NotFound("dataset", gone[0].dataset, hint="it was removed meanwhile")

    def _put_file(self, item: Staged, target: str, durable: bool) -> bool:
        """Have the staged file at `target`. Whether the one that it replaced is now the temporary."""
        if item.temporary is None:
            try:
                os.unlink(target)
            except (FileNotFoundError, NotADirectoryError):
                self._check_there()
            return False
        if item.replaces and not item.linked:
            with contextlib.suppress(FileNotFoundError):  # the generation before was EMPTY
                if exchange(item.temporary, target):
                    return True
        try:
            os.rename(item.temporary, target)
        except FileNotFoundError:
            make_directories(Path(target).parent, durable, below=self.root / "datasets")
            os.rename(item.temporary, target)
        if item.linked:
            Path(item.temporary).unlink(missing_ok=True)  # renaming one link of a file onto another does nothing
        return False

    def _check_there(self) -> None:
        """FileNotFoundError when the store itself is gone, as when its disk is no longer mounted: a file that is not there means nothing
        then, and the manifest, which is open, still takes what is written."""
        os.stat(self.root / "datasets")

    def _keep_spares(self, replaced: Sequence[Staged]) -> None:
        for item in replaced:
            if not self.spares.give(str(item.temporary), item.replica.nbytes):
                self.discard([item])

    def _undo(self, staged: Sequence[Staged]) -> None:
        """Settle a commit that failed here. When that fails too, `recover` does it: in this process, or in another after it."""
        mine = {item.replica for item in staged}
        try:
            self._settle([intent for intent in self.manifest.intents(self.writer.name) if intent.replica in mine])
            self._sweep()
        except (GpuflowError, OSError) as error:
            with self._lock:
                self._unsettled |= mine
            logger.warning("node %s: a failed commit is not settled yet: %s", self.node_id, error)
        self.discard(staged)

    def _announce(self, staged: Sequence[Staged], durable: bool) -> list[str]:
        """The files of the announced replicas. Their bytes are durable first, for an intent may be carried out by another process."""
        deadline = time.monotonic() + _COMMIT_PATIENCE_SECONDS
        commits = [(item.replica, item.replaces) for item in staged]
        try:
            targets = self._targets([item.replica for item in staged])
            with store_errors(self.root):
                for item in staged:
                    if durable and item.temporary is not None:
                        sync_data(item.temporary)
            while blocked := self.manifest.announce(commits, self.writer.name, durable=durable):
                for replica, replaces, found in blocked:
                    if found != replaces or time.monotonic() > deadline:
                        name = self.record(replica.dataset).chunk_name(replica.array, replica.chunk)
                        raise StaleChunk(name, replaces, found)
                self.recover()
                time.sleep(_SETTLE_SECONDS)
            return targets
        except BaseException:
            self.discard(staged)
            raise

    def _targets(self, replicas: Sequence[Replica]) -> list[str]:
        records = {name: self.record(name) for name in {replica.dataset for replica in replicas}}
        prefix = f"{self.root}/datasets/"
        return [prefix + records[replica.dataset].chunk_name(replica.array, replica.chunk) for replica in replicas]

    def adopt(self, replica: Replica, data: bytes | memoryview, *, durable: bool = True) -> bool:
        """Keep a copy of another node's replica: at its generation, with its digest and recipe. False when this node has that generation
        or a newer one, or gets it meanwhile. ChunkCorrupt when `data` is not what the replica says; else as `stage` and `commit`."""
        return bool(self.adopt_all([(replica, data)], durable=durable))

    def adopt_all(self, copies: Sequence[tuple[Replica, bytes | memoryview]], *, durable: bool = True) -> list[Replica]:
        """`adopt` for several chunks of one array in one commit: which of them are now here. When another writer is faster with one, none
        is."""
        if not copies:
            return []
        first = copies[0][0]
        here = self.manifest.replicas_of(first.dataset, first.array, [replica.chunk for replica, _ in copies])
        staged: list[Staged] = []
        try:
            for replica, data in copies:
                there = here.get(replica.chunk)
                replaces = there.generation if there else 0
                if replaces < replica.generation:
                    staged.append(self.stage_copy(replica, data, replaces=replaces, durable=durable))
        except BaseException:
            self.discard(staged)
            raise
        try:
            self.commit(staged, durable=durable)
        except StaleChunk:
            return []
        return [item.replica for item in staged]

    def stage_copy(self, replica: Replica, data: bytes | memoryview, *, replaces: int = 0, durable: bool = True) -> Staged:
        """Stage another node's replica as it is. ChunkCorrupt when `data` is not what it says."""
        if len(data) != replica.nbytes or (digest(data) if len(data) else EMPTY) != replica.digest:
            name = self.record(replica.dataset).chunk_name(replica.array, replica.chunk)
            raise ChunkCorrupt(name, self.node_id, "what was to be kept of it is not what another node committed")
        if replica.digest == EMPTY:
            return self.stage_empty(replica, replaces=replaces)
        return self.stage(replica, data, replaces=replaces, durable=durable)

    def discard(self, staged: Sequence[Staged]) -> None:
        """Drop staged replicas that will not be committed."""
        for item in staged:
            if item.temporary is not None:
                with contextlib.suppress(OSError):  # it goes with the writer's folder
                    os.unlink(item.temporary)

    # -- after a crash --------------------------------------------------------------------------------------------------------

    def recover(self) -> int:
        """Settle what dead writers of this root left: finished commits get their rows, others leave the old chunk. How many."""
        with store_errors(self.root):
            count = self._settle_own()
            with dead_writers(self.root) as dead:
                names = {*dead, *(intent.writer for intent in self.manifest.intents() if not self._is_known(intent.writer))}
                intents = [intent for name in sorted(names) for intent in self.manifest.intents(name)]
                self._settle(intents)
            self._sweep()
        return count + len(intents)

    def _settle_own(self) -> int:
        """What this process could not settle when it failed."""
        with self._lock:
            mine, self._unsettled = self._unsettled, set()
        if not mine:
            return 0
        intents = [intent for intent in self.manifest.intents() if intent.replica in mine]
        try:
            self._settle(intents)
        except BaseException:
            with self._lock:
                self._unsettled |= mine
            raise
        return len(intents)

    def _is_known(self, writer: str) -> bool:
        return (self.root / "staging" / writer).exists()

    def _settle(self, intents: Sequence[Intent]) -> None:
        """The file decides: the new bytes are there, and the commit is finished; or they are not, and it never happened.

        A commit of a chunk that has no file is carried out. One of a removed dataset never happened."""
        done, undone, folders = [], [], []
        for intent in intents:
            replica = intent.replica
            if not intent.sound:
                undone.append(replica)
                continue
            try:
                path = self.path(replica.dataset, replica.array, replica.chunk)
            except (NotFound, KeyError, IndexError):  # removed; or of an array that was to grow, and has become something else
                undone.append(replica)
                continue
            if replica.digest == EMPTY:
                self._put_file(Staged(replica, None, 0), str(path), True)
            found = digest(read_file(path)) if path.is_file() else EMPTY
            if replica.digest == found:
                done.append(replica)
                folders.append(path.parent)
            else:
                undone.append(replica)
        self._check_there()
        sync_directories(folder for folder in folders if folder.exists())
        if done:
            undone += self.manifest.finish(done)
        if undone:
            self.manifest.withdraw(undone)
        if intents:
            logger.warning("node %s: %d unfinished commits completed, %d undone", self.node_id, len(done), len(undone))
