"""Small documents that every node keeps for others, such as how far a watcher has come: `notes/<name>.json`, the highest version wins.

Like records, they survive the loss of any node; unlike them nothing of the store depends on one."""

from __future__ import annotations

import fcntl
import json
import os
from typing import Any

from gpuflow.storage.disk import make_directories, read_file, store_errors, write_durably
from gpuflow.storage.node import NodeStore


def keep(store: NodeStore, name: str, document: dict[str, Any]) -> int:
    """Keep `document`, which has a "version", unless that or a newer one is here; the version that is here now."""
    folder = store.root / "notes"
    with store_errors(store.root):
        make_directories(folder, below=store.root)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            known = kept(store, name)
            version = int(known["version"]) if known else 0
            if version >= document["version"]:
                return version
            write_durably(folder / f"{name}.json", json.dumps(document).encode(), store.writer.temporary(), below=store.root)
            return int(document["version"])
        finally:
            os.close(lock)


def kept(store: NodeStore, name: str) -> dict[str, Any] | None:
    """What is kept under a name; None when nothing is, or a failing disk tore it: other nodes have it too."""
    try:
        document = json.loads(read_file(store.root / "notes" / f"{name}.json"))
        return document if isinstance(document, dict) and isinstance(document.get("version"), int) else None
    except (OSError, ValueError):
        return None


def names(store: NodeStore) -> list[str]:
    """Of what is kept."""
    return sorted(path.stem for path in (store.root / "notes").glob("*.json"))
