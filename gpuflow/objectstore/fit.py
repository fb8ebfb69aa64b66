"""Whether a source can follow what a dataset holds, along one dimension.

Pure. What does not fit is refused before anything is written: one error that lists all of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuflow.datasets.growth import Axis, check_numbers
from gpuflow.errors import ConfigError, Problem, SourceError
from gpuflow.storage.metadata import ArrayMetadata
from gpuflow.storage.record import DatasetRecord

_MEANING = ("units", "calendar", "scale_factor", "add_offset", "_FillValue", "missing_value", "classes")
"""Attributes that say what the stored numbers stand for: of CF, and of images in folders by class."""


def length_of(record: DatasetRecord, axes: Mapping[str, int]) -> int:
    """How long the dataset is along the dimension in which it grows. ConfigError when its arrays do not agree."""
    lengths = {path: record.array(path).shape[axis] for path, axis in axes.items()}
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{path}: {length}" for path, length in sorted(lengths.items()))
        raise ConfigError([Problem(f"the arrays of {record.name!r} are not equally long ({said})", "axis")])
    return next(iter(lengths.values()))


def check_fit(
    record: DatasetRecord, axis: Axis, axes: Mapping[str, int], location: str, arrays: Mapping[str, ArrayMetadata]
) -> int:
    """How many rows the source has for the dataset. ConfigError, naming the source, for all that does not fit."""
    problems, lengths = list[Problem](), dict[str, int]()
    for path, along in axes.items():
        metadata = record.array(path)
        check_numbers(record.name, path, metadata.grid, along)
        if metadata.dtype is None:
            kind = metadata.document["data_type"]
            problems.append(Problem(f"array {record.name}/{path} has data type {kind!r}, whose chunks cannot be cut"))
        elif path not in arrays:
            hint = "a source needs all arrays that grow together"
            problems.append(Problem(f"{location} has no array {path!r}, which would have to grow too", hint=hint))
        else:
            problems += _problems(path, metadata, arrays[path], along)
            lengths[path] = arrays[path].shape[along] if along < len(arrays[path].shape) else 0
    for path, metadata in arrays.items():
        if path not in record.arrays and isinstance(axis, str) and axis in metadata.dims:
            hint = f"leave it out with --array, or ingest it to another dataset than {record.name!r}"
            problems.append(Problem(f"{location} has an array {path!r} along `{axis}`, which the dataset has not", hint=hint))
    if not problems and len(set(lengths.values())) > 1:
        said = ", ".join(f"{path}: {length}" for path, length in sorted(lengths.items()))
        problems.append(Problem(f"the arrays of {location} are not equally long along `{axis}` ({said})"))
    if problems:
        head = Problem(f"{location} does not fit behind dataset {record.name!r}")
        raise ConfigError([head, *problems])
    length = next(iter(lengths.values()))
    if not length:
        raise SourceError(location, f"has nothing along `{axis}`", "leave it out")
    return length


def _problems(path: str, mine: ArrayMetadata, theirs: ArrayMetadata, along: int) -> list[Problem]:
    """What speaks against one array."""
    found = []

    def say(what: str, of_source: Any, of_dataset: Any, hint: str = "") -> None:
        found.append(Problem(f"array {path!r}: {what} is {of_source} in the source, and {of_dataset} in the dataset", hint=hint))

    if theirs.document["data_type"] != mine.document["data_type"]:
        say("the data type", theirs.document["data_type"], mine.document["data_type"], "convert the source")
    if len(theirs.shape) != len(mine.shape) or _without(theirs.shape, along) != _without(mine.shape, along):
        say("the shape", list(theirs.shape), list(mine.shape), f"only axis {along} may differ")
    elif any(a != b for a, b in zip(theirs.dims, mine.dims, strict=True) if a is not None and b is not None):
        say("the order of dimensions", list(theirs.dims), list(mine.dims), "transpose the source")
    for name in _MEANING:
        a, b = theirs.attributes.get(name), mine.attributes.get(name)
        if a != b and not (isinstance(a, float) and isinstance(b, float) and np.isnan(a) and np.isnan(b)):
            say(f"`{name}`", repr(a), repr(b), "the numbers would mean something else; convert the source")
    return found


def _without(shape: Sequence[int], axis: int) -> list[int]:
    return [size for number, size in enumerate(shape) if number != axis]


def check_follows(location: str, path: str, end: NDArray[Any], begin: NDArray[Any]) -> None:
    """SourceError when a coordinate does not go on in its direction. end: the last values of the dataset, at least one; begin: those of
    the source."""
    together = np.concatenate([end[-2:], begin])
    if together.dtype.kind not in "iufb" or len(together) < 2:
        return
    steps = np.diff(together.astype(np.float64) if together.dtype.kind in "fb" else together.astype(object))
    rising = steps[0] > 0
    wrong = [number for number, step in enumerate(steps) if not (step > 0 if rising else step < 0)]
    if wrong:
        place = wrong[0]
        at = together[place + 1].item()
        if place + 1 <= len(end[-2:]):
            reason = f"overlaps the dataset: its `{path}` goes on with {at}, after {together[place].item()}"
        else:
            reason = f"is not in order: in its `{path}` {at} follows {together[place].item()}"
        raise SourceError(location, reason, "append only what comes after; nothing was changed")
