"""Merge per-chunk values in one fixed order, however the chunks were grouped.

Floating-point merging is not associative, so the order is part of the result. It is a binary tree over linear chunk indices:
chunk `p` is node `(0, p)`, node `(l, p)` has the parent `(l + 1, p // 2)`. A worker collapses what it holds as far as the tree
allows; whoever unites the pieces ends with the same bits. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

T = TypeVar("T")
Node = tuple[int, int]


def collapse(leaves: Mapping[Node, T], size: int, merge: Callable[[T, T], T], whole: int = 0) -> dict[Node, T]:
    """Merge every sibling pair that is present, repeatedly. leaves: values by (level, position) in a tree over `size` chunks.

    A node whose right sibling lies beyond `size` is promoted unchanged. Nodes over the first `whole` chunks are merged with each other
    only, and none of them is promoted: they are the same in a tree over more chunks. ValueError for a node outside the tree or one that
    is covered twice."""
    levels: dict[int, dict[int, T]] = {}
    for (level, position), value in leaves.items():
        if not (0 <= level <= _height(size) and 0 <= position < _width(size, level)):
            raise ValueError(f"node {(level, position)} is outside a tree over {size} chunks")
        levels.setdefault(level, {})[position] = value
    done: dict[Node, T] = {}
    for level in range(_height(size)):
        here, above = levels.get(level, {}), levels.setdefault(level + 1, {})
        for position, value in here.items():
            left, right = position & ~1, position | 1
            together = left in here and (right in here or right >= _width(size, level))
            if not together or left << level < whole < (right + 1) << level:
                done[level, position] = value
            elif position == left:
                if left // 2 in above:
                    raise ValueError(f"node {(level + 1, left // 2)} and its children are both there: chunks are counted twice")
                above[left // 2] = merge(value, here[right]) if right in here else value
    done.update({(_height(size), position): value for position, value in levels.get(_height(size), {}).items()})
    return done


def root(nodes: Mapping[Node, T], size: int, merge: Callable[[T, T], T]) -> T:
    """The one value of the whole tree. ValueError when nodes are missing, doubled, or when there are no chunks."""
    top = (_height(size), 0)
    collapsed = collapse(nodes, size, merge)
    if top not in collapsed:
        present = ", ".join(map(str, sorted(collapsed)[:4])) or "none"
        raise ValueError(f"a tree over {size} chunks is incomplete; nodes that could not be merged: {present}")
    if len(collapsed) > 1:
        raise ValueError(f"a tree over {size} chunks has nodes besides its root: chunks are counted twice")
    return collapsed[top]


def _width(size: int, level: int) -> int:
    """Number of nodes at `level`."""
    return -(-size // (1 << level))


def _height(size: int) -> int:
    """The level of the root."""
    return max(size - 1, 0).bit_length()
