"""The documents and keys of a Zarr hierarchy, wherever it lies, without opening arrays.

Read-only. A local tree is read straight from disk; any other goes through zarr's fsspec store. Chunks are never
listed: whether one is there is known when it is read."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from gpuflow.errors import NotFound, SourceError

_REQUESTS = 16
"""Metadata requests under way at once: enough to hide the latency of an object store, few enough for any server."""
Document = dict[str, Any]


class Tree(Protocol):
    """Read access by key. Picklable; thread-safe."""

    @property
    def location(self) -> str: ...
    def get(self, key: str) -> bytes | None: ...
    def exists(self, key: str) -> bool: ...
    def children(self, prefix: str) -> list[str]: ...
    def path(self, key: str) -> Path | None: ...
    def store(self) -> Any: ...


@dataclass(frozen=True, slots=True)
class Node:
    """One array or group as it is described at the source."""

    path: str
    zarr_format: int
    document: Document | None
    """`zarr.json` or `.zarray` of an array; None for a group."""
    attributes: Document


@dataclass(frozen=True, slots=True)
class LocalTree:
    """A directory."""

    location: str

    def get(self, key: str) -> bytes | None:
        try:
            return Path(self.location, key).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None

    def exists(self, key: str) -> bool:
        return Path(self.location, key).is_file()

    def children(self, prefix: str) -> list[str]:
        """Names of the directories under `prefix`."""
        try:
            return sorted(entry.name for entry in Path(self.location, prefix).iterdir() if entry.is_dir())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def path(self, key: str) -> Path | None:
        path = Path(self.location, key)
        return path if path.is_file() else None

    def store(self) -> Any:
        from zarr.storage import LocalStore

        return LocalStore(self.location, read_only=True)


@dataclass(slots=True)
class RemoteTree:
    """A URL, through zarr's fsspec store, which is opened on first use in each process."""

    location: str
    _store: Any = field(default=None, compare=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, compare=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteTree, (self.location,)

    def get(self, key: str) -> bytes | None:
        from zarr.core.buffer import default_buffer_prototype

        found = self._call(lambda store: store.get(key, default_buffer_prototype()))
        return None if found is None else bytes(found.to_bytes())

    def exists(self, key: str) -> bool:
        return bool(self._call(lambda store: store.exists(key)))

    def children(self, prefix: str) -> list[str]:
        async def names(store: Any) -> set[str]:
            return {name.strip("/").rsplit("/", 1)[-1] async for name in store.list_dir(prefix)}

        return sorted(self._call(names) - {"", "zarr.json"})

    def path(self, key: str) -> Path | None:
        return None

    def store(self) -> Any:
        with self._lock:
            if self._store is None:
                self._store = self._opened()
            return self._store

    def _opened(self) -> Any:
        try:
            from zarr.storage import FsspecStore

            return FsspecStore.from_url(self.location, read_only=True)
        except ImportError as error:
            raise SourceError(self.location, f"needs a package: {error}", hint="for S3: pip install 'gpuflow[s3]'") from error
        except ValueError as error:
            raise SourceError(self.location, f"cannot be opened: {error}", hint="check the URL's scheme") from error

    def _call(self, operation: Callable[[Any], Any]) -> Any:
        # zarr's own event loop: an fsspec file system may be used from one loop only, and zarr uses this one.
        from zarr.core.sync import sync

        return sync(operation(self.store()))


def join(*parts: str) -> str:
    """A key from parts, of which any may be empty."""
    return "/".join(part for part in parts if part)


def open_tree(location: str) -> Tree:
    return RemoteTree(location) if "://" in location else LocalTree(location)


def scan(tree: Tree) -> list[Node]:
    """All nodes, the root first, level by level. NotFound when the root is no Zarr node.

    Away from the local disk, consolidated metadata is believed where there is some: listing may be slow there, or impossible."""
    root, consolidated = _root(tree)
    if root is None:
        raise NotFound("source", tree.location, hint="there is no zarr.json, .zgroup or .zarray")
    if root.document is not None:
        return [root]
    if consolidated and not isinstance(tree, LocalTree):
        return [root, *_consolidated_nodes(consolidated, root.zarr_format)]
    return [root, *_walk(tree, root.zarr_format)]


def _root(tree: Tree) -> tuple[Node | None, Document]:
    """The root node, and the consolidated metadata of its group: path -> document (v3), key -> document (v2)."""
    document = _load(tree, "zarr.json")
    if document is not None:
        return _node_v3("", document, tree.location), (document.get("consolidated_metadata") or {}).get("metadata") or {}
    consolidated = (_load(tree, ".zmetadata") or {}).get("metadata") or {}
    node = _read_node(tree, 2, "")
    if node is None and consolidated:
        node = Node("", 2, None, consolidated.get(".zattrs") or {})
    return node, consolidated


def _walk(tree: Tree, zarr_format: int) -> Iterable[Node]:
    groups = [""]
    with ThreadPoolExecutor(_REQUESTS) as pool:
        while groups:
            listed = list(pool.map(tree.children, groups))
            paths = [join(group, name) for group, names in zip(groups, listed, strict=True) for name in names if _is_name(name)]
            nodes = [node for node in pool.map(partial(_read_node, tree, zarr_format), paths) if node is not None]
            yield from nodes
            groups = [node.path for node in nodes if node.document is None]


def _is_name(name: str) -> bool:
    return not name.startswith((".", "__"))


def _read_node(tree: Tree, zarr_format: int, path: str) -> Node | None:
    if zarr_format == 3:
        document = _load(tree, join(path, "zarr.json"))
        return None if document is None else _node_v3(path, document, tree.location)
    document = _load(tree, join(path, ".zarray"))
    if document is None and _load(tree, join(path, ".zgroup")) is None:
        return None
    return Node(path, 2, document, _load(tree, join(path, ".zattrs")) or {})


def _node_v3(path: str, document: Document, location: str) -> Node:
    if document.get("zarr_format") != 3 or document.get("node_type") not in ("array", "group"):
        raise SourceError(location, f"zarr.json of {path or 'the root'!r} describes no Zarr v3 array or group")
    return Node(path, 3, document if document["node_type"] == "array" else None, document.get("attributes") or {})


def _consolidated_nodes(consolidated: Document, zarr_format: int) -> list[Node]:
    if zarr_format == 3:
        return [_node_v3(path, document, path) for path, document in sorted(consolidated.items())]
    nodes = []
    for key, document in sorted(consolidated.items()):
        path, _, name = key.rpartition("/")
        if path and name in (".zarray", ".zgroup"):
            attributes = consolidated.get(join(path, ".zattrs")) or {}
            nodes.append(Node(path, 2, document if name == ".zarray" else None, attributes))
    return nodes


def _load(tree: Tree, key: str) -> Document | None:
    data = tree.get(key)
    if data is None:
        return None
    try:
        document = json.loads(data)
    except ValueError as error:
        raise SourceError(tree.location, f"{key} is not JSON: {error}", hint="it may be truncated; write it again") from error
    if not isinstance(document, dict):
        raise SourceError(tree.location, f"{key} is not a JSON object", hint="write it again")
    return document
