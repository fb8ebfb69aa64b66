"""Subtract the mean and divide by the standard deviation, of the whole array or of each channel.

The statistics are over the whole array, never over a chunk. Computed in the dtype that comes out."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from math import prod
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import PlainValidator, model_validator

from gpuflow.backends import expression_tree as tree
from gpuflow.errors import StatisticsError
from gpuflow.reductions.moments import Moments
from gpuflow.steps.base import Array, ArraySpec, Elementwise, MomentsRequest, Namespace, Region, StepError, quiet
from gpuflow.steps.parameters import describe, numbers

_NARROW = ("bool", "int8", "uint8", "int16", "uint16", "float16", "float32")
"""dtypes whose every value float32 holds exactly; the others are standardized in float64."""


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


def _std(value: Any) -> Any:
    value = None if value is None else numbers(value)
    if value is not None and not np.all(np.asarray(value) > 0):
        raise ValueError("must be greater than 0 everywhere")
    return value


class _Derived(dict[str, NDArray[np.float64]]):
    """What follows from a step's fields, and so says nothing about whether two steps are equal: pydantic compares it too."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Derived)

    __hash__ = None


class Standardize(Elementwise, frozen=True):
    """`per`: the dimensions (names, or axis numbers) whose indices keep statistics of their own, such as the channel.

    `mean` and `std`: both or neither; a number, or nested lists with one entry per index of `per`, in the order of the
    array's axes. Out: float32 for narrow dtypes, else float64."""

    kind: ClassVar[str] = "standardize"
    shorthand: ClassVar[tuple[str, ...]] = ("per",)

    per: Annotated[Any, PlainValidator(_per)] = None
    mean: Annotated[Any, PlainValidator(lambda value: None if value is None else numbers(value))] = None
    std: Annotated[Any, PlainValidator(_std)] = None

    @model_validator(mode="after")
    def _both_or_neither(self) -> Standardize:
        if (self.mean is None) != (self.std is None):
            given, missing = ("mean", "std") if self.std is None else ("std", "mean")
            raise StepError(f"`{given}` is given without `{missing}`", "give both, or neither to take them from the data")
        return self

    def check(self, array: ArraySpec) -> ArraySpec:
        if array.dtype.kind not in "biuf":
            raise StepError(f"standardize works on real numbers, not on {array.dtype}", "put a map step such as abs(x) before it")
        kept = tuple(array.shape[axis] for axis in self._axes(array.dims))
        dtype = _output_dtype(array.dtype)
        for name, values in self.arrays.items():
            _check_shape(name, values, kept)
            with quiet():
                narrow = values.astype(dtype)
            if not np.isfinite(narrow).all() or (name == "std" and not (narrow > 0).all()):
                message = f"standardize: `{name}` does not fit {dtype}, in which {array.dtype} is standardized"
                raise StepError(message, "put cast: float64 before it")
        return replace(array, dtype=dtype)

    def needs(self, array: ArraySpec) -> MomentsRequest | None:
        return MomentsRequest(self._axes(array.dims)) if self.mean is None else None

    def bind(self, array: ArraySpec) -> Standardize:
        return self.model_copy(update={"per": _per(self._axes(array.dims))})

    def resolve(self, array: ArraySpec, moments: Moments, where: str) -> Standardize:
        axes, dtype = self._axes(array.dims), _output_dtype(array.dtype)
        mean, std = moments.mean, moments.std
        with quiet():
            usable = np.isfinite(mean.astype(dtype)) & np.isfinite(std.astype(dtype)) & (std.astype(dtype) > 0)
        usable &= moments.count > 0
        if not usable.all():
            index = tuple(int(position) for position in np.argwhere(~usable)[0])
            names = [f"{array.dims[axis] or f'axis {axis}'} {position}" for axis, position in zip(axes, index, strict=True)]
            reason = f"cannot standardize {', '.join(names) or 'the array'}: {_reason(moments, index)}"
            others = int((~usable).sum()) - 1
            reason += f" ({others} more like it)" if others else ""
            raise StatisticsError(
                where, reason, "leave it out, standardize over more of the array, or give mean and std in the step"
            )
        return Standardize(per=_per(axes), mean=numbers(mean), std=numbers(std))

    def apply(self, xp: Namespace, block: Array, region: Region) -> Array:
        dtype = _output_dtype(np.dtype(block.dtype))
        axes = self._axes((None,) * len(region))
        if self.mean is None:
            raise StepError("standardize has no statistics yet", "resolve the step first")
        with quiet():
            out = block.astype(dtype)
            out -= _part(xp, self.arrays["mean"], axes, region, dtype)
            out /= _part(xp, self.arrays["std"], axes, region, dtype)
        return out

    def express(self, array: ArraySpec) -> tree.Node:
        dtype, axes = _output_dtype(array.dtype), self._axes(array.dims)
        if self.mean is None:
            raise StepError("standardize has no statistics yet", "resolve the step first")
        with quiet():
            mean, std = (_parameter(self.arrays[name].astype(dtype), axes) for name in ("mean", "std"))
        return tree.Call("/", (tree.Call("-", (tree.Cast(tree.Variable(), dtype), mean)), std))

    @cached_property
    def arrays(self) -> _Derived:
        """mean and std as float64 arrays; empty while they are not known."""
        given = {"mean": self.mean, "std": self.std}
        return _Derived((name, np.asarray(value, np.float64)) for name, value in given.items() if value is not None)

    def __getstate__(self) -> dict[Any, Any]:
        state = super().__getstate__()
        state["__dict__"] = {name: value for name, value in state["__dict__"].items() if name != "arrays"}
        return state

    def _axes(self, dims: tuple[str | None, ...]) -> tuple[int, ...]:
        """The kept axes, ascending. StepError when `dims` has not got them."""
        wanted = () if self.per is None else self.per if isinstance(self.per, tuple) else (self.per,)
        axes = sorted(_axis(item, dims) for item in wanted)
        if len(set(axes)) < len(axes):
            raise StepError(f"standardize: per names axis {next(a for a in axes if axes.count(a) > 1)} twice")
        return tuple(axes)


