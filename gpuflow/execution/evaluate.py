"""A part of a flow's result, from the parts of the source's arrays that it pulls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from gpuflow.backends.select import Backend
from gpuflow.pipelines.flow import Apply, Flow, Read, is_empty, pull
from gpuflow.steps.around import goes_around, pieces, seen_from
from gpuflow.steps.base import ArraySpec, Elementwise, Region, Step
from gpuflow.steps.fuse import compile_steps
from gpuflow.storage.codecs import Block

Boxes = Mapping[str, tuple[Region, Block]]
"""By array of the source: the part of it that is there."""
Place = Callable[[tuple[int, ...], np.dtype[Any]], Block]
"""Memory for a block of this shape and dtype."""


class Evaluation:
    """`flow` over arrays with the specs that it has at each node. Neighbouring elementwise steps run as one pass."""

    def __init__(self, flow: Flow, specs: Sequence[ArraySpec], backend: Backend, device: str = "cpu") -> None:
        self._flow, self._specs, self._backend, self._device = flow, specs, backend, device

    def __call__(self, boxes: Boxes, region: Region, place: Place) -> Block:
        """The part `region` of the result. place: where it goes, unless it is one of the boxes as it is."""
        return self._node(len(self._flow.nodes) - 1, region, boxes, place)

    def _node(self, number: int, region: Region, boxes: Boxes, place: Place | None) -> Block:
        node = self._flow.nodes[number]
        spec = self._specs[number]
        if is_empty(region):
            return np.empty([axis.stop - axis.start for axis in region], spec.dtype)
        inside = seen_from(boxes[node.path][0], region, spec.shape) if isinstance(node, Read) else None
        if isinstance(node, Read) and inside is not None:
            return boxes[node.path][1][inside]
        if goes_around(region, spec.shape):
            return self._joined(number, region, boxes)
        assert isinstance(node, Apply), (node, region)
        steps = list[Step]()
        below, spec_number = node, number
        while isinstance(below, Apply) and isinstance(below.operation, Elementwise):
            steps.append(below.operation)
            spec_number = below.of[0]
            below = self._flow.nodes[spec_number]  # type: ignore[assignment]
        if steps:
            kernel = compile_steps(tuple(reversed(steps)), self._specs[spec_number], self._backend, self._device)
            block = self._node(spec_number, region, boxes, None)
            return kernel(block, region, place(block.shape, kernel.out_dtype) if place is not None else None)
        return self._apply(node, region, boxes)

    def _joined(self, number: int, region: Region, boxes: Boxes) -> Block:
        """A part that goes around, from its ends."""
        out = np.empty([axis.stop - axis.start for axis in region], self._specs[number].dtype)
        for box, place in pieces(region, self._specs[number].shape):
            out[place] = self._node(number, box, boxes, None)
        return out

    def _apply(self, node: Apply, region: Region, boxes: Boxes) -> Block:
        specs = [self._specs[number] for number in node.of]
        parts = pull(node, self._specs, region)
        blocks = [self._node(number, part, boxes, None) for number, part in zip(node.of, parts, strict=True)]
        if isinstance(node.operation, Step):
            return np.asarray(node.operation.compute(np, blocks[0], specs[0], region))
        return np.asarray(node.operation.compute(np, node.name, blocks, specs, region))
