"""A pipeline as data: source, steps, output, and how to run it.

Immutable and complete: a spec that exists is consistent in itself. Whether its dataset exists and its steps fit the arrays is the
plan's business. `to_dict` is the canonical form; `gpuflow.pipelines.load` reads it back."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, PlainValidator, SerializeAsAny, model_validator

from gpuflow.errors import ConfigError, Problem
from gpuflow.pipelines.slices import index_range, label_range
from gpuflow.steps.axes import ByAxis
from gpuflow.steps.base import Operation
from gpuflow.steps.parameters import StepError, describe, memory_nbytes

Compressor = Literal["auto", "none", "zstd", "gzip", "blosc", "lz4"]
"""The keys of `gpuflow.storage.metadata.COMPRESSORS`; auto: the plan chooses by what the nodes measured."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_DEVICE = re.compile(r"auto|cpu|cuda(:(0|[1-9][0-9]{0,3}))?")
_IN_EDITORS = {"pattern": rf"^{_NAME.pattern}$|\$\{{"}
"""The names, for the schema; a variable may be part of one."""
_NAME_HINT = "use at most 100 letters, digits, `.`, `_` and `-`, beginning with a letter or digit"


def check_dataset_name(name: str) -> str:
    """`name` itself when a dataset may be called that; it is also a directory's name. StepError (a ValueError) when not."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        shown = repr(name) if len(repr(name)) <= 60 else f"{repr(name)[:60]}..."
        raise StepError(f"{shown} cannot be the name of a dataset", _NAME_HINT)
    return name


def _check_tag(tag: str) -> str:
    if not _NAME.fullmatch(tag):
        raise StepError(f"{tag[:60]!r} cannot be the tag of a snapshot", _NAME_HINT)
    return tag


def _check_device(device: str) -> str:
    if not _DEVICE.fullmatch(device):
        raise StepError(f"there is no device {device[:40]!r}", "write auto, cpu, cuda or cuda:0")
    return device


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


def _check_patterns(arrays: tuple[str, ...]) -> tuple[str, ...]:
    if not arrays or not all(arrays):
        raise StepError("names no array" if not arrays else "holds an empty name", "leave `arrays` out to take all of them")
    if len(set(arrays)) < len(arrays):
        twice = next(name for name in arrays if arrays.count(name) > 1)
        raise StepError(f"names {twice!r} twice", "name each array once")
    return arrays


def _check_chunks(value: Any) -> Any:
    """`auto`, `whole`, or a shape. StepError for anything else."""
    return value if isinstance(value, str) and value in ("auto", "whole") else _check_shape(value, "auto, whole or a list")


def _check_shards(value: Any) -> Any:
    """`auto`, or a shape. StepError for anything else."""
    return value if isinstance(value, str) and value == "auto" else _check_shape(value, "auto or a list")


def _check_shape(value: Any, wanted: str) -> Any:
    """A shape as a tuple, or a mapping of sizes by the names of dimensions."""
    sizes = list(value.values()) if isinstance(value, Mapping) else value
    if not isinstance(sizes, list | tuple) or not sizes or not all(type(size) is int for size in sizes):
        hint = "write auto, as in [1, 256, 256], or by dimension as in {time: 1}"
        raise StepError(f"must be {wanted} of whole numbers, not {describe(value)}", hint)
    if wrong := [size for size in sizes if size < 1 and size != -1]:
        hint = "give 1 or more for each dimension, or -1 for the whole of it"
        raise StepError(f"{wrong[0]} is not the size of a chunk", hint)
    return {str(name): size for name, size in value.items()} if isinstance(value, Mapping) else tuple(sizes)


def _check_cache(value: Any) -> int | str:
    """`auto`, `off`, or bytes of memory. ValueError for anything else."""
    if value in ("auto", "off"):
        return str(value)
    try:
        nbytes = memory_nbytes(value)
    except ValueError:
        nbytes = None
    if nbytes is None:
        raise StepError(f"must be auto, off, or a number of bytes such as 2GiB, at least 1MiB, not {describe(value)}")
    return nbytes


def _ranges(parse: Callable[[Any], Any], example: str) -> Callable[[Any], ByAxis]:
    """Of a mapping from names of dimensions; an empty one names none."""

    def validate(value: Any) -> ByAxis:
        if not isinstance(value, Mapping):
            raise StepError(f"must name dimensions, not {describe(value)}", f"as in {example}")
        if wrong := [name for name in value if not isinstance(name, str) or not name]:
            raise StepError(f"{describe(wrong[0])} is not the name of a dimension", f"as in {example}")
        return ByAxis({name: parse(part) for name, part in value.items()})

    return validate


class _Section(BaseModel, frozen=True, extra="forbid", strict=True, defer_build=True):
    """One section of the file."""


DatasetName = Annotated[str, AfterValidator(check_dataset_name)]
Cut = Literal["auto", "whole"] | tuple[int, ...] | Mapping[str, int]
"""Sizes along all dimensions, or along those that are named, the others being whole; -1 is whole too."""
Chunks = Annotated[
    Cut, PlainValidator(_check_chunks, json_schema_input_type=Literal["auto", "whole"] | list[int] | dict[str, int])
]
Shards = Annotated[
    Literal["auto"] | tuple[int, ...] | Mapping[str, int],
    PlainValidator(_check_shards, json_schema_input_type=Literal["auto"] | list[int] | dict[str, int]),
]
Patterns = Annotated[
    tuple[str, ...],
    BeforeValidator(_as_tuple, json_schema_input_type=str | list[str]),
    AfterValidator(_check_patterns),
]


class SourceSpec(_Section, frozen=True):
    """`arrays`: names or fnmatch patterns of the arrays to process; None for all. `isel`, `sel`: the part of some dimensions that is
    read, by index or by the values of a coordinate."""

    dataset: Annotated[
        DatasetName, Field(description="The name it was given when it was ingested or made.", json_schema_extra=_IN_EDITORS)
    ]
    arrays: Annotated[
        Patterns | None,
        Field(description="Names or patterns such as t* of the arrays to process; all of two or more dimensions when left out."),
    ] = None

    isel: Annotated[
        ByAxis,
        PlainValidator(_ranges(index_range, "isel: {time: [0, 365]}"), json_schema_input_type=dict[str, list[int | None]]),
        Field(description="The part of some dimensions that is read, by index: [start, stop], as Python's slices have them."),
    ] = Field(default_factory=ByAxis)
    sel: Annotated[
        ByAxis,
        PlainValidator(
            _ranges(label_range, "sel: {time: [2020-01-01, 2020-12-31]}"),
            json_schema_input_type=dict[str, list[float | str | None]],
        ),
        Field(description="The same by the values of a coordinate: [from, to], both included; dates where it is a time."),
    ] = Field(default_factory=ByAxis)

    @model_validator(mode="after")
    def _once(self) -> SourceSpec:
        if twice := [name for name in self.isel if name in self.sel]:
            raise StepError(f"`{twice[0]}` stands under `isel` and `sel`", "give each dimension once")
        return self

    @property
    def is_part(self) -> bool:
        """Whether not all of the arrays is read."""
        return bool(self.isel or self.sel)

    def selects(self, array: str) -> bool:
        """Whether the array called `array` is to be processed."""
        return self.arrays is None or any(fnmatchcase(array, pattern) for pattern in self.arrays)

    def to_value(self) -> Any:
        value: dict[str, Any] = {} if self.arrays is None else {"arrays": list(self.arrays)}
        for name, parts in (("isel", self.isel), ("sel", self.sel)):
            if parts:
                value[name] = {str(dim): list(part) for dim, part in parts.items()}
        return {"dataset": self.dataset, **value} if value else self.dataset


class ReplicasSpec(_Section, frozen=True):
    """`min`: on so many nodes each chunk lies when a run ends. `max`: nodes to which a chunk is shipped keep it until so many have it; not
    below `min`."""

    min: Annotated[int, Field(ge=1, description="On how many nodes each chunk lies when a run ends.")] = 1
    max: Annotated[int, Field(ge=1, description="Nodes to which a chunk is shipped keep it until so many have it.")] = 1

    def policy(self) -> dict[str, int]:
        """As the dataset's record has it."""
        return {"min": self.min, "max": max(self.min, self.max)}


