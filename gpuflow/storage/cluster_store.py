"""A dataset as a `zarr.abc.store.Store`: what opens Zarr opens it where it lies.

Metadata comes from the dataset's record, chunks from the node on this machine that has them, else from a peer, with their digest checked
(see view.py). What is written goes through the commit protocol, onto every node that has the chunk. Other keys are kept in the record."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Set
from contextlib import suppress
from datetime import UTC, datetime
from math import inf
from typing import TYPE_CHECKING, Any, TypeVar, cast

from zarr.abc.store import OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer
from zarr.core.buffer.core import default_buffer_prototype

from gpuflow.errors import ClusterError, ConfigError, NameTaken, NotFound, Problem
from gpuflow.storage.keys import METADATA, Chunk, parse
from gpuflow.storage.locator import Locator, Placer
from gpuflow.storage.metadata import ArrayMetadata
from gpuflow.storage.node import EMPTY
from gpuflow.storage.record import DatasetRecord, join
from gpuflow.storage.view import View

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import BufferPrototype

T = TypeVar("T")

WRITTEN = "written"
"""Kind of the origin of a dataset that was written through a store, and what the history of another one says of it."""
_SNAPSHOTS = "has snapshots, which are of its arrays as they are; delete them first"
_GROWING = "is growing: an append to it, or the run that makes it, was not finished; run that again first"
_INLINE_NBYTES = 256 * 2**10  # read at once on the event loop: a thread costs more than they do
_ALONE_NBYTES = 16 * 2**20  # so is one from the page cache, in 3 ms at most, when nothing else would have to wait for it
_OBJECT_NBYTES = 2**20  # of what is kept in the record, which every node has
_PUBLISH_TRIES = 50  # writers of one dataset's metadata at the same moment


class ClusterStore(Store):
    """Dataset `name` through `locator`. Thread-safe, picklable. Read-only it is pinned to the generation that it was opened at.

    A name that is not there is a dataset that is made when something is written to it."""

    supports_writes: bool = True
    supports_deletes: bool = True
    supports_listing: bool = True

    def __init__(self, locator: Locator, name: str, *, read_only: bool = False) -> None:
        super().__init__(read_only=read_only)
        self.locator, self.name = locator, name
        self._view: View | None = None
        self._changing = threading.Lock()
        self._reading = 0  # how many `get` are under way; of several event loops not exact

    @property
    def supports_consolidated_metadata(self) -> bool:
        """The record is all of it already."""
        return False

    def with_read_only(self, read_only: bool = False) -> ClusterStore:
        """The same dataset, opened anew."""
        return type(self)(self.locator, self.name, read_only=read_only)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and self.name == other.name and self.locator == other.locator

    def __hash__(self) -> int:
        return hash(self.name)

    def __repr__(self) -> str:
        return f"ClusterStore('gpuflow://{self.name}')"

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_changing", "_reading")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _changing=threading.Lock(), _reading=0)

    # -- what it is of --------------------------------------------------------------------------------------------------------

    @property
    def view(self) -> View:
        """What is read, once there is a dataset. NotFound when there is none."""
        if self._view is None:
            self._view = View(self.locator, self.locator.record(self.name), pinned=self.read_only)
        return self._view

    @property
    def _record(self) -> DatasetRecord:
        """As this store knows it; one without anything when there is no dataset."""
        try:
            return self.view.record
        except NotFound:
            return DatasetRecord(self.name, 0)

    @property
    def _placer(self) -> Placer:
        self._check_writable()
        if not hasattr(self.locator, "put"):
            raise ClusterError(f"dataset {self.name!r} can only be read from here")
        return cast(Placer, self.locator)

    # -- reading --------------------------------------------------------------------------------------------------------------

    def get_sync(
        self, key: str, *, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """The bytes of `key`; None when there is no such key, or its chunk is known to be all fill value."""
        prototype = prototype or default_buffer_prototype()
        what = parse(self._record, key)
        if isinstance(what, Chunk):
            found = (
                self.view.read(what.array, what.linear) if byte_range is None else self.view.read_cached(what.array, what.linear)
            )
            data: Any = None if found.replica.digest == EMPTY else found.data
        else:
            data = self._document(key)
        if data is None:
            return None
        return prototype.buffer.from_bytes(_part(data, byte_range))

    def _document(self, key: str) -> bytes | None:
        """Of what is no chunk."""
        record = self._record
        found = record.documents().get(key)
        if found is None and key == METADATA and record.arrays:  # a dataset is a group, whether its source said so or not
            return DatasetRecord(self.name, groups={"": {}}).documents()[METADATA]
        return found

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """See `get_sync`."""
        self._reading += 1
        try:
            what = None if self._view is None else parse(self._view.record, key)
            nbytes = self._nbytes_here(what)
            if nbytes <= _INLINE_NBYTES:
                return self.get_sync(key, prototype=prototype, byte_range=byte_range)
            if isinstance(what, Chunk) and nbytes <= _ALONE_NBYTES and byte_range is None and await self._alone():
                found = self.view.read_here(what.array, what.linear, cached=True)
                if found is not None:
                    return (prototype or default_buffer_prototype()).buffer.from_bytes(found.data)
            return await asyncio.to_thread(self.get_sync, key, prototype=prototype, byte_range=byte_range)
        finally:
            self._reading -= 1

    def _nbytes_here(self, what: Chunk | None) -> float:
        """Of what is read without the network, 0 for what is in memory; inf when it may take the network."""
        if self._view is None:
            return inf
        if what is None:
            return 0
        here = self._view.known_here(what.array, what.linear)
        return inf if here is None else here[1].nbytes

    async def _alone(self) -> bool:
        """Whether nothing else is being read, also of what was asked for together with this."""
        await asyncio.sleep(0)
        return self._reading == 1

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """One value for each of `key_ranges`."""
        return list(await asyncio.gather(*(self.get(key, prototype, byte_range) for key, byte_range in key_ranges)))

    async def exists(self, key: str) -> bool:
        """Whether there is something to get."""
        return await self.get(key) is not None

    # -- writing --------------------------------------------------------------------------------------------------------------

    def set_sync(self, key: str, value: Buffer) -> None:
        """Durably. NameTaken while a run changes the dataset in place; ConfigError for what a dataset cannot hold."""
        placer = self._placer
        if not isinstance(value, Buffer):
            raise TypeError(f"ClusterStore.set(): `value` must be a Buffer instance. Got an instance of {type(value)} instead.")
        what = parse(self._record, key)
        if isinstance(what, Chunk):
            self._put(placer, what, value.as_numpy_array().data.cast("B") if len(value) else memoryview(b""))
        else:
            self._change(placer, lambda record: _with_document(record, key, value.to_bytes()))

    def delete_sync(self, key: str) -> None:
        """Deleting what is not there is no error. A chunk that is deleted is all fill value."""
        placer = self._placer
        what = parse(self._record, key)
        if isinstance(what, Chunk):
            self._put(placer, what, memoryview(b""))
        elif self._document(key) is not None:
            self._change(placer, lambda record: _without(record, {key}))

    async def set(self, key: str, value: Buffer) -> None:
        """See `set_sync`."""
        await asyncio.to_thread(self.set_sync, key, value)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """`set`, unless there is something."""
        self._check_writable()
        if not await self.exists(key):
            await self.set(key, value)

    async def delete(self, key: str) -> None:
        """See `delete_sync`."""
        await asyncio.to_thread(self.delete_sync, key)

    async def delete_dir(self, prefix: str) -> None:
        """All below `prefix`; below "", the dataset itself."""
        await asyncio.to_thread(self._delete_below, self._placer, prefix.strip("/"))

    def _delete_below(self, placer: Placer, path: str) -> None:
        keys = {key for key in self._record.documents() if not path or key.startswith(f"{path}/")}
        if keys:
            self._change(placer, lambda record: _without(record, keys))

    def _put(self, placer: Placer, what: Chunk, data: memoryview[int]) -> None:
        view = self.view
        if view.record.origin.get("kind") != WRITTEN:
            self._change(placer, _marked)
        generation = placer.put(view.record, what.array, what.linear, data)
        view.learn(what.array, what.linear, generation)

    def _change(self, placer: Placer, change: Callable[[DatasetRecord], DatasetRecord]) -> None:
        """Publish what `change` makes of the record as it is now; arrays that are new in it get their chunks, all fill value."""
        with self._changing:
            for _ in range(_PUBLISH_TRIES):
                former = self._newest(placer)
                record = change(former)
                if record is former:
                    return
                placer.check_free(self.name)
                if placer.publish(record):
                    self._follow(placer, former, record)
                    return
        raise NameTaken(self.name, "is being changed by others; write to it when they have ended")

    def _newest(self, placer: Placer) -> DatasetRecord:
        try:
            record = self.locator.record(self.name)
        except NotFound:
            return DatasetRecord(self.name, placer.last_version(self.name), "ready", origin={"kind": WRITTEN}, created=_now())
        if record.state != "ready":
            raise NameTaken(self.name, "is not complete; finish it first: run the same command again that made it")
        return record

    def _follow(self, placer: Placer, former: DatasetRecord, record: DatasetRecord) -> None:
        """What goes with another record."""
        if record.state == "removed":
            placer.forget(self.name)
            self._view = None
            return
        for path in former.arrays.keys() - record.arrays.keys():
            placer.forget(self.name, path)
        for path, metadata in record.metadata.items():
            before = former.metadata[path].grid.size if path in former.arrays else 0
            if metadata.grid.size > before:
                placer.lay(record, path, before)
        self.view.forget(record)

    # -- listing --------------------------------------------------------------------------------------------------------------

    async def list(self) -> AsyncIterator[str]:
        """Every key. Chunks that are all fill value have none, as in any Zarr."""
        async for key in self.list_prefix(""):
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Keys that begin with `prefix`."""
        for key in await asyncio.to_thread(lambda: [*self._keys(prefix)]):
            yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Names directly below `prefix`."""
        path = prefix.strip("/")
        start = f"{path}/" if path else ""
        documents = [key for key in self._documents() if key.startswith(start)]
        names = {key[len(start) :].split("/", 1)[0] for key in documents}
        if any(path == array or path.startswith(f"{array}/") for array in self._record.arrays):
            keys = await asyncio.to_thread(lambda: [*self._chunk_keys(start)])
            names |= {key[len(start) :].split("/", 1)[0] for key in keys}
        for name in sorted(names):
            yield name

    def _documents(self) -> Set[str]:
        record = self._record
        return {*record.documents(), *([METADATA] if record.arrays else ())}

    def _keys(self, prefix: str) -> Iterator[str]:
        yield from sorted(key for key in self._documents() if key.startswith(prefix))
        yield from self._chunk_keys(prefix)

    def _chunk_keys(self, prefix: str) -> Iterator[str]:
        record = self._record
        for path, metadata in record.metadata.items():
            if not f"{path}/".startswith(prefix) and not prefix.startswith(f"{path}/"):
                continue
            sizes = self.locator.sizes(self.name, path, metadata.grid.size)
            keys = (join(path, metadata.key(chunk)) for chunk in sizes.nonzero()[0].tolist())
            yield from (key for key in keys if key.startswith(prefix))


def _part(data: Any, byte_range: ByteRequest | None) -> Any:
    match byte_range:
        case None:
            return data
        case RangeByteRequest():
            return data[byte_range.start : byte_range.end]
        case OffsetByteRequest():
            return data[byte_range.offset :]
        case SuffixByteRequest():
            return data[max(0, len(data) - byte_range.suffix) :]
    raise TypeError(f"Unexpected byte_range, got {byte_range}.")


def _with_document(record: DatasetRecord, key: str, data: bytes) -> DatasetRecord:
    """The record with another document at `key`."""
    if any(part in ("", ".", "..") for part in key.split("/")):
        raise ConfigError([Problem(f"{key!r} is no key of a Zarr hierarchy", hint="use names, with / between them")])
    path, _, name = key.rpartition("/")
    document = None
    if name == METADATA or key == METADATA:
        with suppress(ValueError):
            document = json.loads(data)
    kind = document.get("node_type") if isinstance(document, dict) and document.get("zarr_format") == 3 else None
    if kind == "array" and isinstance(document, dict):
        _check_array(record, path, document)
        return _changed(record, key, arrays={**record.arrays, path: document})
    if kind == "group" and isinstance(document, dict):
        return _changed(record, key, groups={**record.groups, path: document.get("attributes") or {}})
    if len(data) > _OBJECT_NBYTES:
        message = f"{record.name}/{key} has {len(data)} bytes and is no chunk of an array of the dataset"
        raise ConfigError([Problem(message, hint="datasets are Zarr v3: write its zarr.json first")])
    return _changed(record, key, objects={**record.objects, key: base64.b64encode(data).decode()})


def _changed(record: DatasetRecord, key: str, **changes: Any) -> DatasetRecord:
    """With `changes`, and nothing else at `key`."""
    path = key.removesuffix(METADATA).rstrip("/")
    bare = {
        "arrays": {name: document for name, document in record.arrays.items() if name != path},
        "groups": {name: document for name, document in record.groups.items() if name != path},
        "objects": {name: text for name, text in record.objects.items() if name != key},
    }
    after = {**bare, **changes}
    return record if all(after[name] == getattr(record, name) for name in after) else record.next(**after)


def _check_array(record: DatasetRecord, path: str, document: dict[str, Any]) -> None:
    """ConfigError when the dataset cannot have this array there."""
    if not path:
        raise ConfigError([Problem(f"the root of dataset {record.name!r} is a group", hint="give the array a name")])
    if document.get("chunk_grid", {}).get("name") != "regular":
        raise ConfigError([Problem(f"array {path!r} has no regular chunk grid", hint="gpuflow datasets have regular ones")])
    if path not in record.arrays:
        return
    if record.growth and record.arrays[path] != document:
        raise NameTaken(record.name, _GROWING)
    before, after = record.array(path).grid, ArrayMetadata(document).grid
    if record.snapshots and before != after:
        raise NameTaken(record.name, _SNAPSHOTS)
    if before.chunks != after.chunks or before.counts[1:] != after.counts[1:] or after.size < before.size:
        message = f"array {record.name}/{path} of shape {before.shape} cannot become {after.shape}"
        raise ConfigError([Problem(message, hint="it can grow along its first axis; else delete it, or write another one")])


def _without(record: DatasetRecord, keys: Set[str]) -> DatasetRecord:
    """The record without the documents at `keys`; without any left, the removed dataset."""
    gone = {key.removesuffix(METADATA).rstrip("/") for key in keys if key.rpartition("/")[2] == METADATA}
    if record.snapshots and gone & record.arrays.keys():
        raise NameTaken(record.name, _SNAPSHOTS)
    arrays = {path: document for path, document in record.arrays.items() if path not in gone}
    groups = {path: attributes for path, attributes in record.groups.items() if path not in gone}
    objects = {key: text for key, text in record.objects.items() if key not in keys}
    if not (arrays or groups or objects):
        nothing: dict[str, Any] = {key: {} for key in ("arrays", "groups", "objects", "statistics", "snapshots")}
        return record.next(state="removed", transforms=(), **nothing)
    return record.next(arrays=arrays, groups=groups, objects=objects)


def _marked(record: DatasetRecord) -> DatasetRecord:
    """The record of a dataset that is not any more what its pipeline or its source made of it: nothing may be made again from these."""
    if record.transforms and record.transforms[-1]["declared"] == WRITTEN:
        return record
    transform = {"declared": WRITTEN, "fingerprint": WRITTEN, "steps": {}, "begun": _now()}
    return record.next(transforms=(*record.transforms, transform), statistics={})


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
