"""Who may change a dataset in place: the runs of one pipeline at a time, for as long as they say that they live.

A file per dataset in `leases/`, replaced under a lock. It decides who begins; chunks are safe without it, by their generations. Times are
of this node's own clock."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpuflow.storage.disk import make_directories, read_file, store_errors
from gpuflow.storage.node import NodeStore

LEASE_SECONDS = 30.0
"""How long a lease is good for after it was last taken."""
ADDING = "append "
"""How the pipelines begin that only add to a dataset: those who read it are not concerned, but nobody else may change it meanwhile."""


def take(store: NodeStore, dataset: str, pipeline: str, run: str) -> str | None:
    """Take or prolong it for `run`. None, or a run of another pipeline that has it."""
    with _changing(store, dataset) as (path, held):
        if held and held["pipeline"] != pipeline:
            return str(min(held["runs"]))
        _write(path, pipeline, {**held.get("runs", {}), run: time.time() + LEASE_SECONDS})
        return None


def release(store: NodeStore, dataset: str, run: str) -> None:
    """Give it back, if `run` has it."""
    with _changing(store, dataset) as (path, held):
        if run in held.get("runs", ()):
            _write(path, held["pipeline"], {other: until for other, until in held["runs"].items() if other != run})


def holder(store: NodeStore, dataset: str) -> str | None:
    """A run that has it, if one has. Only looks."""
    held = _good(store.root / "leases" / f"{dataset}.json")
    return str(min(held["runs"])) if held else None


def changer(store: NodeStore, dataset: str) -> str | None:
    """The same, if it changes what is there already."""
    held = _good(store.root / "leases" / f"{dataset}.json")
    return str(min(held["runs"])) if held and not held["pipeline"].startswith(ADDING) else None


@contextmanager
def _changing(store: NodeStore, dataset: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The dataset's file and what it says that is still good, while nobody else looks."""
    folder = store.root / "leases"
    with store_errors(store.root):
        make_directories(folder, durable=False, below=store.root)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            path = folder / f"{dataset}.json"
            yield path, _good(path)
        finally:
            os.close(lock)


def _good(path: Path) -> dict[str, Any]:
    """{"pipeline", "runs": {run: until}} without runs whose time is up; {} when none is left, or a power loss tore the file."""
    try:
        held = json.loads(read_file(path))
        now = time.time()
        # One that ends later than any that could be given now is from before the clock was set back.
        runs = {run: until for run, until in held["runs"].items() if now < until <= now + LEASE_SECONDS}
        return {"pipeline": held["pipeline"], "runs": runs} if runs else {}
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _write(path: Path, pipeline: str, runs: dict[str, float]) -> None:
    if not runs:
        path.unlink(missing_ok=True)
        return
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps({"pipeline": pipeline, "runs": runs}))
    os.replace(temporary, path)
