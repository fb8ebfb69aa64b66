"""A Zarr v2 or v3 hierarchy, or one array, by path or URL. Its stored objects are copied as they are.

A v3 array keeps its `zarr.json`; a v2 array gets the v3 document that describes the same bytes. Only where v3 has no name for
what a v2 array uses (lz4, filters) are chunks decoded by zarr-python and encoded anew."""

from __future__ import annotations

import hashlib
import json
import pathlib
import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from gpuflow.errors import ConfigError, NotFound, SourceError
from gpuflow.objectstore.sources.base import Layout, array_of, with_parents
from gpuflow.objectstore.sources.zarr_tree import Node, Tree, join, open_tree, scan
from gpuflow.objectstore.sources.zarr_v2 import Inexpressible, key_v2, reencoded_metadata, v3_document
from gpuflow.storage.codecs import ArrayCodec
from gpuflow.storage.metadata import ArrayMetadata

SINGLE_ARRAY = "data"
"""Name of the array when the source is one array and has no name for it."""
_HINT = "install the package that adds it to zarr, write the array anew with zarr's own codecs, or leave it out (arrays=)"


@dataclass(frozen=True, slots=True)
class _Entry:
    """One array to ingest: its metadata to be, where it lies, and its `.zarray` when it is encoded anew."""

    metadata: ArrayMetadata
    prefix: str
    reencoded: dict[str, Any] | None = None
    why: str = ""
    """What Zarr v3 has no name for, when it is encoded anew."""


