"""Where the router sends tasks, in finer words than nodes: the workers of a node that are for the CPU are one place, called as the node is;
each CUDA device of a node is another.

So a node's CPU workers and its devices have measured rates of their own, and a task goes to whichever of them ends it first. Pure. Where
there is no CUDA worker, places are nodes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Set

from gpuflow.cluster.fleet import WorkerView

_ANY = "cuda"


def needs_device(wanted: str) -> bool:
    """Whether a task that wants `wanted` (auto, cpu, cuda, cuda:N) is for workers with a CUDA device alone."""
    return wanted.startswith(_ANY)


def fits(device: str, wanted: str) -> bool:
    """Whether a worker with `device` (cpu or cuda:N) may take a task that wants `wanted`."""
    return not needs_device(wanted) or wanted == device or (wanted == _ANY and needs_device(device))


class Places:
    """Those that are known; a device stays known when its worker goes."""

    def __init__(self) -> None:
        self._devices: dict[str, dict[str, str]] = {}  # node -> device -> place
        self._nodes: dict[str, str] = {}  # place of a device -> node
        self._stand_ins: dict[str, WorkerView] = {}

    def add(self, node: str, device: str) -> bool:
        """A worker joined. Whether its place was not known, so that tasks which lie on its node have to be parked anew."""
        if not needs_device(device) or device in self._devices.get(node, {}):
            return False
        place = self._devices.setdefault(node, {})[device] = _name(node, device)
        self._nodes[place] = node
        return True

    def of_worker(self, node: str, device: str) -> str:
        """The place of a worker."""
        return _name(node, device) if needs_device(device) else node

    def node_of(self, place: str) -> str:
        """The node where it is."""
        return self._nodes.get(place, place)

    def nodes_of(self, places: Iterable[str]) -> frozenset[str]:
        """The nodes where they are."""
        return frozenset(map(self.node_of, places))

    def of(self, nodes: frozenset[str], wanted: str) -> frozenset[str]:
        """The places on `nodes` for a task that wants `wanted`. A node that has none counts as one that takes no tasks."""
        if not self._devices and not needs_device(wanted):
            return nodes
        if not needs_device(wanted):
            return nodes.union(*(self._devices.get(node, {}).values() for node in nodes))
        return frozenset(place for node in nodes for place in self._fitting(node, wanted))

    def _fitting(self, node: str, wanted: str) -> list[str]:
        there = [place for device, place in self._devices.get(node, {}).items() if fits(device, wanted)]
        if not there:
            place = _name(node, wanted)
            self._nodes[place] = node
            return [place]
        return there

    def live(self, nodes: Collection[str]) -> Collection[str]:
        """All places of live `nodes`."""
        if not self._nodes:
            return nodes
        return {*nodes, *(place for place, node in self._nodes.items() if node in nodes)}

    def stand_ins(self, nodes: Set[str], taken: Set[str]) -> Iterator[WorkerView]:
        """For places of devices on live `nodes` that are not among the `taken`, having no worker: their chunks are served all the same."""
        for place, node in self._nodes.items():
            if node in nodes and place not in taken:
                if place not in self._stand_ins:
                    self._stand_ins[place] = WorkerView(place, place, 0, 0, stands_in=True)
                yield self._stand_ins[place]


def _name(node: str, device: str) -> str:
    return f"{node} {device}"