class OutputSpec(_Section, frozen=True):
    """Either a new dataset, with its compressor and chunks, or the source itself, whose arrays keep their codecs.

    `shards`: shape of the stored objects; auto: as in the source, or where `chunks` does not divide these, so many chunks as make 32 MiB.
    `chunks`: shape of the inner chunks that each stored object is cut into, so that samples can be read one by one; auto: one sample, or
    as many or as large a part as make 64 to 256 KiB; whole: stored objects are not cut.
    `replicas`: how many nodes are to hold a chunk of the new dataset, and how many may.
    `snapshot`: tag of a snapshot that is taken before anything is changed in place."""

    dataset: Annotated[
        DatasetName | None,
        Field(description="The name of a new dataset, laid beside the source's chunks.", json_schema_extra=_IN_EDITORS),
    ] = None
    in_place: Annotated[bool, Field(description="Whether the source itself is changed.")] = False
    compressor: Annotated[Compressor, Field(description="auto: the one that finishes soonest, by what the nodes measured.")] = (
        "zstd"
    )
    chunks: Annotated[
        Chunks,
        Field(
            description="Shape of the inner chunks that a stored object is cut into: auto for one sample each, or 64 to 256 KiB."
        ),
    ] = "auto"
    shards: Annotated[
        Shards,
        Field(description="Shape of the stored objects: auto for that of the source's, or by dimension as in {time: 1}."),
    ] = "auto"
    replicas: Annotated[ReplicasSpec, Field(description="On how many nodes each chunk lies.")] = ReplicasSpec()
    snapshot: Annotated[
        Annotated[str, AfterValidator(_check_tag)] | None,
        Field(
            description="In place: the tag of a snapshot that is taken before anything changes.", json_schema_extra=_IN_EDITORS
        ),
    ] = None

    @model_validator(mode="after")
    def _one_of_two(self) -> OutputSpec:
        if self.in_place == (self.dataset is not None):
            problem = "has both `dataset` and `in_place`" if self.in_place else "has neither `dataset` nor `in_place: true`"
            raise StepError(problem, "give exactly one of them")
        given = [name for name in ("compressor", "chunks", "shards", "replicas") if name in self.model_fields_set]
        if self.in_place and given:
            codecs, replicas = "in place, arrays keep the codecs they have", "in place, a dataset keeps its replicas as they are"
            problems = [(name, replicas if name == "replicas" else codecs) for name in given]
            raise ConfigError([Problem(kept, name, hint=f"leave `{name}` out") for name, kept in problems])
        if self.snapshot is not None and not self.in_place:
            reason = "only what is changed in place needs a snapshot: the source stays as it is"
            raise ConfigError([Problem(reason, "snapshot", hint="leave `snapshot` out")])
        return self

    @property
    def policy(self) -> dict[str, int] | None:
        """Of replicas; None when it is not said."""
        return self.replicas.policy() if "replicas" in self.model_fields_set else None

    def to_value(self) -> Any:
        if self.in_place:
            return {"in_place": True} | ({"snapshot": self.snapshot} if self.snapshot else {})
        value: dict[str, Any] = {"dataset": self.dataset}
        if self.compressor != "zstd":
            value["compressor"] = self.compressor
        for name, cut in (("chunks", self.chunks), ("shards", self.shards)):
            if cut != "auto":
                value[name] = list(cut) if isinstance(cut, tuple) else dict(cut) if isinstance(cut, Mapping) else cut
        if self.replicas != ReplicasSpec():
            value["replicas"] = {name: number for name, number in self.replicas if number > 1}
        return value if len(value) > 1 else self.dataset


