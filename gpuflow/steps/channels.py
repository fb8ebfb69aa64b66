"""Steps that shift and scale by statistics of the whole array, or of each channel of it.

Computed in the dtype that comes out: float32 for narrow dtypes, else float64."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from math import prod
from typing import Annotated, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PlainValidator, model_validator

from gpuflow.backends import expression_tree as tree
from gpuflow.errors import StatisticsError
from gpuflow.reductions.weighted import WeightedMoments
from gpuflow.steps.axes import axis_of
from gpuflow.steps.base import Array, ArraySpec, Elementwise, MomentsRequest, Namespace, Region, Request, StepError, quiet
from gpuflow.steps.parameters import describe, nearest, numbers

_NARROW = ("bool", "int8", "uint8", "int16", "uint16", "float16", "float32")
"""dtypes whose every value float32 holds exactly."""

ALWAYS, NEVER = "always", "never"
_DRIFT = re.compile(r"\s*drift\s*>\s*(\d+(?:\.\d*)?(?:e-?\d+)?|\.\d+)\s*", re.IGNORECASE)

Arrays = Mapping[str, NDArray[np.float64]]


def _per(value: Any) -> Any:
    """One name or axis number as it is; several as a tuple; none as None."""
    if isinstance(value, list | tuple):
        for item in value:
            if isinstance(item, list | tuple) or item is None:
                raise ValueError(f"must be a list of dimension names or axis numbers; it holds {describe(item)}")
        items = tuple(_per(item) for item in value)
        if len(set(items)) < len(items):
            raise ValueError("names a dimension twice")
        return items if len(items) > 1 else items[0] if items else None
    if isinstance(value, np.integer):
        value = int(value)
    if value is None or (isinstance(value, int | str) and not isinstance(value, bool) and value != ""):
        return value
    raise ValueError(f"must be a dimension name, an axis number, or a list of those, not {describe(value)}")


def given_numbers(value: Any) -> Any:
    """A number, or lists of them; None when they are to be taken from the data."""
    return None if value is None else numbers(value)


GIVEN = int | float | list[Any] | None
"""What `given_numbers` takes, for the schema."""


def _refit(value: Any) -> str | None:
    """`never`, `always` or `drift > 0.05`, as it is kept."""
    if value is None:
        return None
    if isinstance(value, str) and value in (ALWAYS, NEVER):
        return value
    match = _DRIFT.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        near = nearest(value, (ALWAYS, NEVER)) if isinstance(value, str) else None
        hint = f"did you mean `{near}`?" if near else "as in `refit: drift > 0.05`"
        raise StepError(f"must be never, always, or drift > a number, not {describe(value)}", hint)
    return f"drift > {float(match[1]):g}"


def drift_limit(refit: str | None) -> float | None:
    """How far statistics may move, where that is said."""
    match = _DRIFT.fullmatch(refit or "")
    return float(match[1]) if match else None


class _Derived(dict[str, NDArray[np.float64]]):
    """What follows from a step's fields, and so says nothing about whether two steps are equal: pydantic compares it too."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Derived)

    __hash__ = None


