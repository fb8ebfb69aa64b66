"""New arrays from several, value by value: `map: {wind: "sqrt(u10**2 + v10**2)"}`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import PlainValidator, model_validator

from gpuflow.errors import ConfigError, Problem
from gpuflow.steps.axes import ByAxis
from gpuflow.steps.base import Array, ArraySpec, Join, Namespace, Region, StepError, quiet
from gpuflow.steps.cast import DTYPES
from gpuflow.steps.expression import parse
from gpuflow.steps.parameters import describe
from gpuflow.steps.spans import Spans

_TILE = 2**15
"""Values that are computed at once: an expression's intermediate results stay in the processor's cache."""


class Derive(Join, frozen=True):
    """`made_of`: expressions of arrays, by the names of the new arrays; in YAML they stand alone. The arrays of one expression have one
    shape; NumPy's rules say what dtype comes out."""

    kind: ClassVar[str] = "map"
    shorthand: ClassVar[tuple[str, ...]] = ()
    takes_more: ClassVar[bool] = True

    made_of: Annotated[ByAxis, PlainValidator(ByAxis)]

    @model_validator(mode="before")
    @classmethod
    def _checked(cls, data: Any) -> Any:
        given = data["made_of"] if isinstance(data, Mapping) and set(data) == {"made_of"} else data
        problems = [problem for name, text in given.items() if (problem := _problem(name, text)) is not None]
        if problems:
            raise ConfigError(problems)
        return {"made_of": ByAxis({name: " ".join(text.split()) for name, text in given.items()})}

    def to_yaml_value(self) -> dict[str, Any]:
        return {str(name): text for name, text in self.made_of.items()}

    @property
    def takes_around(self) -> bool:
        return True

    def made(self) -> dict[str, tuple[str, ...]]:
        return {str(name): parse(text, True).names for name, text in self.made_of.items()}

    def check(self, name: str, arrays: Sequence[ArraySpec]) -> ArraySpec:
        expression, first = parse(self.made_of[name], True), arrays[0]
        for path, array in zip(expression.names, arrays, strict=True):
            if array.shape != first.shape:
                reason = f"{path!r} has shape {list(array.shape)}, {expression.names[0]!r} {list(first.shape)}"
                raise StepError(reason, "put a crop or resize step before it, or use arrays of one shape")
        dtypes = {path: array.dtype for path, array in zip(expression.names, arrays, strict=True)}
        dtype = expression.dtype_with(dtypes)
        if dtype.name not in DTYPES:
            raise StepError(f"`{expression.text}` gives {dtype}, which cannot be stored")
        return ArraySpec(first.shape, dtype, first.dims)

    def pull(self, name: str, arrays: Sequence[ArraySpec], region: Region) -> tuple[Region, ...]:
        return (region,) * len(arrays)

    def pull_all(self, name: str, arrays: Sequence[ArraySpec], spans: Spans) -> tuple[Spans | None, ...]:
        return (spans,) * len(arrays)

    def cut(self, name: str, arrays: Sequence[ArraySpec], chunks: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        return chunks[0]

    def compute(self, xp: Namespace, name: str, blocks: Sequence[Array], arrays: Sequence[ArraySpec], region: Region) -> Array:
        expression = parse(self.made_of[name], True)
        flat = [xp.ascontiguousarray(block).reshape(-1) for block in blocks]
        dtype = expression.dtype_with({path: np.dtype(block.dtype) for path, block in zip(expression.names, blocks, strict=True)})
        out = xp.empty(blocks[0].size, dtype)
        with quiet():
            for start in range(0, out.size, _TILE):
                tile = slice(start, start + _TILE)
                out[tile] = expression.evaluate_with(
                    xp, {path: one[tile] for path, one in zip(expression.names, flat, strict=True)}
                )
        return out.reshape(blocks[0].shape)


def _problem(name: Any, text: Any) -> Problem | None:
    """What is wrong with the expression `text` of the array `name`."""
    if not isinstance(name, str) or not isinstance(text, str):
        hint = "as in {wind: sqrt(u10**2 + v10**2)}"
        return Problem(f"must be an expression of arrays, not {describe(text)}", str(name), hint=hint)
    try:
        parse(text, True)
    except StepError as error:
        return Problem(error.message, name, hint=error.hint)
    return None
