"""Which chunks move to where, so that nodes hold shares that fit their disks.

Pure. As few as may be: only nodes that hold more than their share give, and only those that hold less get. When nothing has changed since,
nothing moves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from gpuflow.datasets.catalog import ChunkTable
from gpuflow.datasets.repair import NO_RACKS, Racks, rack_of, ranks_of


@dataclass(frozen=True, slots=True)
class Move:
    """Chunks, ascending, that are to be on `target` and not on `source` any more."""

    source: str
    target: str
    chunks: tuple[int, ...]


def moves(table: ChunkTable, disk_nbytes: Mapping[str, int], racks: Racks = NO_RACKS) -> list[Move]:
    """disk_nbytes: of every node's disk. No chunk comes to fewer racks than it is on."""
    nodes = sorted(disk_nbytes)
    held = {node: table.chunks_by_node().get(node, 0) for node in nodes}
    share = shares(sum(held.values()), int(table.present.sum()), disk_nbytes)
    ranks, moved, found = (
        ranks_of(len(table.rows), {node: disk_nbytes[node] for node in nodes}),
        np.zeros(len(table.rows), bool),
        [],
    )
    for source in sorted(nodes, key=lambda node: (share[node] - held[node], node)):
        for place, target in enumerate(nodes):
            count = min(held[source] - share[source], share[target] - held[target])
            if count <= 0:
                continue
            open_to = [n for n in np.unique(table.holders).tolist() if _may_move(table.sets[n], source, target, racks)]
            chunks = np.flatnonzero(np.isin(table.holders, open_to) & ~moved)
            chosen = np.sort(chunks[np.argsort(ranks[chunks, place], kind="stable")][:count])
            if len(chosen):
                moved[chosen] = True
                held[source], held[target] = held[source] - len(chosen), held[target] + len(chosen)
                found.append(Move(source, target, tuple(chosen.tolist())))
    return found


def _may_move(holders: frozenset[str], source: str, target: str, racks: Racks) -> bool:
    if source not in holders or target in holders:
        return False
    after = holders - {source} | {target}
    return len({rack_of(node, racks) for node in after}) >= len({rack_of(node, racks) for node in holders})


def shares(replicas: int, chunks: int, disk_nbytes: Mapping[str, int]) -> dict[str, int]:
    """How many of the replicas each node is to hold: in proportion to its disk, each chunk at most once."""
    open_to, share, left = sorted(disk_nbytes), dict.fromkeys(disk_nbytes, 0), replicas
    while open_to:  # those whose part would be more than every chunk hold all of them, and the others the rest
        whole = sum(disk_nbytes[node] for node in open_to) or 1
        full = [node for node in open_to if left * disk_nbytes[node] >= chunks * whole]
        if not full:
            break
        share.update(dict.fromkeys(full, chunks))
        left, open_to = left - chunks * len(full), [node for node in open_to if node not in full]
    if not open_to:
        return share
    exact = {node: left * disk_nbytes[node] / whole for node in open_to}
    share.update({node: int(exact[node]) for node in open_to})
    rest = left - sum(int(part) for part in exact.values())
    for node in sorted(open_to, key=lambda node: (int(exact[node]) - exact[node], node))[: max(0, rest)]:
        share[node] += 1
    return share
