"""The difference between the copies that there should be and those that there are.

Pure. Nodes are chosen by weighted rendezvous hashing on the chunk's number: a node gets copies in proportion to its free space, one more
node moves few of them, and arrays of one grid have theirs together. Racks that have no copy of a chunk come first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from gpuflow.datasets.catalog import ChunkTable
from gpuflow.datasets.placement import weights
from gpuflow.errors import ClusterError

Racks = Mapping[str, str]
"""Of nodes that say theirs; any other is a rack of its own."""
NO_RACKS: Racks = MappingProxyType({})


def copies_to_make(
    table: ChunkTable, wanted: int, free_nbytes: Mapping[str, int], leaving: Set[str] = frozenset(), racks: Racks = NO_RACKS
) -> dict[str, list[int]]:
    """Chunks that each node is to get, so that every chunk that is somewhere has `wanted` copies on nodes that stay.

    free_nbytes: by node that can take copies. ClusterError when there are not so many nodes."""
    staying = sorted(set(free_nbytes) - leaving)
    if wanted > len(staying):
        leave = f" without {', '.join(sorted(leaving))}" if leaving else ""
        raise ClusterError(
            f"{wanted} copies need as many nodes, the cluster has {len(staying)}{leave}", "start more, or ask for fewer"
        )
    ranks = ranks_of(len(table.rows), {node: free_nbytes[node] for node in staying})
    found: dict[str, list[int]] = {node: [] for node in staying}
    for number in np.unique(table.holders[table.present]).tolist():
        holders = table.sets[number]
        lacking = wanted - len(holders - leaving)
        if lacking <= 0:
            continue
        chunks = np.flatnonzero(table.holders == number)
        open_to = [node not in holders for node in staying]
        chosen = choose(ranks[chunks], staying, open_to, lacking, racks, holders - leaving)
        for place, node in enumerate(staying):
            found[node] += chunks[chosen[:, place]].tolist()
    return {node: sorted(chunks) for node, chunks in found.items() if chunks}


def copies_to_drop(table: ChunkTable, most: int, free_nbytes: Mapping[str, int], racks: Racks = NO_RACKS) -> dict[str, list[int]]:
    """Chunks that each node holds beyond `most` copies, of which those stay that `copies_to_make` would have made first."""
    nodes = sorted(set(table.nodes) & set(free_nbytes))
    ranks = ranks_of(len(table.rows), {node: free_nbytes[node] for node in nodes})
    found: dict[str, list[int]] = {node: [] for node in nodes}
    for number in np.unique(table.holders[table.present]).tolist():
        holders = table.sets[number]
        if len(holders) <= max(1, most):
            continue
        chunks = np.flatnonzero(table.holders == number)
        stays = choose(ranks[chunks], nodes, [node in holders for node in nodes], max(1, most), racks)
        for place, node in enumerate(nodes):
            if node in holders:
                found[node] += chunks[~stays[:, place]].tolist()
    return {node: sorted(chunks) for node, chunks in found.items() if chunks}


def choose(
    ranks: NDArray[np.intp],
    nodes: Sequence[str],
    eligible: Sequence[bool],
    count: int,
    racks: Racks,
    beside: Set[str] = frozenset(),
) -> NDArray[np.bool_]:
    """(chunks, nodes): `count` of the eligible nodes for each chunk: first those on racks that have none of it, in the chunk's own order.

    ranks: see ranks_of. beside: nodes that have it already."""
    names, racks_of = np.unique([rack_of(node, racks) for node in nodes], return_inverse=True)
    used = np.tile(np.isin(names, [rack_of(node, racks) for node in beside]), (len(ranks), 1))
    taken = np.tile(~np.array(eligible, bool), (len(ranks), 1))
    chosen, rows = np.zeros(ranks.shape, bool), np.arange(len(ranks))
    for _ in range(count):
        best = np.argmin(ranks + len(nodes) * used[:, racks_of] + 2 * len(nodes) * taken, axis=1)
        chosen[rows, best] = taken[rows, best] = True
        used[rows, racks_of[best]] = True
    return chosen


def rack_of(node: str, racks: Racks) -> str:
    """The rack's name, which no node has."""
    return f"rack {racks[node]}" if racks.get(node) else f"node {node}"


def ranks_of(count: int, room: Mapping[str, int]) -> NDArray[np.intp]:
    """(chunks, nodes): the place of each node in the order in which a chunk would have them (Schindelhauer and Schomaker 2005)."""
    uniform = (weights(count, list(room)).astype(np.float64) + 0.5) / 2.0**64
    wide = np.maximum(np.array(list(room.values()), np.float64), 1.0)
    order = np.argsort(-wide / -np.log(uniform), axis=1, kind="stable")
    return np.argsort(order, axis=1, kind="stable")