class RunSpec(_Section, frozen=True):
    """`device`: auto, cpu, cuda or cuda:N. `workers`: worker processes per node; None leaves it to the cluster. `durability`: durable
    commits survive a power loss; atomic ones the death of any process, and a chunk that a power loss damaged is found by its digest.
    `backend`: what compiles steps that are expressions; auto is numba on the CPU. `memory`: bytes that a worker may use, where it is to be
    less than it has. `cache`: bytes of decoded chunks of the source that a worker keeps in memory, for this run's later passes and for runs
    to come; auto: those that are there are taken, more are kept where the run itself reads them again, in what its plan leaves; off:
    neither. `on_error`: whether the first chunk that fails ends the run."""

    device: Annotated[
        str,
        AfterValidator(_check_device),
        Field(description="auto, cpu, cuda or cuda:N.", json_schema_extra={"pattern": rf"^({_DEVICE.pattern})$|\$\{{"}),
    ] = "auto"
    workers: Annotated[
        Annotated[int, Field(ge=1)] | None, Field(description="Worker processes on each node of an embedded cluster.")
    ] = None
    durability: Annotated[
        Literal["durable", "atomic"],
        Field(description="durable: commits survive a power loss; atomic: the death of processes, and digests find the rest."),
    ] = "durable"
    backend: Annotated[Literal["auto", "numba", "torch", "torch.compile"], Field(description="What compiles expressions.")] = (
        "auto"
    )
    memory: Annotated[
        int | None,
        PlainValidator(memory_nbytes, json_schema_input_type=int | str | None),
        Field(description="What a worker may use of its memory, such as 2GiB: a plan that needs more is refused before it runs."),
    ] = None
    cache: Annotated[
        int | str,
        PlainValidator(_check_cache, json_schema_input_type=int | str),
        Field(
            description="Decoded chunks that a worker keeps in memory: bytes, such as 2GiB; off; auto: where they are read again."
        ),
    ] = "auto"
    on_error: Annotated[
        Literal["continue", "stop"],
        Field(description="When a chunk fails: continue with the others, or stop; running again does what is left, either way."),
    ] = "continue"

    def to_value(self) -> dict[str, Any]:
        return {name: value for name, value in self if value != type(self).model_fields[name].default}