def _axis(item: str | int, dims: tuple[str | None, ...]) -> int:
    if isinstance(item, int):
        if not -len(dims) <= item < len(dims):
            raise StepError(f"standardize: there is no axis {item}", f"the array has {len(dims)} axes, numbered from 0")
        return item % len(dims)
    if dims.count(item) != 1:
        named = ", ".join(f"`{name}`" for name in dims if name is not None)
        problem = "two dimensions are called" if item in dims else "there is no dimension"
        hint = f"its dimensions are {named}" if named else "its dimensions have no names"
        raise StepError(f"standardize: {problem} `{item}`", f"{hint}; an axis number from 0 to {len(dims) - 1} works too")
    return dims.index(item)


def _output_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(np.float32 if dtype.name in _NARROW else np.float64)


def _check_shape(name: str, values: NDArray[np.float64], kept: tuple[int, ...]) -> None:
    """A single number fits every array; lists fit the kept axes. NumPy cannot tell the shapes of empty lists apart."""
    if values.ndim and values.shape != kept and (values.size or prod(kept)):
        wanted = f"one entry per index of per, shape {kept}" if kept else "a single number, or name the dimension in `per`"
        raise StepError(f"standardize: `{name}` has shape {values.shape}", f"give {wanted}")


def _part(xp: Namespace, values: NDArray[Any], axes: tuple[int, ...], region: Region, dtype: np.dtype[Any]) -> Array:
    """The values for `region`, shaped to broadcast against its block."""
    if not values.ndim:
        return dtype.type(values)
    if not values.size:
        values = values.reshape((0,) * len(axes))
    part = values[tuple(region[axis] for axis in axes)].astype(dtype)
    sizes = iter(part.shape)
    return xp.asarray(part.reshape([next(sizes) if axis in axes else 1 for axis in range(len(region))]))


def _parameter(values: NDArray[Any], axes: tuple[int, ...]) -> tree.Parameter:
    """A single number fits every array; an empty list has no shape of its own."""
    if not values.ndim:
        return tree.Parameter(values)
    return tree.Parameter(values if values.size else values.reshape((0,) * len(axes)), axes)


def _reason(moments: Moments, index: tuple[int, ...]) -> str:
    if not moments.count[index]:
        return "it has no values (all are NaN, or it is empty)"
    low, high = float(moments.minimum[index]), float(moments.maximum[index])
    if not np.isfinite([low, high]).all():
        return "it holds infinite values"
    if low == high:
        return f"every value is {low!r}, so its standard deviation is 0"
    return f"its mean {float(moments.mean[index])!r} or standard deviation {float(moments.std[index])!r} is out of range"
