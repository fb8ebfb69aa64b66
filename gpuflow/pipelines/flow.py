"""What one array of an output is computed from: reads of arrays of the source, and operations over what came before.

Pure. A part of the result is computed from the parts of the source's arrays that `pulls` names, however these are cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gpuflow.steps.around import around, span_around, span_widened, widened
from gpuflow.steps.base import ArraySpec, Join, Region, Request, Step
from gpuflow.steps.spans import Spans


@dataclass(frozen=True, slots=True)
class Read:
    """An array of the source."""

    path: str


@dataclass(frozen=True, slots=True)
class Apply:
    """An operation over the results of the nodes `of`. name: of what comes out."""

    operation: Step | Join
    of: tuple[int, ...]
    name: str


Node = Read | Apply


@dataclass(frozen=True)
class Flow:
    """nodes: each after those that it needs; the last one is the result."""

    nodes: tuple[Node, ...]

    @classmethod
    def chain(cls, path: str, steps: Sequence[Step] = ()) -> Flow:
        """`steps` over the array at `path`, one after the other."""
        return cls((Read(path), *(Apply(step, (number,), path) for number, step in enumerate(steps))))

    @classmethod
    def joined(cls, join: Join, name: str, flows: Sequence[Flow]) -> Flow:
        """`join` over the results of `flows`; what these have in common is computed once."""
        nodes: list[Node] = []
        ends = []
        for flow in flows:
            moved: list[int] = []
            for node in flow.nodes:
                node = replace(node, of=tuple(moved[number] for number in node.of)) if isinstance(node, Apply) else node
                if node not in nodes:
                    nodes.append(node)
                moved.append(nodes.index(node))
            ends.append(moved[-1])
        return cls((*nodes, Apply(join, tuple(ends), name)))

    def then(self, step: Step) -> Flow:
        """`step` over the result."""
        return Flow((*self.nodes, Apply(step, (len(self.nodes) - 1,), self.name)))

    @property
    def name(self) -> str:
        """Of the result."""
        last = self.nodes[-1]
        return last.path if isinstance(last, Read) else last.name

    @property
    def paths(self) -> tuple[str, ...]:
        """Arrays of the source that are read."""
        return tuple(node.path for node in self.nodes if isinstance(node, Read))

    @property
    def steps(self) -> tuple[Step, ...] | None:
        """The steps when it is one array's way through steps alone; None when arrays are joined."""
        steps = [node.operation for node in self.nodes if isinstance(node, Apply)]
        return None if len(self.paths) > 1 else tuple(step for step in steps if isinstance(step, Step))

    @property
    def is_chunkwise(self) -> bool:
        """Whether each part of the result is computed from the same part of one array."""
        return self.steps is not None and all(isinstance(node, Read) or node.operation.chunkwise for node in self.nodes)

    def specs(self, sources: Mapping[str, ArraySpec]) -> tuple[ArraySpec, ...]:
        """What comes out of each node. sources: the arrays that are read."""
        found: list[ArraySpec] = []
        for node in self.nodes:
            if isinstance(node, Read):
                found.append(sources[node.path])
            elif isinstance(node.operation, Step):
                found.append(node.operation.check(found[node.of[0]]))
            else:
                found.append(node.operation.check(node.name, [found[number] for number in node.of]))
        return tuple(found)

    def pulls(self, specs: Sequence[ArraySpec], region: Region) -> dict[str, Region]:
        """By array that is read, the smallest box with all of it that the part `region` of the result is computed from. It may go around:
        see steps/around.py."""
        wanted = self.wanted(specs, region)
        return {node.path: wanted[number] for number, node in enumerate(self.nodes) if isinstance(node, Read)}

    def wanted(self, specs: Sequence[ArraySpec], region: Region) -> dict[int, Region]:
        """The same for every node."""
        wanted: dict[int, Region] = {len(self.nodes) - 1: region}
        for number in range(len(self.nodes) - 1, -1, -1):
            node = self.nodes[number]
            if isinstance(node, Apply) and number in wanted:
                asked = wanted[number] if node.operation.takes_around else widened(wanted[number], specs[number].shape)
                for below, part in zip(node.of, pull(node, specs, asked), strict=True):
                    wanted[below] = _hull(wanted.get(below, part), part, specs[below].shape)
        return wanted

    def spans(self, specs: Sequence[ArraySpec], spans: Spans) -> dict[str, Spans | None]:
        """`pulls` of many parts of the result at once, none of them empty; None for an array of which none needs anything.

        Coupled when they must be asked for one by one along an axis, Inseparable when along all of them."""
        wanted: dict[int, Spans | None] = {len(self.nodes) - 1: spans}
        for number in range(len(self.nodes) - 1, -1, -1):
            node = self.nodes[number]
            if isinstance(node, Apply) and number in wanted:
                asked = wanted[number]
                if asked is not None and not node.operation.takes_around:
                    asked = tuple(span_widened(span, size) for span, size in zip(asked, specs[number].shape, strict=True))
                for below, part in zip(node.of, _pull_all(node, specs, asked), strict=True):
                    wanted[below] = _hulls(wanted.get(below), part, specs[below].shape)
        return {node.path: wanted[number] for number, node in enumerate(self.nodes) if isinstance(node, Read)}

    def cut(self, specs: Sequence[ArraySpec], chunks: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
        """Into what chunks the result is best cut. chunks: those of the arrays that are read."""
        found: list[tuple[int, ...]] = []
        for node in self.nodes:
            if isinstance(node, Read):
                found.append(chunks[node.path])
            elif isinstance(node.operation, Step):
                found.append(node.operation.cut(specs[node.of[0]], found[node.of[0]]))
            else:
                below = [found[number] for number in node.of]
                found.append(node.operation.cut(node.name, [specs[number] for number in node.of], below))
        return found[-1]

    def first_unresolved(self, specs: Sequence[ArraySpec]) -> tuple[int, Request] | None:
        """The first node that waits for statistics of what comes into it, and what it asks for."""
        for number, node in enumerate(self.nodes):
            step = node.operation if isinstance(node, Apply) else None
            if isinstance(step, Step) and (request := step.needs(specs[node.of[0]])) is not None:  # type: ignore[union-attr]
                return number, request
        return None

    def before(self, number: int) -> Flow:
        """What goes into the step at node `number`."""
        node = self.nodes[number]
        assert isinstance(node, Apply), node
        needed = {node.of[0]}
        for below in range(node.of[0], -1, -1):
            one = self.nodes[below]
            if below in needed and isinstance(one, Apply):
                needed.update(one.of)
        kept = sorted(needed)
        moved = {old: new for new, old in enumerate(kept)}
        nodes = [self.nodes[old] for old in kept]
        return Flow(
            tuple(replace(one, of=tuple(moved[old] for old in one.of)) if isinstance(one, Apply) else one for one in nodes)
        )

    def with_step(self, number: int, step: Step) -> Flow:
        """With `step` at node `number`."""
        node = self.nodes[number]
        assert isinstance(node, Apply), node
        return Flow((*self.nodes[:number], replace(node, operation=step), *self.nodes[number + 1 :]))

    @property
    def applied(self) -> tuple[Step | Join, ...]:
        """What is done, in order."""
        return tuple(node.operation for node in self.nodes if isinstance(node, Apply))

    def operations(self) -> list[dict[str, Any]]:
        """The same as it stands in the YAML."""
        return [{operation.kind: operation.to_yaml_value()} for operation in self.applied]

    def to_data(self) -> list[Any]:
        """Plain data, for fingerprints."""
        return [
            node.path
            if isinstance(node, Read)
            else [list(node.of), node.name, node.operation.kind, node.operation.version, node.operation.to_record_value()]
            for node in self.nodes
        ]


def pull(node: Apply, specs: Sequence[ArraySpec], region: Region) -> tuple[Region, ...]:
    """The part of each node below that the part `region` of `node` is computed from; nothing for nothing."""
    if is_empty(region):
        return tuple((slice(0, 0),) * len(specs[number].shape) for number in node.of)
    if isinstance(node.operation, Step):
        return (node.operation.pull(specs[node.of[0]], region),)
    return node.operation.pull(node.name, [specs[number] for number in node.of], region)


def _pull_all(node: Apply, specs: Sequence[ArraySpec], spans: Spans | None) -> tuple[Spans | None, ...]:
    """`pull` of many parts at once; nothing for nothing."""
    if spans is None:
        return (None,) * len(node.of)
    if isinstance(node.operation, Step):
        return (node.operation.pull_all(specs[node.of[0]], spans),)
    return node.operation.pull_all(node.name, [specs[number] for number in node.of], spans)


def _hulls(one: Spans | None, other: Spans | None, shape: tuple[int, ...]) -> Spans | None:
    """`_hull` of many."""
    if one is None or other is None:
        return other if one is None else one
    both = (a.around(b) for a, b in zip(one, other, strict=True))
    return tuple(span_around(span.axis, span.starts, span.stops, size) for span, size in zip(both, shape, strict=True))


def is_empty(region: Region) -> bool:
    """Whether nothing lies in it."""
    return any(axis.start >= axis.stop for axis in region)


def _hull(one: Region, other: Region, shape: tuple[int, ...]) -> Region:
    """The smallest box around both, as they go around; one that is empty adds nothing."""
    if is_empty(one) or is_empty(other):
        return other if is_empty(one) else one
    axes = zip(one, other, shape, strict=True)
    return tuple(around(min(a.start, b.start), max(a.stop, b.stop), size) for a, b, size in axes)