class ChannelStep(Elementwise, frozen=True):
    """`(x - shift) / scale`, with a shift and a scale for each index of `per`: dimensions by name or axis number; none for one of each.

    Two fields, named in `parameters`, say what they are: both or neither; a number, or nested lists with one entry per index of `per`,
    in the order of the array's axes."""

    shorthand: ClassVar[tuple[str, ...]] = ("per",)
    parameters: ClassVar[tuple[str, str]]
    unit: ClassVar[str]
    """What a drift is measured in: see `refit`."""
    habits: ClassVar[tuple[str, ...]] = ("refit",)
    how: ClassVar[tuple[str, ...]] = ()
    """Fields that say how the parameters are taken from the data, and say nothing more once they are known."""

    per: Annotated[
        Any,
        PlainValidator(_per, json_schema_input_type=str | int | list[str | int] | None),
        Field(
            description="Dimensions whose indices each have their own: names, or axis numbers; none for one of the whole array."
        ),
    ] = None

    refit: Annotated[
        str | None,
        PlainValidator(_refit, json_schema_input_type=str | None),
        Field(
            description="When the source has grown: never (the default) keeps the statistics of the first fit, so that what is made stays "
            "valid; always takes them anew and makes everything again; drift > 0.05 does so once they have moved by more than that, in "
            "standard deviations (standardize) or ranges (normalize)."
        ),
    ] = None

    @abstractmethod
    def operands(self, values: Arrays) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Shift and scale, from the values of the two parameters."""

    @abstractmethod
    def measured(self, statistics: Any) -> dict[str, NDArray[np.float64]]:
        """The two parameters, as the data has them. statistics: what `needs` asked for: count, minimum and maximum are there."""

    @abstractmethod
    def unusable(self, low: float, high: float, values: Mapping[str, float]) -> str:
        """Why the finite extrema and the parameters of a channel cannot be used."""

    @model_validator(mode="after")
    def _both_or_neither(self) -> Self:
        given = [name for name in self.parameters if getattr(self, name) is not None]
        if len(given) == 1:
            missing = next(name for name in self.parameters if name not in given)
            raise StepError(f"`{given[0]}` is given without `{missing}`", "give both, or neither to take them from the data")
        return self

    @model_validator(mode="after")
    def _fitted(self) -> Self:
        if self.refit is not None and getattr(self, self.parameters[0]) is not None:
            one, other = self.parameters
            raise StepError(f"`refit` says nothing where `{one}` and `{other}` are given", "leave it out")
        return self

    def check(self, array: ArraySpec) -> ArraySpec:
        if array.dtype.kind not in "biuf":
            hint = "put a map step such as abs(x) before it"
            raise StepError(f"{self.kind} works on real numbers, not on {array.dtype}", hint)
        kept = tuple(array.shape[axis] for axis in self._axes(array.dims))
        dtype = float_dtype(array.dtype)
        for name, values in self.arrays.items():
            self._check_shape(name, values, kept)
        if self.arrays:
            for name, usable in zip(self.parameters, self._usable(self.arrays, dtype), strict=True):
                if not usable.all():
                    message = f"{self.kind}: `{name}` does not fit {dtype}, in which {array.dtype} is computed"
                    raise StepError(message, "put cast: float64 before it")
        return replace(array, dtype=dtype)

    def needs(self, array: ArraySpec) -> Request | None:
        return None if self.arrays else MomentsRequest(self._axes(array.dims))

    def bind(self, array: ArraySpec) -> Self:
        return self.model_copy(update={"per": _per(self._axes(array.dims))})

    def resolve(self, array: ArraySpec, statistics: Any, where: str) -> Self:
        axes = self._axes(array.dims)
        values = self.measured(statistics)
        shift, scale = self._usable(values, float_dtype(array.dtype))
        usable = shift & scale & (statistics.count > 0)
        if not usable.all():
            index = tuple(int(position) for position in np.argwhere(~usable)[0])
            names = [f"{array.dims[axis] or f'axis {axis}'} {position}" for axis, position in zip(axes, index, strict=True)]
            reason = f"cannot {self.kind} {', '.join(names) or 'the array'}: {self._reason(statistics, values, index)}"
            others = int((~usable).sum()) - 1
            reason += f" ({others} more like it)" if others else ""
            one, other = self.parameters
            hint = f"leave it out, {self.kind} over more of the array, or give {one} and {other} in the step"
            raise StatisticsError(where, reason, hint)
        fields: dict[str, Any] = {name: getattr(self, name) for name in type(self).model_fields}
        fields |= (
            dict.fromkeys((*self.how, *self.habits))
            | {"per": _per(axes)}
            | {name: numbers(value) for name, value in values.items()}
        )
        return type(self)(**fields)

    def apply(self, xp: Namespace, block: Array, region: Region) -> Array:
        dtype = float_dtype(np.dtype(block.dtype))
        axes = self._axes((None,) * len(region))
        shift, scale = self._operands(dtype)
        with quiet():
            out = block.astype(dtype)
            out -= _part(xp, shift, axes, region)
            out /= _part(xp, scale, axes, region)
        return out

    def express(self, array: ArraySpec) -> tree.Node:
        dtype, axes = float_dtype(array.dtype), self._axes(array.dims)
        shift, scale = (_parameter(values, axes) for values in self._operands(dtype))
        return tree.Call("/", (tree.Call("-", (tree.Cast(tree.Variable(), dtype), shift)), scale))

    @cached_property
    def arrays(self) -> _Derived:
        """The two parameters as float64 arrays; empty while they are not known."""
        given = {name: getattr(self, name) for name in self.parameters}
        return _Derived((name, np.asarray(value, np.float64)) for name, value in given.items() if value is not None)

    def __getstate__(self) -> dict[Any, Any]:
        state = super().__getstate__()
        state["__dict__"] = {name: value for name, value in state["__dict__"].items() if name != "arrays"}
        return state

    def _operands(self, dtype: np.dtype[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        if not self.arrays:
            raise StepError(f"{self.kind} has no statistics yet", "resolve the step first")
        shift, scale = self.operands(self.arrays)
        with quiet():
            return shift.astype(dtype), scale.astype(dtype)

    def _usable(self, values: Arrays, dtype: np.dtype[Any]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Which shifts and which scales can be computed with in `dtype`."""
        with quiet():
            shift, scale = (operand.astype(dtype) for operand in self.operands(values))
        return np.isfinite(shift), np.isfinite(scale) & (scale > 0)

    def _axes(self, dims: tuple[str | None, ...]) -> tuple[int, ...]:
        """The kept axes, ascending. StepError when `dims` has not got them."""
        wanted = () if self.per is None else self.per if isinstance(self.per, tuple) else (self.per,)
        axes = sorted(axis_of(self.kind, item, dims) for item in wanted)
        if len(set(axes)) < len(axes):
            raise StepError(f"{self.kind}: per names axis {next(a for a in axes if axes.count(a) > 1)} twice")
        return tuple(axes)

    def _check_shape(self, name: str, values: NDArray[np.float64], kept: tuple[int, ...]) -> None:
        """A single number fits every array; lists fit the kept axes. NumPy cannot tell the shapes of empty lists apart."""
        if values.ndim and values.shape != kept and (values.size or prod(kept)):
            wanted = f"one entry per index of per, shape {kept}" if kept else "a single number, or name the dimension in `per`"
            raise StepError(f"{self.kind}: `{name}` has shape {values.shape}", f"give {wanted}")

    def _reason(self, statistics: Any, values: Arrays, index: tuple[int, ...]) -> str:
        if not statistics.count[index]:
            return "it has no values (all are NaN, or it is empty)"
        if isinstance(statistics, WeightedMoments) and not statistics.weight[index]:
            return "all its values have the weight 0"
        low, high = float(statistics.minimum[index]), float(statistics.maximum[index])
        if not np.isfinite([low, high]).all():
            return "it holds infinite values"
        return self.unusable(low, high, {name: float(value[index]) for name, value in values.items()})


def float_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """In which values of `dtype` are shifted and scaled."""
    return np.dtype(np.float32 if dtype.name in _NARROW else np.float64)


def _part(xp: Namespace, values: NDArray[Any], axes: tuple[int, ...], region: Region) -> Array:
    """The values for `region`, shaped to broadcast against its block."""
    if not values.ndim:
        return values.dtype.type(values)
    if not values.size:
        values = values.reshape((0,) * len(axes))
    part = values[tuple(region[axis] for axis in axes)]
    sizes = iter(part.shape)
    return xp.asarray(part.reshape([next(sizes) if axis in axes else 1 for axis in range(len(region))]))


def _parameter(values: NDArray[Any], axes: tuple[int, ...]) -> tree.Parameter:
    """A single number fits every array; an empty list has no shape of its own."""
    if not values.ndim:
        return tree.Parameter(values)
    return tree.Parameter(values if values.size else values.reshape((0,) * len(axes)), axes)