class OnSpec(_Section, frozen=True):
    """When `gpuflow watch` runs it; what a run makes does not depend on it. `dataset`: what is watched, which is the source.
    `batch_seconds`: a change that comes alone is dealt with at once; others are gathered, so that no two runs begin within that time.
    `batch_chunks`: how many changed chunks a run takes at most. `tries`: how often a chunk that fails is tried before it is given up."""

    dataset: Annotated[
        DatasetName,
        Field(description="The dataset whose changes are waited for: the source.", json_schema_extra=_IN_EDITORS),
    ]
    batch_seconds: Annotated[
        float, Field(ge=0, le=86400, description="Changes are gathered, so that no two runs begin within so many seconds.")
    ] = 1.0
    batch_chunks: Annotated[int, Field(ge=1, description="So many changed chunks go into a run at most.")] = 10_000
    tries: Annotated[int, Field(ge=1, description="A chunk that failed so often is given up, until it changes again.")] = 5

    def to_value(self) -> Any:
        fields = type(self).model_fields
        value = {name: value for name, value in self if name == "dataset" or value != fields[name].default}
        return value if len(value) > 1 else self.dataset


class PipelineSpec(_Section, frozen=True):
    """A whole pipeline."""

    source: SourceSpec
    steps: tuple[SerializeAsAny[Operation], ...] = ()
    output: OutputSpec
    run: RunSpec = RunSpec()
    on: OnSpec | None = None

    @model_validator(mode="after")
    def _sections_agree(self) -> PipelineSpec:
        if problems := conflicts(self.source, len(self.steps), self.output, self.on):
            raise ConfigError(problems)
        return self

    def to_dict(self) -> dict[str, Any]:
        """The canonical form: plain data as in the YAML file, without what equals its default."""
        data: dict[str, Any] = {
            "source": self.source.to_value(),
            "steps": [{step.kind: step.to_yaml_value()} for step in self.steps],
            "output": self.output.to_value(),
        }
        run = self.run.to_value()
        return data | ({"run": run} if run else {}) | ({"on": self.on.to_value()} if self.on is not None else {})


def conflicts(source: SourceSpec, step_count: int, output: OutputSpec, on: OnSpec | None = None) -> list[Problem]:
    """What is wrong between sections that are each right."""
    problems = []
    if on is not None and on.dataset != source.dataset:
        hint = f"write `on: {source.dataset}`, or change the source"
        problems.append(Problem(f"watches {on.dataset!r}, which is not the source {source.dataset!r}", "on.dataset", hint=hint))
    if output.in_place and not step_count:
        problems.append(Problem("there is nothing to do: no steps, and the output is in place", "steps", hint="add a step"))
    if output.in_place and source.is_part:
        hint = "write to a new dataset, or use a `where` step to leave the rest as it is"
        problems.append(Problem("a part of the source cannot be changed in place", "output.in_place", hint=hint))
    if output.dataset == source.dataset:
        hint = "name another dataset, or write `output: {in_place: true}` to change the source itself"
        problems.append(Problem(f"the output {output.dataset!r} is the source", "output.dataset", hint=hint))
    return problems
