"""Several arrays of one shape as one, along a new dimension: the variables of a field as the channels of a training tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field, PlainValidator

from gpuflow.steps.base import Array, ArraySpec, Join, Namespace, Region, StepError
from gpuflow.steps.parameters import describe
from gpuflow.steps.spans import Coupled, Spans


def _arrays(value: Any) -> tuple[str, ...]:
    names = tuple(value) if isinstance(value, list | tuple) else ()
    if len(names) < 2 or not all(isinstance(name, str) and name for name in names):
        raise StepError(f"must be a list of two or more arrays, not {describe(value)}", "as in [t2m, u10, v10]")
    if len(set(names)) < len(names):
        raise StepError("names an array twice", "name each array once")
    return names


class Stack(Join, frozen=True):
    """`arrays`: in the order of the channels. `along`: name of the new dimension. `axis`: where it comes; 1 is behind the samples.
    `name`: of the new array, which takes the place of the others. Out: the dtype that holds them all."""

    kind: ClassVar[str] = "stack"
    about: ClassVar[str] = "Several arrays of one shape as the channels of one."
    examples: ClassVar[tuple[Any, ...]] = ({"arrays": ["t2m", "u10", "v10"], "along": "channel"}, ["red", "green", "blue"])
    shorthand: ClassVar[tuple[str, ...]] = ("arrays",)
    consumes: ClassVar[bool] = True

    arrays: Annotated[
        tuple[str, ...],
        PlainValidator(_arrays, json_schema_input_type=list[str]),
        Field(description="Which arrays, in the order of the channels."),
    ]
    along: Annotated[str, Field(description="Name of the new dimension.")] = "channel"
    axis: Annotated[int, Field(description="Where the new dimension comes; 1 is behind the samples.")] = 1
    name: Annotated[str, Field(description="Of the new array, which takes the place of the others.")] = "stacked"

    def made(self) -> dict[str, tuple[str, ...]]:
        return {self.name: self.arrays}

    def check(self, name: str, arrays: Sequence[ArraySpec]) -> ArraySpec:
        first = arrays[0]
        for path, array in zip(self.arrays, arrays, strict=True):
            if array.shape != first.shape:
                reason = f"{path!r} has shape {list(array.shape)}, {self.arrays[0]!r} {list(first.shape)}"
                raise StepError(reason, "put a crop or resize step before it, or stack those of one shape")
        axis = self._axis(first)
        if self.along in first.dims:
            raise StepError(f"there is a dimension {self.along!r} already", "name the new one: `along: ...`")
        dims = [next((name for name in names if name is not None), None) for names in zip(*(a.dims for a in arrays), strict=True)]
        dtype = np.result_type(*(array.dtype for array in arrays))
        shape = (*first.shape[:axis], len(arrays), *first.shape[axis:])
        return ArraySpec(shape, dtype, (*dims[:axis], self.along, *dims[axis:]))

    def pull(self, name: str, arrays: Sequence[ArraySpec], region: Region) -> tuple[Region, ...]:
        axis = self._axis(arrays[0])
        channels, part = region[axis], (*region[:axis], *region[axis + 1 :])
        nothing = tuple(slice(one.start, one.start) for one in part)
        return tuple(part if channels.start <= number < channels.stop else nothing for number in range(len(arrays)))

    def pull_all(self, name: str, arrays: Sequence[ArraySpec], spans: Spans) -> tuple[Spans | None, ...]:
        axis = self._axis(arrays[0])
        channels, part = spans[axis], (*spans[:axis], *spans[axis + 1 :])
        if channels.axis is not None and len(channels.starts) > 1:
            raise Coupled(channels.axis)
        chosen = range(int(channels.starts[0]), int(channels.stops[0]))
        # Of an array without other dimensions the one value comes along: no part of it is empty.
        return tuple(part if number in chosen or not part else None for number in range(len(arrays)))

    def cut(self, name: str, arrays: Sequence[ArraySpec], chunks: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        axis = self._axis(arrays[0])
        return (*chunks[0][:axis], len(arrays), *chunks[0][axis:])

    def compute(self, xp: Namespace, name: str, blocks: Sequence[Array], arrays: Sequence[ArraySpec], region: Region) -> Array:
        axis = self._axis(arrays[0])
        dtype = np.result_type(*(array.dtype for array in arrays))
        chosen = blocks[region[axis].start : region[axis].stop]
        out = xp.empty((*chosen[0].shape[:axis], len(chosen), *chosen[0].shape[axis:]), dtype)
        for number, block in enumerate(chosen):
            out[(slice(None),) * axis + (number,)] = block
        return out

    def _axis(self, array: ArraySpec) -> int:
        count = len(array.shape) + 1
        if not -count <= self.axis < count:
            raise StepError(f"there is no place {self.axis} among {count} dimensions", f"`axis` goes from 0 to {count - 1}")
        return min(self.axis % count, count - 1)
