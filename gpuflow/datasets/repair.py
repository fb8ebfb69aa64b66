"""The difference between the copies that there should be and those that there are.

Pure. Nodes are chosen by weighted rendezvous hashing on the chunk's number: a node gets copies in proportion to its free space, one more
node moves few of them, and arrays of one grid have theirs together."""

from __future__ import annotations

from collections.abc import Mapping, Set

import numpy as np
from numpy.typing import NDArray

from gpuflow.datasets.catalog import ChunkTable
from gpuflow.datasets.placement import weights
from gpuflow.errors import ClusterError


def copies_to_make(
    table: ChunkTable, wanted: int, free_nbytes: Mapping[str, int], leaving: Set[str] = frozenset()
) -> dict[str, list[int]]:
    """Chunks that each node is to get, so that every chunk that is somewhere has `wanted` copies on nodes that stay.

    free_nbytes: by node that can take copies. ClusterError when there are not so many nodes."""
    staying = sorted(set(free_nbytes) - leaving)
    if wanted > len(staying):
        leave = f" without {', '.join(sorted(leaving))}" if leaving else ""
        raise ClusterError(
            f"{wanted} copies need as many nodes, the cluster has {len(staying)}{leave}", "start more, or ask for fewer"
        )
    order = _preference(len(table.rows), {node: free_nbytes[node] for node in staying})
    found: dict[str, list[int]] = {node: [] for node in staying}
    for number in np.unique(table.holders[table.present]).tolist():
        holders = table.sets[number]
        lacking = wanted - len(holders - leaving)
        if lacking <= 0:
            continue
        chunks = np.flatnonzero(table.holders == number)
        ranked = order[chunks]
        open_to = np.array([node not in holders for node in staying])
        # The first `lacking` nodes of each chunk's order that do not hold it.
        eligible = open_to[ranked]
        chosen = ranked[eligible].reshape(len(chunks), -1)[:, :lacking]
        for column in chosen.T:
            for place, node in enumerate(staying):
                found[node] += chunks[column == place].tolist()
    return {node: sorted(chunks) for node, chunks in found.items() if chunks}


def _preference(count: int, free_nbytes: Mapping[str, int]) -> NDArray[np.intp]:
    """(chunks, nodes): numbers of the nodes, in the order in which a chunk would have them (Schindelhauer and Schomaker 2005)."""
    uniform = (weights(count, list(free_nbytes)).astype(np.float64) + 0.5) / 2.0**64
    room = np.maximum(np.array(list(free_nbytes.values()), np.float64), 1.0)
    return np.argsort(-room / -np.log(uniform), axis=1, kind="stable")
