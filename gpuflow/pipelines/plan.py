"""What a pipeline will do to a dataset, before anything runs.

Pure: from the spec, the source's record and what the nodes hold, to array by array and chunk by chunk actions. Nothing but metadata is
read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuflow.datasets.catalog import ChunkTable
from gpuflow.errors import ConfigError, NameTaken, Problem
from gpuflow.pipelines.compressor import Choice, choose_compressor
from gpuflow.pipelines.fingerprint import cut_shorts, fingerprint, recipes
from gpuflow.pipelines.flow import Apply, Flow
from gpuflow.pipelines.gathers import Gathers, Wanted, plan_gathers
from gpuflow.pipelines.slices import crop_of, ranges
from gpuflow.pipelines.spec import PipelineSpec, ReplicasSpec
from gpuflow.pipelines.stored import cut
from gpuflow.pipelines.table import Tables
from gpuflow.steps.base import ArraySpec, Operation, Request, Step
from gpuflow.steps.registry import find
from gpuflow.storage.manifest import UNKNOWN
from gpuflow.storage.metadata import ArrayMetadata
from gpuflow.storage.placing import written_recipe
from gpuflow.storage.record import DatasetRecord


@dataclass(frozen=True)
class ArrayPlan:
    """One array of the output. sources: the arrays of the source that it is computed from. flow: how; its steps are bound, those that
    need statistics perhaps not yet resolved; a mere read for an array that is carried over, or only stored otherwise."""

    path: str
    sources: Mapping[str, ArrayMetadata]
    target: ArrayMetadata
    flow: Flow

    @classmethod
    def mapped(cls, path: str, source: ArrayMetadata, target: ArrayMetadata, steps: Sequence[Step] = ()) -> ArrayPlan:
        """Of `steps` over the array of the same path."""
        return cls(path, {path: source}, target, Flow.chain(path, steps))

    @property
    def source(self) -> ArrayMetadata:
        """The array of the source that it is computed from, the first one where there are several."""
        return self.sources[self.flow.paths[0]]

    @property
    def steps(self) -> tuple[Step, ...]:
        """All steps on the way, in order, without what joins arrays."""
        return tuple(node.operation for node in self.flow.nodes if isinstance(node, Apply) and isinstance(node.operation, Step))

    @property
    def carried(self) -> bool:
        """Whether the encoded chunks are taken over as they are."""
        return len(self.flow.nodes) == 1 and self.source.document == self.target.document

    @property
    def gathered(self) -> bool:
        """Whether a chunk is computed from others than the one chunk at its place."""
        return not self.flow.is_chunkwise or self.source.grid != self.target.grid

    def made_by(self, level: int | None) -> str:
        """Fingerprint of what makes this array's chunks. level: number of in-place pipelines applied before; None for a new dataset, to
        which the same steps may then be applied in place."""
        codecs = [self.target.document["data_type"], self.target.document["codecs"], list(self.target.grid.chunks)]
        if self.gathered:
            return fingerprint({"flow": self.flow.to_data(), "stored": codecs})
        return fingerprint({**steps_identity(self.steps), "stored": codecs, "level": level})

    @cached_property
    def specs(self) -> tuple[ArraySpec, ...]:
        """What comes out of each node of the flow."""
        return self.flow.specs({path: spec_of(self.sources[path]) for path in self.flow.paths})

    def first_unresolved(self) -> tuple[int, Request] | None:
        """The first node of the flow whose step waits for statistics, and what it asks for."""
        return None if len(self.flow.nodes) == 1 else self.flow.first_unresolved(self.specs)


@dataclass(frozen=True)
class Plan:
    """A checked pipeline over a real dataset. declared: fingerprint of what the user wrote, before statistics fill in parameters.

    level: number of in-place pipelines applied before; None for a new dataset. compressor: what `compressor: auto` came to. left_out:
    arrays that are not carried over, since a dimension of theirs has another size now. fits: what its steps have taken from the source,
    see refit.py; refits: what that means now that the source has grown, in words."""

    spec: PipelineSpec
    source: DatasetRecord
    arrays: tuple[ArrayPlan, ...]
    declared: str
    level: int | None = None
    compressor: Choice | None = None
    left_out: tuple[str, ...] = ()
    fits: Mapping[str, Any] = field(default_factory=dict)
    refits: tuple[str, ...] = ()

    @property
    def target(self) -> str:
        """Name of the dataset that is written."""
        return self.spec.output.dataset or self.source.name

    def fingerprint(self) -> str:
        """Of the whole pipeline as it now stands."""
        return fingerprint([[array.path, array.made_by(self.level)] for array in self.arrays])

    def output_record(self) -> DatasetRecord:
        """The record of the new dataset, at version 1."""
        origin: dict[str, Any] = {"kind": "pipeline", "source": self.source.name, "declared": self.declared}
        origin["pipeline"] = {name: value for name, value in self.spec.to_dict().items() if name not in ("run", "on")}
        origin["pipeline"]["steps"] = steps_as_data(self.spec.steps)
        if self.compressor is not None:
            origin["compressor"] = self.compressor.name
        arrays = {array.path: array.target.document for array in self.arrays}
        replicas = self.spec.output.replicas.policy()
        return DatasetRecord(name=self.target, arrays=arrays, groups=self.source.groups, origin=origin, replicas=replicas)


def spec_of(metadata: ArrayMetadata) -> ArraySpec:
    """What steps see of an array. ConfigError when its dtype is none that NumPy computes with."""
    if metadata.dtype is None:
        name = metadata.document["data_type"]
        raise ConfigError([Problem(f"arrays of data type {name!r} cannot be processed", "source.arrays", hint="select others")])
    return ArraySpec(metadata.shape, metadata.dtype, metadata.dims)


def steps_as_data(steps: Sequence[Operation]) -> list[dict[str, Any]]:
    """Steps as plain data, as records keep them."""
    return [{step.kind: step.to_record_value()} for step in steps]


def _without_habits(step: Operation, data: Mapping[str, Any]) -> dict[str, Any]:
    return {kind: {name: value for name, value in values.items() if name not in step.habits} for kind, values in data.items()}


def steps_identity(steps: Sequence[Operation]) -> dict[str, Any]:
    """What decides whether steps compute the same."""
    versions = [step.version for step in steps]
    return {"steps": steps_as_data(steps)} | ({"versions": versions} if any(version > 1 for version in versions) else {})


def make_plan(spec: PipelineSpec, source: DatasetRecord, *, stack: bool = False, compressor: Choice | None = None) -> Plan:
    """Check `spec` against the source. ConfigError lists every step that does not fit; NameTaken when an in-place pipeline is already
    applied and `stack` does not ask for another on top. compressor: for a spec that leaves it to `auto`."""
    choice = (compressor or choose_compressor({})) if spec.output.compressor == "auto" else None
    name = choice.name if choice else spec.output.compressor
    selected = select(spec, source)
    parts = ranges(source, sorted(selected), spec.source.isel) if spec.source.isel else {}
    planned = _planned(spec, source, selected, name, parts)
    arrays = [planned.pop(path) for path in source.metadata if path in planned] + list(planned.values())
    left_out: tuple[str, ...] = ()
    if not spec.output.in_place:
        others = [path for path in source.metadata if path not in selected]
        carried = {path: _carried(source, path, parts, name) for path in others}
        left_out = tuple(path for path in others if not _fits(carried[path].target, arrays, parts))
        found = {array.path: array for array in arrays} | {path: carried[path] for path in others if path not in left_out}
        arrays = [found.pop(path) for path in source.metadata if path in found] + list(found.values())
    output = spec.output.model_copy(update={"snapshot": None, "replicas": ReplicasSpec()})  # whatever they are, it is the same
    # An edited function makes chunks of its dataset again; in place it would be applied on top of what it was.
    written = steps_as_data(spec.steps) if spec.output.in_place else spec.to_dict()["steps"]
    written = [_without_habits(step, values) for step, values in zip(spec.steps, written, strict=True)]
    of = [sorted(selected), *([{dim: list(part) for dim, part in sorted(parts.items())}] if parts else [])]
    declared = fingerprint([written, *of, output.to_value()])
    plan = Plan(spec, source, tuple(arrays), declared, compressor=choice, left_out=left_out)
    return _stacked(plan, stack) if spec.output.in_place else plan


def select(spec: PipelineSpec, source: DatasetRecord) -> set[str]:
    """Arrays that the steps apply to: those named, else all of two or more dimensions (others are coordinates, labels and the like)."""
    if spec.source.arrays is None:
        selected = {path for path, metadata in source.metadata.items() if len(metadata.shape) > 1} or set(source.arrays)
    else:
        selected = {path for path in source.arrays if spec.source.selects(path)}
        unmatched = [pattern for pattern in spec.source.arrays if not any(fnmatchcase(path, pattern) for path in source.arrays)]
        if unmatched:
            known = ", ".join(sorted(source.arrays))
            raise ConfigError(
                [Problem(f"{source.name!r} has no array {name!r}", "source.arrays", hint=f"it has {known}") for name in unmatched]
            )
    if not selected:
        raise ConfigError([Problem(f"dataset {source.name!r} has no arrays", "source")])
    return selected


def _carried(source: DatasetRecord, path: str, parts: Mapping[str, tuple[int, int]], compressor: str) -> ArrayPlan:
    """An array that no step is for: as it is, or the part of it that is read."""
    metadata = source.metadata[path]
    crop = crop_of(metadata, parts) if metadata.dtype is not None else None
    if crop is None:
        return ArrayPlan.mapped(path, metadata, metadata)
    array = crop.check(spec_of(metadata))
    chunks = crop.cut(spec_of(metadata), metadata.grid.chunks)
    attributes = metadata.attributes
    target = ArrayMetadata.create(
        array.shape, chunks, array.dtype, dims=array.dims, inner_chunks=chunks, compressor=compressor, attributes=attributes
    )
    return ArrayPlan(path, {path: metadata}, target, Flow.chain(path, [crop]))


def _planned(
    spec: PipelineSpec, source: DatasetRecord, selected: set[str], compressor: str, parts: Mapping[str, tuple[int, int]]
) -> dict[str, ArrayPlan]:
    """What the steps make of the selected arrays, or of `parts` of them. ConfigError lists all that is wrong."""
    specs, problems = dict[str, ArraySpec](), list[Problem]()
    for path, metadata in source.metadata.items():
        if path in selected:
            try:
                specs[path] = spec_of(metadata)
            except ConfigError as error:
                problems += error.problems
    others = [path for path in source.arrays if path not in selected]
    flows: Mapping[str, Flow] = {}
    try:
        crops = {path: crop for path in specs if (crop := crop_of(source.metadata[path], parts)) is not None}
        flows = Tables(specs, list(specs), others, crops).apply(spec.steps)
    except ConfigError as error:
        problems += error.problems
    arrays = {}
    for path, flow in flows.items():
        try:
            arrays[path] = _array(spec, source, path, flow, compressor)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return arrays


def _array(spec: PipelineSpec, source: DatasetRecord, path: str, flow: Flow, compressor: str) -> ArrayPlan:
    sources = {read: source.array(read) for read in flow.paths}
    specs = flow.specs({read: spec_of(metadata) for read, metadata in sources.items()})
    first, array = sources[flow.paths[0]], specs[-1]
    if spec.output.in_place:
        _check_in_place(path, flow, specs)
        return ArrayPlan(path, sources, first, flow)
    natural = flow.cut(specs, {read: metadata.grid.chunks for read, metadata in sources.items()})
    stored, inner = cut(path, array, natural, spec.output.shards, spec.output.chunks)
    target = ArrayMetadata.create(
        array.shape,
        stored,
        array.dtype,
        dims=array.dims,
        inner_chunks=inner,
        compressor=compressor,
        attributes=first.attributes,
    )
    return ArrayPlan(path, sources, target, flow)


def _check_in_place(path: str, flow: Flow, specs: Sequence[ArraySpec]) -> None:
    """ConfigError unless each chunk is computed from itself, and stays of its shape and dtype."""
    before, after = specs[0], specs[-1]
    for node in flow.nodes:
        if isinstance(node, Apply) and not node.operation.chunkwise:
            reason = f"array {path!r}: {node.operation.kind} needs more than the chunk itself, so it cannot be done in place"
            raise ConfigError([Problem(reason, "output.in_place", hint="write to a new dataset")])
    if after != before:
        reason = f"would turn array {path!r} from {before.dtype} into {after.dtype}, which cannot be done in place"
        raise ConfigError([Problem(reason, "output.in_place", hint="write to a new dataset, or end with a `cast`")])


def _fits(metadata: ArrayMetadata, arrays: Sequence[ArrayPlan], parts: Mapping[str, tuple[int, int]]) -> bool:
    """Whether the named dimensions of an array that is carried over have the lengths that they have in all of the new ones. parts: of
    dimensions, those that are read."""
    before = [(array, {(dim, _length(parts.get(dim), size)) for dim, size in _lengths(array.source)}) for array in arrays]
    changed = {length for array, lengths in before for length in lengths - _lengths(array.target)}
    kept = {name for array in arrays for name, _ in _lengths(array.target)}
    return not any(length in changed and length[0] in kept for length in _lengths(metadata))


def _length(part: tuple[int, int] | None, size: int) -> int:
    return size if part is None else part[1] - part[0]


def _lengths(metadata: ArrayMetadata) -> set[tuple[str, int]]:
    return {(name, size) for name, size in zip(metadata.dims, metadata.shape, strict=True) if name is not None}


def _stacked(plan: Plan, stack: bool) -> Plan:
    """Where an in-place pipeline stands among those applied before: the last one again (resume), or a new one on top."""
    transforms = plan.source.transforms
    if not transforms:
        return replace(plan, level=0)
    if transforms[-1]["declared"] == plan.declared and not stack:
        resolved = transforms[-1]["steps"]
        arrays = tuple(replace(array, flow=Flow.chain(array.path, steps_from(resolved[array.path]))) for array in plan.arrays)
        return replace(plan, arrays=arrays, level=len(transforms) - 1)
    if not stack:
        raise NameTaken(
            plan.source.name,
            "was already changed in place by another pipeline; --stack applies this one on top, or write to a new dataset",
        )
    return replace(plan, level=len(transforms))


def steps_from(data: Sequence[Mapping[str, Any]]) -> tuple[Step, ...]:
    """The inverse of `steps_as_data`."""
    steps = [find(kind).model_validate(values, strict=False) for step in data for kind, values in step.items()]
    return tuple(step for step in steps if isinstance(step, Step))


@dataclass(frozen=True)
class ChunkPlan:
    """Which chunks of one array are to be done. pending: linear indices, ascending. lost: chunks of the array `table` is of that no live
    node holds; tables: of all arrays that are read."""

    array: ArrayPlan
    made_by: str
    tables: Mapping[str, ChunkTable]
    pending: tuple[int, ...]
    lost: Mapping[str, tuple[int, ...]]
    newest: Sequence[int]
    """Generation of each chunk of the output, on whatever node; 0 where there is none."""
    unmade: tuple[int, ...] = ()
    """Chunks of the output that cannot be made for what is lost."""
    gathers: Gathers | None = None
    """For an array that is gathered."""
    among: int | None = None
    """How many chunks were looked at; None for all."""
    behind: tuple[int, ...] = ()
    """Of the lost ones, in place: chunks of which an older generation is there."""

    @property
    def table(self) -> ChunkTable:
        """Of the source's array, the first where there are several."""
        return self.tables[self.array.flow.paths[0]]

    @property
    def skipped(self) -> int:
        """Chunks whose stored recipe is the wanted one."""
        return self.total - len(self.pending) - len(self.unmade)

    @property
    def total(self) -> int:
        """Chunks that were looked at."""
        return self.array.target.grid.size if self.among is None else self.among

    @property
    def pending_nbytes(self) -> int:
        """Encoded bytes to be read: each chunk of the source once."""
        if self.gathers is None:
            return int(self.table.rows["nbytes"][list(self.pending)].sum())
        return sum(int(self.tables[path].rows["nbytes"][needed].sum()) for path, needed in self.gathers.needed.items())

    def only(self, chunks: Sequence[int]) -> ChunkPlan:
        """The same for some of the pending chunks."""
        return replace(self, pending=tuple(chunks), gathers=self.gathers and self.gathers.at(self.pending, chunks))

    @property
    def ship_nbytes(self) -> int:
        """Decoded bytes that lie on other nodes than they are needed on: an upper bound of what will be shipped, as what neighbours share
        is shipped once, and whole chunks go as they are stored. 0 where each chunk is made where it lies."""
        return 0 if self.gathers is None else int((self.gathers.rows["nbytes"] - self.gathers.rows["local_nbytes"]).sum())

    def by_node(self) -> dict[str, int]:
        """Pending chunks by the nodes that can make them from what is there, or that hold most of it."""
        if self.gathers is None:
            return self.table.chunks_by_node(self.pending)
        return {node: len(places) for node, places in self.gathers.by_home().items()}


