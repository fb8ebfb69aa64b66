"""What a step is: parameters, what comes out, what it needs to know about the data, and how a part of what comes out is computed.

A part of the result is computed from the part of the input that `pull` names, and equals that part of the whole result however the
arrays are cut. A step never modifies its input."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import BaseModel, Field, PlainValidator

from gpuflow.backends.devices import Library
from gpuflow.backends.expression_tree import Node
from gpuflow.reductions.requests import MomentsRequest, Request
from gpuflow.steps.parameters import StepError, patterns, plain
from gpuflow.steps.spans import Inseparable, Spans

__all__ = [
    "Array",
    "ArraySpec",
    "Elementwise",
    "Join",
    "MomentsRequest",
    "Namespace",
    "Operation",
    "Region",
    "Request",
    "Step",
    "StepError",
    "quiet",
]

Namespace = Any
"""numpy, or a module with its interface (cupy)."""
Array = Any
"""An array of a `Namespace`."""
Region = tuple[slice, ...]
"""The part of an array that a block covers: one slice with start and stop per axis. What is pulled may go around: see around.py."""


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """One array at one point of a pipeline. dims: one name per axis, None where it has none."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    dims: tuple[str | None, ...]


class Operation(BaseModel, frozen=True, extra="forbid", strict=True, defer_build=True):
    """What may stand in the list of steps. An instance is immutable, hashable and pickles; its fields are what stands in the YAML."""

    kind: ClassVar[str]
    """Its name in YAML."""
    shorthand: ClassVar[tuple[str, ...]]
    """The fields that a bare value fills: one field takes the value whole, several take a list of that length."""
    chunkwise: ClassVar[bool] = False
    """Whether each part of what comes out is computed from the same part of what goes in, so that it can be done in place."""
    about: ClassVar[str] = ""
    """What it does, in a sentence, for editors and messages."""
    examples: ClassVar[tuple[Any, ...]] = ()
    """What may stand after the name in YAML: for messages, and for the schema that editors use. The first is the usual one."""
    further_forms: ClassVar[tuple[dict[str, Any], ...]] = ()
    """What else may stand after the name, for the schema that editors use: see `form_of`."""
    takes_more: ClassVar[bool] = False
    """Whether it takes keys that are no fields of its own."""
    runs_programs: ClassVar[bool] = False
    """Whether it runs programs, which a worker has to allow."""
    habits: ClassVar[tuple[str, ...]] = ()
    """Fields that say when something is done again, and not what: the same pipeline may have others."""
    version: ClassVar[int] = 1
    """Raised when the same parameters begin to compute something else: what older versions made is then made again."""

    @property
    def on_cuda(self) -> Library | None:
        """The library from which it gets its blocks as arrays on a CUDA device, without which it cannot be; None when it can."""
        return None

    @property
    def takes_around(self) -> bool:
        """Whether `pull` takes parts that go around, see around.py; else it is given all of the axes along which they do."""
        return self.chunkwise

    @property
    def title(self) -> str:
        """What errors call it."""
        return self.kind

    @classmethod
    def form_of(cls, value: Any) -> type[Operation]:
        """The class that takes `value`, which stands after this one's name: another one, where the name stands for two things."""
        return cls

    def to_yaml_value(self) -> dict[str, Any]:
        """The parameters that differ from their defaults, as plain data."""
        # Field by field: iterating over the model would also give what it has cached.
        given = {name: (getattr(self, name), field.default) for name, field in type(self).model_fields.items()}
        return {name: plain(value) for name, (value, default) in given.items() if value != default}

    def to_record_value(self) -> dict[str, Any]:
        """The same with all that is needed to do it again anywhere: as records keep it, and as recipes see it."""
        return self.to_yaml_value()


