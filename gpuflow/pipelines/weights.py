"""How much values count in statistics: `weights: "cos(radians(lat))"`, an expression of coordinates, as xarray's `weighted` takes it.

Pure. What comes of it is a number for each place along the coordinates' dimensions, computed in float64 before anything runs, so that it
is these numbers that a kept result belongs to, and not the words."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuflow.pipelines.flow import Read
from gpuflow.pipelines.plan import ArrayPlan
from gpuflow.pipelines.slices import coordinate_of
from gpuflow.reductions.weighted import Weights
from gpuflow.steps.axes import axis_of
from gpuflow.steps.base import StepError, quiet
from gpuflow.steps.expression import parse
from gpuflow.steps.parameters import suggestion
from gpuflow.storage.metadata import ArrayMetadata
from gpuflow.storage.record import DatasetRecord

MOST_WEIGHTS = 2**17
"""They go along with every task: 1 MiB."""
_ROUNDING = 1e-6
"""Of the largest weight: the cosine of a pole's latitude, in radians of float32, is -4e-8."""

Parts = Mapping[str, tuple[int, int]]
"""Start and stop of the dimensions that are read in part."""


def paths_of(record: DatasetRecord, text: str) -> dict[str, str]:
    """The arrays that an expression names: of numbers along one named dimension each. StepError for one that is not."""
    found, flat = {}, {path: array for path, array in record.metadata.items() if len(array.shape) == 1}
    for name in parse(text, True).names:
        others = sorted((path for path in flat if path.rpartition("/")[2] == name), key=lambda path: (len(path), path))
        path = coordinate_of(record, name) or next(iter(others), None)
        if path is None:
            array = record.metadata.get(name)
            what = f"there is no coordinate `{name}`" if array is None else f"`{name}` has {len(array.shape)} dimensions, not one"
            raise StepError(what, suggestion(name, flat) if flat else "the dataset has no arrays of one dimension")
        _check(name, record.metadata[path])
        found[name] = path
    return found


def _check(name: str, array: ArrayMetadata) -> None:
    if array.dims[0] is None:
        raise StepError(f"the dimension of `{name}` has no name", "ingest the dataset with named dimensions")
    if array.dtype is None or array.dtype.kind not in "biuf":
        kind = array.document["data_type"] if array.dtype is None else array.dtype
        raise StepError(f"`{name}` has {kind} values, which are no numbers", "name a coordinate of numbers")
    if array.shape[0] > MOST_WEIGHTS:
        raise StepError(f"`{name}` has {array.shape[0]} values", f"weights may be of {MOST_WEIGHTS} places at most")


def weights_of(array: ArrayPlan, record: DatasetRecord, text: str, values: Mapping[str, NDArray[Any]], parts: Parts) -> Weights:
    """Of what the steps make of `array`. values: of the coordinates by their path. StepError for all that does not fit."""
    dims, along = array.specs[-1].dims, dict[str, tuple[int, NDArray[np.float64]]]()
    for name, path in paths_of(record, text).items():
        dim = record.metadata[path].dims[0]
        assert dim is not None, path
        axis = axis_of(f"`{name}`", dim, dims)
        along[name] = axis, _fitting(array, name, dim, values[path].astype(np.float64), parts)
    axes = tuple(sorted({axis for axis, _ in along.values()}))
    lengths = tuple(array.specs[-1].shape[axis] for axis in axes)
    if prod(lengths) > MOST_WEIGHTS:
        reason = f"`{text}` gives {prod(lengths)} weights"
        raise StepError(reason, f"at most {MOST_WEIGHTS} can be: use coordinates of fewer dimensions")
    spread = {
        name: np.broadcast_to(one.reshape([-1 if axis == of else 1 for axis in axes]), lengths)
        for name, (of, one) in along.items()
    }
    return Weights.of(text, axes, _checked(text, spread))


def _fitting(array: ArrayPlan, name: str, dim: str, values: NDArray[np.float64], parts: Parts) -> NDArray[np.float64]:
    """The part of a coordinate that is read. StepError unless each of its values is still at its place after the steps."""
    for path in array.flow.paths:
        source = array.sources[path]
        size = source.shape[source.dims.index(dim)] if dim in source.dims else len(values)
        if size != len(values):
            reason = f"`{name}` has {len(values)} values, and array {path!r} has {size} places along `{dim}`"
            raise StepError(reason, "name a coordinate of the same length")
    read = values[slice(*parts[dim])] if dim in parts else values
    for spec, node in zip(array.specs, array.flow.nodes, strict=True):
        size = spec.shape[spec.dims.index(dim)] if dim in spec.dims else len(read)
        if size != len(read) and not isinstance(node, Read):
            reason = f"a step makes {size} places along `{dim}` of the {len(read)} that `{name}` has values of"
            raise StepError(reason, "read a part by isel or sel of the source, and leave that dimension as it is")
    return read


def _checked(text: str, of: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    """The weights. StepError for one that is none, with the place where it is."""
    some, expression = next(iter(of.values())), parse(text, True)
    expression.dtype_with({name: one.dtype for name, one in of.items()})
    with quiet():
        found = np.broadcast_to(np.asarray(expression.evaluate_with(np, of), np.float64), some.shape)
    most = float(found.max(initial=0.0))
    found = np.where((found < 0) & (found >= -_ROUNDING * most), 0.0, found)
    wrong = ~np.isfinite(found) | (found < 0)
    if wrong.any():
        place = np.unravel_index(int(wrong.argmax()), wrong.shape)
        where = " and ".join(f"{name} is {one[place]:g}" for name, one in of.items())
        hint = f"weights are finite and not negative, as in maximum({text}, 0)"
        raise StepError(f"`{text}` gives {found[place]:g} where {where}", hint)
    if found.size and not found.any():
        raise StepError(f"`{text}` is 0 everywhere", "weights have to be above 0 somewhere")
    return found