def plan_chunks(
    array: ArrayPlan,
    made_by: str,
    sources: Mapping[str, ChunkTable],
    target: ChunkTable | None,
    only: NDArray[np.int64] | None = None,
    *,
    below: str | None = None,
) -> ChunkPlan:
    """Compare recipes. sources: what is there of the arrays that are read; target: of the output; None in place, where a chunk carries
    what it was made from. only: chunks of the output to look at; the tables need not have others, or what these are computed from. below:
    in place, what made what the steps are for (see `made_in_place`)."""
    if array.gathered:
        assert target is not None, array.path
        return _plan_gathers(array, made_by, sources, target, only)
    source = sources[array.flow.paths[0]]
    rows, there = source.rows, source if target is None else target
    wanted_here = np.ones(len(rows), bool)
    if only is not None:
        wanted_here[:] = False
        wanted_here[only] = True
    done = source.present & there.present & wanted_here
    made = np.flatnonzero(done)
    inputs = rows["inputs" if target is None else "digest"]
    if target is not None and not array.carried:
        inputs = cut_shorts(inputs, array.source.grid)
    wanted = recipes(made_by, inputs[made])
    done[made] = there.rows["recipe"][made] == wanted
    todo = source.present & wanted_here & ~done
    behind = np.zeros(0, np.int64) if below is None else _behind(rows, np.flatnonzero(todo), below)
    todo[behind] = False
    pending, lost = np.flatnonzero(todo), np.sort(np.append(np.flatnonzero(~source.present & wanted_here), behind))
    newest = there.rows["generation"].tolist()
    lost_by_path = {array.flow.paths[0]: tuple(lost.tolist())}
    among = None if only is None else len(only)
    unmade = tuple(lost.tolist())
    return ChunkPlan(
        array, made_by, sources, tuple(pending.tolist()), lost_by_path, newest, unmade, None, among, tuple(behind.tolist())
    )


