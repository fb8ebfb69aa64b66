"""What a pipeline will do to a dataset, before anything runs.

Pure: from the spec, the source's record and what the nodes hold, to array by array and chunk by chunk actions. Nothing but metadata is
read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from gpuflow.datasets.catalog import ChunkTable
from gpuflow.errors import ConfigError, NameTaken, Problem
from gpuflow.pipelines.compressor import Choice, choose_compressor
from gpuflow.pipelines.fingerprint import fingerprint, recipes
from gpuflow.pipelines.spec import PipelineSpec, ReplicasSpec
from gpuflow.steps.base import ArraySpec, Request, Step, StepError
from gpuflow.steps.registry import find
from gpuflow.storage.inner_chunks import inner_chunks
from gpuflow.storage.metadata import ArrayMetadata
from gpuflow.storage.record import DatasetRecord


@dataclass(frozen=True)
class ArrayPlan:
    """One array of the output. steps: bound to the array, those that need statistics perhaps not yet resolved; none for an array that is
    carried over unchanged."""

    path: str
    source: ArrayMetadata
    target: ArrayMetadata
    steps: tuple[Step, ...] = ()

    @property
    def carried(self) -> bool:
        """Whether the encoded chunks are taken over as they are."""
        return not self.steps and self.source.document == self.target.document

    def made_by(self, level: int | None) -> str:
        """Fingerprint of what makes this array's chunks. level: number of in-place pipelines applied before; None for a new dataset, to
        which the same steps may then be applied in place."""
        codecs = [self.target.document["data_type"], self.target.document["codecs"], list(self.target.grid.chunks)]
        return fingerprint({**steps_identity(self.steps), "stored": codecs, "level": level})

    def spec_before(self, number: int) -> ArraySpec:
        """The array as step `number` sees it."""
        spec = spec_of(self.source)
        for step in self.steps[:number]:
            spec = step.check(spec)
        return spec

    def first_unresolved(self) -> tuple[int, Request] | None:
        """The first step that waits for statistics, and what it asks for."""
        for number, step in enumerate(self.steps):
            if (request := step.needs(self.spec_before(number))) is not None:
                return number, request
        return None


@dataclass(frozen=True)
class Plan:
    """A checked pipeline over a real dataset. declared: fingerprint of what the user wrote, before statistics fill in parameters.

    level: number of in-place pipelines applied before; None for a new dataset. compressor: what `compressor: auto` came to."""

    spec: PipelineSpec
    source: DatasetRecord
    arrays: tuple[ArrayPlan, ...]
    declared: str
    level: int | None = None
    compressor: Choice | None = None

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
        origin["pipeline"] = {name: value for name, value in self.spec.to_dict().items() if name != "run"}
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


def steps_as_data(steps: tuple[Step, ...]) -> list[dict[str, Any]]:
    """Steps as plain data, as records keep them."""
    return [{step.kind: step.to_record_value()} for step in steps]


def steps_identity(steps: tuple[Step, ...]) -> dict[str, Any]:
    """What decides whether steps compute the same."""
    versions = [step.version for step in steps]
    return {"steps": steps_as_data(steps)} | ({"versions": versions} if any(version > 1 for version in versions) else {})


def make_plan(spec: PipelineSpec, source: DatasetRecord, *, stack: bool = False, compressor: Choice | None = None) -> Plan:
    """Check `spec` against the source. ConfigError lists every step that does not fit; NameTaken when an in-place pipeline is already
    applied and `stack` does not ask for another on top. compressor: for a spec that leaves it to `auto`."""
    choice = (compressor or choose_compressor({})) if spec.output.compressor == "auto" else None
    name = choice.name if choice else spec.output.compressor
    selected = _select(spec, source)
    problems: list[Problem] = []
    arrays = []
    for path, metadata in source.metadata.items():
        if path in selected:
            try:
                arrays.append(_plan_array(spec, path, metadata, name))
            except ConfigError as error:
                problems += error.problems
        elif not spec.output.in_place:
            arrays.append(ArrayPlan(path, metadata, metadata))
    if problems:
        raise ConfigError(problems)
    output = spec.output.model_copy(update={"snapshot": None, "replicas": ReplicasSpec()})  # whatever they are, it is the same
    # An edited function makes chunks of its dataset again; in place it would be applied on top of what it was.
    written = steps_as_data(spec.steps) if spec.output.in_place else spec.to_dict()["steps"]
    declared = fingerprint([written, sorted(selected), output.to_value()])
    plan = Plan(spec, source, tuple(arrays), declared, compressor=choice)
    return _stacked(plan, stack) if spec.output.in_place else plan


def _select(spec: PipelineSpec, source: DatasetRecord) -> set[str]:
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


def _plan_array(spec: PipelineSpec, path: str, metadata: ArrayMetadata, compressor: str) -> ArrayPlan:
    before = array = spec_of(metadata)
    steps = []
    for number, step in enumerate(spec.steps):
        try:
            after = step.check(array)
            steps.append(step.bind(array))
        except StepError as error:
            where = f"steps[{number}].{step.kind}"
            problem = Problem(f"cannot be applied to array {path!r}: {error.message}", where, hint=error.hint)
            raise ConfigError([problem]) from error
        array = after
    if spec.output.in_place:
        if array != before:
            reason = f"would turn array {path!r} from {before.dtype} into {array.dtype}, which cannot be done in place"
            raise ConfigError([Problem(reason, "output.in_place", hint="write to a new dataset, or end with a `cast`")])
        return ArrayPlan(path, metadata, metadata, tuple(steps))
    target = ArrayMetadata.create(
        array.shape,
        metadata.grid.chunks,
        array.dtype,
        dims=metadata.dims,
        inner_chunks=_inner_chunks(spec, path, metadata.grid.chunks, array.dtype.itemsize),
        compressor=compressor,
        attributes=metadata.attributes,
    )
    return ArrayPlan(path, metadata, target, tuple(steps))


def _inner_chunks(spec: PipelineSpec, path: str, stored: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Into what the stored objects of an output array are cut. ConfigError when they cannot be cut as `output.chunks` says."""
    chunks = spec.output.chunks
    if chunks == "auto":
        return inner_chunks(stored, itemsize)
    if chunks == "whole":
        return stored
    if len(chunks) == len(stored) and not any(size % part for size, part in zip(stored, chunks, strict=True)):
        return chunks
    what = "have as many dimensions as" if len(chunks) != len(stored) else "divide"
    reason = f"{list(chunks)} does not {what} the stored objects of array {path!r}, {list(stored)}"
    hint = "give a divisor for each dimension, write auto, or name other arrays under `source`"
    raise ConfigError([Problem(reason, "output.chunks", hint=hint)])


