"""How far the watcher of a pipeline has come, kept on every node; and the right to be the one, held while it lives.

The state is written after what it tells of has been committed: after a crash some events come again, and find their chunks done."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from gpuflow.datasets.catalog import Nodes
from gpuflow.errors import GpuflowError
from gpuflow.storage import leases, notebook

logger = logging.getLogger(__name__)

_NONE: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class WatchState:
    """Of the pipeline that writes dataset `name`. identity: fingerprint of what it does; cursor: up to which events of the source all is
    done, but for `left`: chunks of the source's arrays that are to be tried again. whole: whether a run over all of the source is due.

    fitted: parameters (see execution.changed). tries: by chunk that failed, how often; given_up: by chunk, {"reason", "time", "tries"}.
    counts: since it was first watched. problem: what holds it up."""

    name: str
    source: str
    identity: str
    version: int = 0
    cursor: str = ""
    left: Mapping[str, list[int]] = field(default_factory=lambda: _NONE)
    whole: bool = False
    fitted: Mapping[str, Any] = field(default_factory=lambda: _NONE)
    tries: Mapping[str, int] = field(default_factory=lambda: _NONE)
    given_up: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: _NONE)
    counts: Mapping[str, int] = field(default_factory=lambda: _NONE)
    problem: str = ""
    updated: float = 0.0

    def counted(self, **more: int) -> WatchState:
        """With `more` counts."""
        return replace(self, counts={name: self.counts.get(name, 0) + more.get(name, 0) for name in {*self.counts, *more}})

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {name: dict(value) if isinstance(value, Mapping) else value for name, value in vars(self).items()}


def load_state(nodes: Nodes, name: str) -> WatchState | None:
    """The newest that any node has."""
    found = [one for one in nodes.each_node(notebook.kept, _key(name)).values() if one is not None]
    newest = max(found, key=lambda one: int(one["version"]), default=None)
    known = WatchState.__dataclass_fields__
    return None if newest is None else WatchState(**{field: value for field, value in newest.items() if field in known})


def save_state(nodes: Nodes, state: WatchState) -> WatchState:
    """The following version of `state`, on every live node."""
    following = replace(state, version=state.version + 1, updated=time.time())
    nodes.each_node(notebook.keep, _key(state.name), following.to_dict())
    return following


def all_states(nodes: Nodes) -> list[WatchState]:
    """Of every pipeline that is or was watched, by name."""
    names = {name for found in nodes.each_node(notebook.names).values() for name in found if name.startswith("watch@")}
    states = (load_state(nodes, name.removeprefix("watch@")) for name in sorted(names))
    return [state for state in states if state is not None]


def watcher_of(nodes: Nodes, name: str) -> str | None:
    """Who watches it now, as it is to be shown."""
    found = [one for one in nodes.each_node(leases.holder, _key(name)).values() if one is not None]
    return shown(min(found)) if found else None


def shown(holder: str) -> str:
    """`process PID on HOST`."""
    host, process, *_ = holder.split("|")
    return f"process {process} on {host}"


def _key(name: str) -> str:
    return f"watch@{name}"  # no dataset is called so


def _space() -> str:
    """Of process ids: within one, and one boot of the machine, a process that is not there has ended."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8] + os.readlink("/proc/self/ns/pid")
    except OSError:
        return uuid.uuid4().hex


class Claim:
    """To be the only watcher of a pipeline. `take` it, and ask `is_held` before anything is done under it."""

    def __init__(self, nodes: Nodes, name: str) -> None:
        self._nodes, self._key = nodes, _key(name)
        self._own = f"{socket.gethostname()}|{os.getpid()}|{_space()}|{uuid.uuid4().hex[:8]}"
        self._ended, self._keeper = threading.Event(), threading.Thread(target=self._keep, name="claim", daemon=True)
        self._since = 0.0

    def take(self) -> str | None:
        """Take it; None, or who has it. One of a process that has ended counts no more."""
        others = self._ask()
        for other in others:
            if _is_dead(other):
                self._nodes.each_node(leases.release, self._key, other)
        others = self._ask() if any(map(_is_dead, others)) else others
        if others:
            self._nodes.each_node(leases.release, self._key, self._own)
            return shown(min(others))
        if not self._keeper.is_alive():
            self._keeper.start()
        return None

    def _ask(self) -> set[str]:
        asked = time.monotonic()
        others = {
            other for other in self._nodes.each_node(leases.take, self._key, self._own, self._own).values() if other is not None
        }
        if not others:
            self._since = asked
        return others

    def is_held(self) -> bool:
        """Whether nobody else can have it; where that is not certain any more it is taken anew."""
        if time.monotonic() - self._since < leases.LEASE_SECONDS * 0.8:
            return True
        return not self._ask()

    def _keep(self) -> None:
        while not self._ended.wait(leases.LEASE_SECONDS / 4):
            try:
                if self._ask():
                    self._since = 0.0
            except (GpuflowError, OSError) as error:
                logger.warning("the claim %s was not prolonged: %s", self._key, error)

    def give_back(self) -> None:
        """For another one to take at once."""
        self._ended.set()
        if self._keeper.is_alive():
            self._keeper.join()
        try:
            self._nodes.each_node(leases.release, self._key, self._own)
        except (GpuflowError, OSError) as error:  # it runs out by itself
            logger.info("the claim %s was not given back: %s", self._key, error)


def _is_dead(holder: str) -> bool:
    """Whether it is a process of this machine that has ended."""
    host, process, space, *_ = [*holder.split("|"), "", "", ""]
    return host == socket.gethostname() and space == _space() and process.isdigit() and not Path(f"/proc/{process}").exists()