def _behind(rows: NDArray[Any], chunks: NDArray[np.int64], below: str) -> NDArray[np.int64]:
    """Those of `chunks` that have not had what was done in place before: an older generation, whose newer one is on a node that is away.
    To go on from there would leave that out. What made a chunk may also not be known, which the task that reads it sees to, and what
    somebody wrote since is taken as it is."""
    others = chunks[rows["recipe"][chunks] != recipes(below, rows["inputs"][chunks])]
    return np.array([c for c in others.tolist() if rows["recipe"][c].tobytes() not in (UNKNOWN, _written(rows[c]))], np.int64)


def _written(row: Any) -> bytes:
    return written_recipe(row["digest"].tobytes())


def made_in_place(record: DatasetRecord, path: str, levels: int) -> str | None:
    """Fingerprint of what made the chunks of an array after the first `levels` in-place pipelines: the last one that is for it; None when
    none is."""
    metadata = record.array(path)
    for level in reversed(range(levels)):
        steps = record.transforms[level]["steps"].get(path)
        if steps is not None:
            return ArrayPlan.mapped(path, metadata, metadata, steps_from(steps)).made_by(level)
    return None


def _plan_gathers(
    array: ArrayPlan,
    made_by: str,
    sources: Mapping[str, ChunkTable],
    target: ChunkTable,
    only: NDArray[np.int64] | None = None,
) -> ChunkPlan:
    wanted = Wanted(array.flow, array.specs, array.sources, array.target.grid)
    pending, unmade, gathers = plan_gathers(wanted, made_by, sources, target, only)
    lost = {path: tuple(np.flatnonzero(gathers.asked[path] & ~table.present).tolist()) for path, table in sources.items()}
    newest = target.rows["generation"].tolist()
    among = None if only is None else len(only)
    return ChunkPlan(array, made_by, sources, pending, lost if unmade else {}, newest, unmade, gathers, among)