class Step(Operation, frozen=True):
    """What is done to each array. The planner calls `check`, then either `resolve` (when `needs` asks for statistics) or `bind`; workers
    call `compute`."""

    only: Annotated[
        tuple[str, ...] | None,
        PlainValidator(lambda value: None if value is None else patterns(value), json_schema_input_type=str | list[str]),
        Field(description="Names of arrays, or fnmatch patterns: the others go on as they are."),
    ] = None

    def is_for(self, path: str) -> bool:
        """Whether it is applied to the array called `path`."""
        return self.only is None or any(fnmatchcase(path, pattern) for pattern in self.only)

    @abstractmethod
    def check(self, array: ArraySpec) -> ArraySpec:
        """What comes out when `array` goes in. StepError when the step cannot be applied to it."""

    def needs(self, array: ArraySpec) -> Request | None:
        """What has to be known about the whole of `array` before `compute`; None when nothing is, or all of it is."""
        return None

    def bind(self, array: ArraySpec) -> Step:
        """The same step with names of dimensions turned into axis numbers of `array`."""
        return self

    def resolve(self, array: ArraySpec, statistics: Any, where: str) -> Step:
        """The same step, bound, with its parameters filled in from what it asked for. where: names the array in errors.

        StatisticsError when they are unusable."""
        return self.bind(array)

    @abstractmethod
    def pull(self, array: ArraySpec, region: Region) -> Region:
        """The part of `array`, which goes in, that the part `region` of what comes out is computed from. The step is bound."""

    def pull_all(self, array: ArraySpec, spans: Spans) -> Spans:
        """`pull` of many parts at once, none of them empty: for plans of many chunks, which ask part by part when it is Inseparable."""
        raise Inseparable

    @abstractmethod
    def cut(self, array: ArraySpec, chunks: tuple[int, ...]) -> tuple[int, ...]:
        """Into what chunks what comes out is best cut when `array` is cut into `chunks`. The step is bound."""

    @abstractmethod
    def compute(self, xp: Namespace, block: Array, array: ArraySpec, region: Region) -> Array:
        """The part `region` of what comes out when `array` goes in. block: the part `pull(array, region)` of `array`, of any strides.

        A new array, of the region's shape and the dtype that `check` said."""

    def express(self, array: ArraySpec) -> Node | None:
        """What an elementwise step computes on a part of `array`, to the bit: for compilers. The step is bound and complete.

        None for a step that only its own code can tell."""
        return None


class Elementwise(Step, frozen=True):
    """A step whose result at one place depends on the value at that place alone."""

    chunkwise: ClassVar[bool] = True

    def pull(self, array: ArraySpec, region: Region) -> Region:
        return region

    def pull_all(self, array: ArraySpec, spans: Spans) -> Spans:
        return spans

    def cut(self, array: ArraySpec, chunks: tuple[int, ...]) -> tuple[int, ...]:
        return chunks

    def compute(self, xp: Namespace, block: Array, array: ArraySpec, region: Region) -> Array:
        return self.apply(xp, block, region)

    @abstractmethod
    def apply(self, xp: Namespace, block: Array, region: Region) -> Array:
        """The result for `block`, the part `region` of the array. Same shape; dtype as `check` said; a new array."""


class Join(Operation, frozen=True):
    """What makes one array of several. The others go on beside it, unless it `consumes` them."""

    consumes: ClassVar[bool] = False

    @abstractmethod
    def made(self) -> dict[str, tuple[str, ...]]:
        """What comes out, and of which arrays each is made, by name."""

    @abstractmethod
    def check(self, name: str, arrays: Sequence[ArraySpec]) -> ArraySpec:
        """The array `name` that is made of `arrays`. StepError when it cannot be."""

    @abstractmethod
    def pull(self, name: str, arrays: Sequence[ArraySpec], region: Region) -> tuple[Region, ...]:
        """The part of each of `arrays` that the part `region` of `name` is computed from."""

    def pull_all(self, name: str, arrays: Sequence[ArraySpec], spans: Spans) -> tuple[Spans | None, ...]:
        """`pull` of many parts at once, none of them empty; None for an array of which none needs anything. See `Step.pull_all`."""
        raise Inseparable

    @abstractmethod
    def cut(self, name: str, arrays: Sequence[ArraySpec], chunks: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        """Into what chunks `name` is best cut when `arrays` are cut into `chunks`."""

    @abstractmethod
    def compute(self, xp: Namespace, name: str, blocks: Sequence[Array], arrays: Sequence[ArraySpec], region: Region) -> Array:
        """The part `region` of `name`. blocks: the parts of `arrays` that `pull` names."""


def quiet() -> np.errstate:
    """NumPy's floating-point warnings are off inside: an overflow or a NaN is the data's business, as it is on a GPU."""
    return np.errstate(all="ignore")