@dataclass(frozen=True, slots=True)
class _Scan:
    entries: dict[str, _Entry]
    groups: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class ZarrSource:
    """`arrays`: paths of the arrays and groups to take; by default all."""

    def __init__(self, location: str, arrays: Sequence[str] | None = None) -> None:
        self.location = location
        self._arrays = None if not arrays else tuple(sorted({name.strip("/") for name in arrays}))
        self._tree: Tree = open_tree(location)
        self._scanned: _Scan | None = None
        self._reading: dict[str, _Entry] | None = None
        self._opened: dict[str, tuple[Any, ArrayCodec]] = {}
        self._lock = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        # Workers need what reading takes: attributes can be long, and would travel with every task.
        slim = {
            name: replace(entry, metadata=ArrayMetadata({**entry.metadata.document, "attributes": {}}))
            for name, entry in self._entries().items()
        }
        return {"location": self.location, "arrays": self._arrays, "reading": slim}

    def __setstate__(self, state: dict[str, Any]) -> None:
        ZarrSource.__init__(self, state["location"], state["arrays"])
        self._reading = state["reading"]

    @property
    def linkable(self) -> bool:
        """A local source of which every chunk is taken as it is."""
        return "://" not in self.location and all(entry.reencoded is None for entry in self._entries().values())

    @property
    def options(self) -> Mapping[str, Any]:
        return {"arrays": None if self._arrays is None else list(self._arrays)}

    def identity(self) -> str:
        """Location, choice of arrays, and a digest of all metadata. Chunks are not looked at."""
        layout = self.layout()
        text = json.dumps([layout.groups, {name: meta.document for name, meta in layout.arrays.items()}], sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:32]
        return f"zarr {self.location} arrays={','.join(self._arrays) if self._arrays is not None else '*'} metadata={digest}"

    def layout(self) -> Layout:
        found = self._scan()
        return Layout({name: entry.metadata for name, entry in found.entries.items()}, found.groups, found.notes)

    def read(self, array: str, linear: int) -> bytes | None:
        """The stored object as it is, or encoded anew. SourceError when zarr cannot decode a chunk that must be."""
        entry: _Entry = array_of(self._entries(), array)
        if entry.reencoded is None:
            return self._tree.get(join(entry.prefix, entry.metadata.key(linear)))
        grid = entry.metadata.grid
        if not self._tree.exists(join(entry.prefix, key_v2(grid.unravel(linear), entry.reencoded))):
            return None
        source, codec = self._open(array, entry)
        try:
            block = np.asarray(source[grid.region(linear)], dtype=entry.metadata.dtype)
        except Exception as error:  # every codec has errors of its own for bad bytes
            if isinstance(error, ConnectionError | TimeoutError) or getattr(error, "errno", None) is not None:
                raise  # the disk or the network: worth another try
            raise SourceError(self.location, f"chunk {linear} of array {array!r} cannot be decoded: {error}") from error
        return bytes(codec.encode(block))

    def path(self, array: str, linear: int) -> pathlib.Path | None:
        entry: _Entry = array_of(self._entries(), array)
        key = entry.metadata.key(linear)
        return self._tree.path(join(entry.prefix, key)) if entry.reencoded is None else None

    def _entries(self) -> dict[str, _Entry]:
        return self._scan().entries if self._reading is None else self._reading

    def _scan(self) -> _Scan:
        with self._lock:
            if self._scanned is None:
                self._scanned = self._scan_now()
            return self._scanned

    def _scan_now(self) -> _Scan:
        nodes = scan(self._tree)
        arrays = {node.path or SINGLE_ARRAY: node for node in nodes if node.document is not None}
        groups = {node.path: node.attributes for node in nodes if node.document is None}
        if not arrays:
            raise SourceError(self.location, "holds no array", hint="give the path of a Zarr array, or of a group with arrays")
        if self._arrays is not None:
            unknown = [name for name in self._arrays if not any(_is_under(path, name) for path in (*arrays, *groups))]
            if unknown:
                raise NotFound("array", unknown[0], known=sorted(arrays))
            arrays = {path: node for path, node in arrays.items() if _chosen(path, self._arrays)}
            kept = {*self._arrays, *with_parents({}, arrays)}
            groups = {path: value for path, value in groups.items() if path in kept or _chosen(path, self._arrays)}
        entries = {path: self._entry(path, node) for path, node in sorted(arrays.items())}
        anew = [f"{path} ({entry.why})" for path, entry in entries.items() if entry.reencoded is not None]
        notes = (f"encoded anew, since Zarr v3 has no name for their codecs: {', '.join(anew)}",) if anew else ()
        return _Scan(entries, with_parents(groups, entries), notes)

    def _entry(self, name: str, node: Node) -> _Entry:
        document = node.document or {}
        try:
            if node.zarr_format == 3:
                return _Entry(self._kept(name, document), node.path)
            return self._converted(name, node.path, document, node.attributes)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            if isinstance(error, ConfigError):
                raise self._refused(name, error.problems[0].message, error.problems[0].hint) from error
            raise self._refused(name, f"its metadata is not valid: {error!r}", "write it again") from error

    def _kept(self, name: str, document: dict[str, Any]) -> ArrayMetadata:
        # A name alone is short for an object with a name (Zarr v3.1): the engine and zarr-python 3.1 read the long form.
        encoding = _long(document["chunk_key_encoding"])
        document = {**document, "chunk_key_encoding": encoding, "codecs": [_long(codec) for codec in document["codecs"]]}
        grid = document["chunk_grid"]["name"]
        if grid != "regular":
            raise self._refused(name, f"its chunk grid is {grid!r}, not regular", "write it anew with regular chunks")
        if encoding["name"] not in ("default", "v2"):
            hint = "write it anew with the default encoding"
            raise self._refused(name, f"its chunk keys are encoded {encoding['name']!r}", hint)
        reason = _reason_not_to_open(document, warned=False)
        if reason is not None:
            used = ", ".join(str(codec["name"]) for codec in document["codecs"])
            data_type = _long(document["data_type"])["name"]
            raise self._refused(name, f"data type {data_type}, codecs {used}: zarr says: {reason}", _HINT)
        metadata = ArrayMetadata(document)
        _ = metadata.grid  # ValueError for a chunk of size zero
        return metadata

    def _converted(self, name: str, prefix: str, v2: dict[str, Any], attributes: dict[str, Any]) -> _Entry:
        try:
            document = v3_document(v2, attributes)
            reason = _reason_not_to_open(document, warned=True)
            if reason is None:
                metadata = ArrayMetadata(document)
                _ = metadata.grid
                return _Entry(metadata, prefix)
        except Inexpressible as error:
            reason = str(error)
        try:
            entry = _Entry(reencoded_metadata(v2, attributes), prefix, v2, reason)
            self._open(name, entry)
        except (Inexpressible, ConfigError) as error:
            why = error.problems[0].message if isinstance(error, ConfigError) else f"{error} has no stable form in Zarr v3"
            raise self._refused(name, why, "convert the array to a numeric dtype, or leave it out (arrays=)") from error
        return entry

    def _open(self, name: str, entry: _Entry) -> tuple[Any, ArrayCodec]:
        """The v2 array through zarr-python, and the codec for its new chunks."""
        with self._lock:
            if name not in self._opened:
                import zarr

                try:
                    source = zarr.open_array(store=self._tree.store(), path=entry.prefix, mode="r", zarr_format=2)
                except (ValueError, TypeError, KeyError, ImportError) as error:
                    v2 = entry.reencoded or {}
                    used = [codec.get("id") for codec in [*(v2.get("filters") or []), v2.get("compressor") or {}]]
                    raise self._refused(name, f"codecs {', '.join(map(str, used))}: zarr says: {error}", _HINT) from error
                self._opened[name] = (source, ArrayCodec(entry.metadata))
            return self._opened[name]

    def _refused(self, array: str, reason: str, hint: str = "") -> SourceError:
        return SourceError(self.location, f"array {array!r}: {reason}", hint)


def _is_under(path: str, name: str) -> bool:
    return not name or path == name or path.startswith(f"{name}/")


def _chosen(path: str, names: Sequence[str]) -> bool:
    return any(_is_under(path, name) for name in names)


def _long(value: Any) -> dict[str, Any]:
    return {"name": value} if isinstance(value, str) else dict(value)


def _reason_not_to_open(document: dict[str, Any], *, warned: bool) -> str | None:
    """What zarr-python says against an array with this `zarr.json`; `warned`: a warning counts. None: it opens."""
    import zarr
    from zarr.core.buffer import default_buffer_prototype
    from zarr.storage import MemoryStore

    data = default_buffer_prototype().buffer.from_bytes(json.dumps(document).encode())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error" if warned else "ignore")
            zarr.open_array(MemoryStore({"zarr.json": data}), mode="r", zarr_format=3)
    except Exception as error:  # noqa: BLE001 - zarr has no one error for a document that it does not understand
        return f"{error}" or type(error).__name__
    return None
