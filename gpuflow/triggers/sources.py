"""Where pages of commits come from: the workers of a cluster, or the store roots on this machine's disk."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from gpuflow.cluster.connection import Connection, connect
from gpuflow.errors import ClusterError, ConfigError, GpuflowError, NotFound, Problem
from gpuflow.settings import scheduler_address, store_root
from gpuflow.storage.disk import store_errors
from gpuflow.storage.node import NodeStore
from gpuflow.storage.roots import existing_roots
from gpuflow.storage.tail import Page, Tail

_ANSWER_SECONDS = 30.0  # beyond what was to be waited for
_FRESH_SECONDS = 1.0  # for which it is not asked again who is there


class Source(Protocol):
    """Of pages. Its methods are called from several threads."""

    def nodes(self) -> Sequence[str]:
        """Ids of those that are there now. GpuflowError when that cannot be told."""
        ...

    def page(self, node: str, since: int, dataset: str | None, seconds: float) -> Page:
        """What came after number `since` on a node; waits up to `seconds` for something to come. OSError when the node is away."""
        ...

    def close(self) -> None:
        """What was opened."""
        ...


class ClusterSource:
    """A running cluster. owned: the connection is closed with it."""

    def __init__(self, connection: Connection, *, owned: bool = False) -> None:
        self._connection, self._owned = connection, owned
        self._known: tuple[float, dict[str, list[str]]] = (-_FRESH_SECONDS, {})

    def nodes(self) -> Sequence[str]:
        """See `Source`."""
        return list(self._workers())

    def _workers(self) -> dict[str, list[str]]:
        asked, known = self._known
        if time.monotonic() - asked > _FRESH_SECONDS:
            known = self._connection.nodes()
            self._known = time.monotonic(), known
        return known

    def page(self, node: str, since: int, dataset: str | None, seconds: float) -> Page:
        """See `Source`."""
        addresses = self._workers().get(node)
        if not addresses:
            raise OSError(f"node {node} is not there")
        client = self._connection.client

        async def ask() -> Page:
            answer = await client.rpc(addresses[0]).gf_events(since=since, dataset=dataset, seconds=seconds)
            if not isinstance(answer, dict) or "until" not in answer:
                raise ClusterError(f"worker {addresses[0]} tells no events", "install one version of gpuflow everywhere")
            return Page.from_wire(answer)

        try:
            return asyncio.run_coroutine_threadsafe(ask(), client.loop.asyncio_loop).result(seconds + _ANSWER_SECONDS)
        except (OSError, TimeoutError) as error:
            self._known = -_FRESH_SECONDS, {}  # another worker of its node may be there
            if isinstance(error, GpuflowError):
                raise
            raise OSError(f"node {node} does not answer: {error}") from error

    def close(self) -> None:
        """See `Source`."""
        if self._owned:
            self._connection.close()


class SourceHere:
    """The nodes below `root` of this machine, whichever processes use them."""

    def __init__(self, root: Path) -> None:
        """NotFound when there is none."""
        self._root, self._tails = root, dict[str, Tail]()
        self._known: dict[Path, str] = {}
        if not self.nodes():
            raise NotFound("store", str(root), hint="ingest something first, or give the root, or the scheduler's address")

    def nodes(self) -> Sequence[str]:
        """See `Source`."""
        with store_errors(self._root):
            for root in existing_roots(self._root):
                if root not in self._known:
                    store = NodeStore(root, create=False)
                    self._known[root] = store.node_id
                    self._tails[store.node_id] = Tail(root)
                    store.close()
        return list(self._tails)

    def page(self, node: str, since: int, dataset: str | None, seconds: float) -> Page:
        """See `Source`."""
        return self._tails[node].wait(since, seconds, dataset)

    def close(self) -> None:
        """See `Source`."""
        for tail in self._tails.values():
            tail.close()


def source_for(connection: Connection | None, root: str | os.PathLike[str] | None) -> Source:
    """Of the connection, of the cluster that `GPUFLOW_SCHEDULER` names, or of the nodes below `root` (default `GPUFLOW_ROOT`)."""
    if connection is not None and root is not None:
        raise ConfigError([Problem("a cluster has roots of its own", "root", hint="leave out root, or connection")])
    if connection is not None:
        return ClusterSource(connection)
    if root is None and scheduler_address():
        return ClusterSource(connect(), owned=True)
    return SourceHere((Path(root) if root is not None else store_root()).absolute())
