"""Statistics of arrays that grow: what the chunks that stay have come to is kept, and what is new is merged in.

Kept are the nodes of the merge tree that cover the chunks which no growth changes, each with a digest of what it is of. A node whose chunks
have changed, or their weights, is not taken. The tree is the same one, so that the result has the bits of a pass over everything."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from gpuflow.datasets.growth import settled
from gpuflow.grid import Grid
from gpuflow.pipelines.fingerprint import fingerprint
from gpuflow.pipelines.flow import Flow
from gpuflow.reductions.requests import Request, unweighted
from gpuflow.reductions.tree import Node
from gpuflow.reductions.weighted import Weights

_MOST_NBYTES = 2**20
"""Of what is kept for one statistic: it stands in the dataset's record, which every node has."""


@dataclass(frozen=True)
class Partials:
    """Of one statistic. key: under what it is kept; tokens: (chunks,) V16, digests of what each chunk is.

    nodes: those that still hold. superseded: keys of statistics that were computed when the array was shorter."""

    key: str
    grid: Grid
    request: Request
    tokens: NDArray[Any]
    nodes: Mapping[Node, Any] = field(default_factory=dict)
    superseded: tuple[str, ...] = ()

    @classmethod
    def found(
        cls, statistics: Mapping[str, Any], flow: Flow, grid: Grid, request: Request, tokens: NDArray[Any], before: Any
    ) -> Partials:
        """What `statistics` has. before: the steps whose result they are of, as plain data."""
        asked: dict[str, Any] = {"partials": [request.kind, unweighted(request).key()]}
        if request.weights is not None:  # their values are in the tokens: along what grows there are more of them
            asked["weights"] = [request.weights.text, list(request.weights.axes)]
            tokens = _weighted(tokens, grid, request.weights)
        key = fingerprint({**asked, "flow": flow.to_data(), "before": before})
        entry, empty = statistics.get(key, {}), cls(key, grid, request, tokens)
        nodes = {}
        for level, position, digest, data in entry.get("nodes", ()):
            node = level, position
            if _span(node)[1] <= grid.size and digest == empty.digest(node):
                nodes[node] = _placed(request, data, empty.kept_shape)
        superseded = tuple(entry.get("latest", ())) if nodes or entry.get("size", 0) < grid.size else ()
        return cls(key, grid, request, tokens, nodes, superseded)

    @property
    def kept_shape(self) -> tuple[int, ...]:
        """Of the axes whose indices are on their own."""
        return tuple(self.grid.shape[axis] for axis in self.request.keep)

    def digest(self, node: Node) -> str:
        """Of what a node of the tree is of."""
        first, last = _span(node)
        return xxhash.xxh3_128_hexdigest(self.tokens[first:last].tobytes())

    def covered(self) -> set[int]:
        """Chunks that need not be read."""
        return {chunk for node in self.nodes for chunk in range(*_span(node))}

    def entry(self, nodes: Mapping[Node, Any], latest: Sequence[str]) -> dict[str, Any]:
        """What is to be kept, by key: of `nodes`, those before the end. Nothing where that is too much. latest: see `superseded`."""
        rows = [[*node, self.digest(node), value.to_dict()] for node, value in sorted(nodes.items()) if self._stays(node)]
        entry = {"nodes": rows, "latest": list(latest), "size": self.grid.size}
        return {self.key: entry} if rows and len(json.dumps(entry)) <= _MOST_NBYTES else {}

    def _stays(self, node: Node) -> bool:
        return _span(node)[1] <= settled(self.grid)


def _span(node: Node) -> tuple[int, int]:
    """Chunks from the first, up to but without the last, that a node covers if all of them are there."""
    level, position = node
    return position << level, (position + 1) << level


def _weighted(tokens: NDArray[Any], grid: Grid, weights: Weights) -> NDArray[Any]:
    """Digests of each chunk and of the weights of its values."""
    known: dict[tuple[int, ...], bytes] = {}
    found = bytearray()
    for chunk, token in enumerate(tokens):
        region = grid.region(chunk)
        place = tuple(region[axis].start for axis in weights.axes)
        if place not in known:
            known[place] = weights.at(region).tobytes()
        found += xxhash.xxh3_128_digest(token.tobytes() + known[place])
    return np.frombuffer(bytes(found), "V16")


def _placed(request: Request, data: Mapping[str, Any], shape: tuple[int, ...]) -> Any:
    """A reduction that was kept, in the kept axes as long as they are now."""
    shape_then = data["shape"] if "shape" in data else data["parts"][0]["shape"]
    value, kept = request.read(data), tuple(shape_then[: len(shape)])
    return value if kept == shape else value.embed(shape, tuple(slice(0, size) for size in kept))