def _stacked(plan: Plan, stack: bool) -> Plan:
    """Where an in-place pipeline stands among those applied before: the last one again (resume), or a new one on top."""
    transforms = plan.source.transforms
    if not transforms:
        return replace(plan, level=0)
    if transforms[-1]["declared"] == plan.declared and not stack:
        resolved = transforms[-1]["steps"]
        arrays = tuple(replace(array, steps=steps_from(resolved[array.path])) for array in plan.arrays)
        return replace(plan, arrays=arrays, level=len(transforms) - 1)
    if not stack:
        raise NameTaken(
            plan.source.name,
            "was already changed in place by another pipeline; --stack applies this one on top, or write to a new dataset",
        )
    return replace(plan, level=len(transforms))


def steps_from(data: Sequence[Mapping[str, Any]]) -> tuple[Step, ...]:
    """The inverse of `steps_as_data`."""
    return tuple(find(kind).model_validate(values, strict=False) for step in data for kind, values in step.items())


@dataclass(frozen=True)
class ChunkPlan:
    """Which chunks of one array are to be done. pending: linear indices, ascending. lost: chunks that no live node holds."""

    array: ArrayPlan
    made_by: str
    table: ChunkTable
    pending: tuple[int, ...]
    lost: tuple[int, ...]
    newest: Sequence[int]
    """Generation of each chunk of the output, on whatever node; 0 where there is none."""

    @property
    def skipped(self) -> int:
        """Chunks whose stored recipe is the wanted one."""
        return self.array.source.grid.size - len(self.pending) - len(self.lost)

    @property
    def pending_nbytes(self) -> int:
        """Encoded bytes to be read."""
        return int(self.table.rows["nbytes"][list(self.pending)].sum())


def plan_chunks(array: ArrayPlan, made_by: str, source: ChunkTable, target: ChunkTable | None) -> ChunkPlan:
    """Compare recipes. target: what is there of the output; None in place, where a chunk carries what it was made from."""
    rows, there = source.rows, source if target is None else target
    done = source.present & there.present
    made = np.flatnonzero(done)
    wanted = recipes(made_by, rows["inputs" if target is None else "digest"][made])
    done[made] = there.rows["recipe"][made] == wanted
    pending, lost = np.flatnonzero(source.present & ~done), np.flatnonzero(~source.present)
    newest = there.rows["generation"].tolist()
    return ChunkPlan(array, made_by, source, tuple(pending.tolist()), tuple(lost.tolist()), newest)
