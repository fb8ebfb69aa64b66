"""A cluster as the scheduler plugin sees it at one moment, for who looks. Of a million chunks it takes some ten milliseconds once they
have changed, and nothing while they have not."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from gpuflow.cluster.figures import Held, census
from gpuflow.cluster.inventory import ArrayName
from gpuflow.cluster.places import needs_device

if TYPE_CHECKING:
    from gpuflow.cluster.scheduler_plugin import GpuflowPlugin


@dataclass(frozen=True, slots=True)
class NodeFigures:
    """Of a live node. parked: tasks that wait and are local to it, and maybe to others; running: those that its workers have; devices: what
    its workers for CUDA have, a name each."""

    name: str
    workers: int
    threads: int
    held: Held
    parked: int
    running: int
    devices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Observed:
    """nodes: by name. arrays: known chunks by array. away: chunks that no live node has."""

    nodes: tuple[NodeFigures, ...]
    arrays: dict[ArrayName, int]
    away: int

    @classmethod
    def of(cls, plugin: GpuflowPlugin) -> Observed:
        """As it is now."""
        held, away, arrays = _counted(plugin)
        queued, states = _parked(plugin), plugin.scheduler.workers
        nodes = []
        for name, addresses in sorted(plugin.members.workers_of.items()):
            there = [states[address] for address in addresses if address in states]
            running = sum(len(worker.processing) for worker in there)
            threads = sum(worker.nthreads for worker in there)
            infos = (plugin.members.nodes[address] for address in sorted(addresses))
            devices = tuple(f"{info.device} {info.device_name}" for info in infos if needs_device(info.device))
            nodes.append(NodeFigures(name, len(there), threads, held.get(name, Held()), queued[name], running, devices))
        return cls(tuple(nodes), arrays, away)


def _parked(plugin: GpuflowPlugin) -> Counter[str]:
    """By node: of a task that is local to several places of it, the one where most wait."""
    found = Counter[str]()
    for place, count in plugin.router.queued().items():
        node = plugin.places.node_of(place)
        found[node] = max(found[node], count)
    return found


_Counted = tuple[dict[str, Held], int, dict[ArrayName, int]]
_known: WeakKeyDictionary[GpuflowPlugin, tuple[tuple[int, frozenset[str]], _Counted]] = WeakKeyDictionary()


def _counted(plugin: GpuflowPlugin) -> _Counted:
    """What takes time, counted anew after a change."""
    state = plugin.inventory.changes, frozenset(plugin.members.workers_of)
    known = _known.get(plugin)
    if known is None or known[0] != state:
        counts = plugin.inventory.counts()
        held, away = census(counts.values(), state[1])
        arrays = {array: sum(sets.values()) for array, sets in counts.items()}
        known = _known[plugin] = state, (held, away, arrays)
    return known[1]
