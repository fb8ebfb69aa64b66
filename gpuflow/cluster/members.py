"""Which workers are there, and of which nodes.

Pure. A node is one store on one machine: who says that he is a node which is somewhere else at that moment is a copy, and is refused,
since commits of two stores under one name would pass for one another's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distributed.comm.addressing import get_address_host

from gpuflow import __version__
from gpuflow.cluster.messages import NodeInfo

_REMEMBERED = 20  # refusals: enough to look at
GONE_SECONDS = 5.0
"""After which a node that left is not reckoned with: what others have of its chunks, older generations too, counts until it is back. A
worker that is started again is back in two."""


class Members:
    """nodes: by worker address. workers_of: addresses by node, none without one. refused: why, by worker address, the last ones."""

    def __init__(self) -> None:
        self.nodes: dict[str, NodeInfo] = {}
        self.workers_of: dict[str, set[str]] = {}
        self.refused: dict[str, str] = {}
        self._places: dict[str, str] = {}  # node -> where its store was when it was last there
        self._left: dict[str, float] = {}  # node -> since when it has no worker

    def join(self, worker: str, answer: Mapping[str, Any]) -> bool:
        """Whether the worker that says `answer` of itself may join, and now has; else `refused` says why not."""
        reason = self._why_not(worker, answer)
        if reason:
            self.refused = dict([*self.refused.items(), (worker, reason)][-_REMEMBERED:])
            return False
        info = self.nodes[worker] = NodeInfo(**answer)
        self.workers_of.setdefault(info.node, set()).add(worker)
        self._left.pop(info.node, None)
        return True

    def has_moved(self, worker: str) -> bool:
        """Whether its node's store is not the one that was there before: restored from a copy, or its machine was started again. Asked
        once for each worker that joins."""
        info = self.nodes[worker]
        before, self._places[info.node] = self._places.get(info.node, info.place), info.place
        return before != info.place

    def leave(self, worker: str, now: float) -> bool:
        """Whether its node has no worker any more. now: seconds, of a clock that only goes forward."""
        info = self.nodes.pop(worker, None)
        if info is None:
            return False
        self.workers_of[info.node].remove(worker)
        if self.workers_of[info.node]:
            return False
        del self.workers_of[info.node]
        self._left[info.node] = now
        return True

    def given_up(self, now: float) -> list[str]:
        """Nodes that have been gone for so long that they are not reckoned with; each is named once."""
        gone = [node for node, since in self._left.items() if now - since > GONE_SECONDS]
        for node in gone:
            del self._left[node]
        return gone

    def _why_not(self, worker: str, answer: Mapping[str, Any]) -> str:
        """Empty when it may join. One of the same root on the same host as another is no copy: its machine was started again, and that the
        other has gone is not yet known."""
        if answer.get("version") != __version__:
            return f"it has gpuflow {answer.get('version')}, the scheduler has {__version__}; install one version"
        for address in sorted(self.workers_of.get(answer["node"], ())):
            known = self.nodes[address]
            same_path = known.root == answer["root"] and get_address_host(address) == get_address_host(worker)
            if known.place != answer["place"] and not same_path:
                return (
                    f"its root {answer['root']} says that it is node {known.node}, and so does another one: {known.root} of worker "
                    f"{address}; if it is a copy, delete its node.json and start it again, and it becomes a node of its own"
                )
        return ""
