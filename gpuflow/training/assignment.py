"""Which rank takes which samples of a global batch: where they lie, under equal counts.

Pure and deterministic: every rank computes the same from the same homes. The most samples that can be local are (a maximum flow over sets
of holders and nodes, both few); the others go where there is room. Within a node a sample goes to the same rank every time as far as the
counts allow, so that it is found in that rank's cache."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from gpuflow.training.keyed import mixed

Holders = frozenset[str]
"""Nodes that hold a sample."""
Flow = dict[Holders, Counter[str]]
"""How many samples of each set of holders go to each node."""

_AFFINITY = 0x5EED


def counts_of(samples: int, ranks: int) -> list[int]:
    """How many of a batch each rank gets: equal, or one more for the first ones."""
    share, extra = divmod(samples, ranks)
    return [share + (rank < extra) for rank in range(ranks)]


def assign(samples: NDArray[np.int64], homes: Sequence[Holders], ranks: Sequence[str]) -> list[list[int]]:
    """For each rank, which of `samples` are its own: places in the batch, ascending. homes: who holds each; ranks: the node of each."""
    counts = counts_of(len(samples), len(ranks))
    room: Counter[str] = Counter()
    for node, count in zip(ranks, counts, strict=True):
        room[node] += count
    flow = most_local(Counter(homes), room)
    left = room - sum(flow.values(), Counter())
    at: dict[str, list[int]] = {node: [] for node in room}
    for place, home in enumerate(homes):
        shares = flow.get(home, Counter())
        local = min((node for node, count in shares.items() if count), default=None)
        node = min(node for node, count in left.items() if count) if local is None else local
        (left if local is None else shares)[node] -= 1
        at[node].append(place)
    return _to_ranks(samples, at, counts, ranks)


def _to_ranks(
    samples: NDArray[np.int64], at: Mapping[str, Sequence[int]], counts: Sequence[int], ranks: Sequence[str]
) -> list[list[int]]:
    found: list[list[int]] = [[] for _ in ranks]
    for node, places in at.items():
        mine = [rank for rank, name in enumerate(ranks) if name == node]
        wished = mixed(_AFFINITY, samples[np.array(places, np.int64)]) % np.uint64(len(mine))
        homeless = []
        for place, wish in zip(places, wished.tolist(), strict=True):
            rank = mine[wish]
            if len(found[rank]) < counts[rank]:
                found[rank].append(place)
            else:
                homeless.append(place)
        for rank in mine:
            lacking = counts[rank] - len(found[rank])
            found[rank] = sorted(found[rank] + homeless[:lacking])
            del homeless[:lacking]
    return found


def most_local(supply: Mapping[Holders, int], room: Mapping[str, int]) -> Flow:
    """Samples to nodes that hold them, as many as fit (Edmonds and Karp 1972)."""
    groups = sorted(supply, key=lambda group: (len(group), sorted(group)))
    flow: Flow = {group: Counter() for group in groups}
    free = Counter(room)
    for group in groups:  # what a group finds at once needs no search
        left = supply[group]
        for node in sorted(group & free.keys(), key=lambda node: (-free[node], node)):
            flow[group][node] = min(left, free[node])
            free[node] -= flow[group][node]
            left -= flow[group][node]
    for group in groups:
        while (left := supply[group] - flow[group].total()) and (path := _way(group, flow, free)):
            _push(path, left, flow, free)
    return flow


def _way(group: Holders, flow: Flow, free: Mapping[str, int]) -> list[tuple[Holders, str]]:
    """The shortest chain of (group, node it goes to) that ends where there is room; each next group gives way on the node before."""
    queue = deque([[(group, node)] for node in sorted(group & free.keys())])
    seen = {path[0][1] for path in queue}
    while queue:
        path = queue.popleft()
        here = path[-1][1]
        if free[here]:
            return path
        for other, shares in flow.items():
            if shares[here]:
                for node in sorted((other & free.keys()) - seen):
                    seen.add(node)
                    queue.append([*path, (other, node)])
    return []


def _push(path: Sequence[tuple[Holders, str]], left: int, flow: Flow, free: Counter[str]) -> None:
    given = zip(path[1:], path[:-1], strict=True)
    amount = min([left, free[path[-1][1]], *(flow[group][before] for (group, _), (_, before) in given)])
    for (group, node), before in zip(path, [None, *(node for _, node in path[:-1])], strict=True):
        flow[group][node] += amount
        if before is not None:
            flow[group][before] -= amount
    free[path[-1][1]] -= amount
