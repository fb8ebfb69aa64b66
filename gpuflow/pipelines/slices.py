"""Which part of its dimensions a pipeline reads: `isel` by index, `sel` by the values of a coordinate, as xarray has them.

Pure. Labels become indices before anything is planned, so that a plan, a record and a recipe know indices only."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuflow.errors import ConfigError, Problem
from gpuflow.steps.axes import ByAxis
from gpuflow.steps.crop import Crop
from gpuflow.steps.parameters import StepError, describe, suggestion
from gpuflow.storage.metadata import ArrayMetadata
from gpuflow.storage.record import DatasetRecord

_CF = re.compile(
    r"\s*(second|minute|hour|day)s?\s+since\s+(\d{1,4})-(\d{1,2})-(\d{1,2})"
    r"(?:[T\s]+(\d{1,2}):(\d{1,2})(?::(\d{1,2})(?:\.\d*)?)?)?\s*(?:Z|UTC|[+-]?0?0:?00)?\s*",
    re.IGNORECASE,
)
_SECONDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}
_CALENDARS = ("standard", "gregorian", "proleptic_gregorian")


def index_range(value: Any) -> tuple[int | None, int | None]:
    """[start, stop], as Python's slices have them."""
    if isinstance(value, list | tuple) and len(value) == 2 and all(one is None or type(one) is int for one in value):
        return value[0], value[1]
    raise StepError(f"must be [start, stop], not {describe(value)}", "as in isel: {time: [0, 365]}; null leaves an end open")


def label_range(value: Any) -> tuple[Any, Any]:
    """[from, to], numbers or texts such as 2020-01-31, both of them included."""
    if isinstance(value, list | tuple) and len(value) == 2:
        return _label(value[0]), _label(value[1])
    raise StepError(f"must be [from, to], not {describe(value)}", "as in sel: {time: [2020-01-01, 2020-12-31]}")


def _label(value: Any) -> Any:
    if value is None or (isinstance(value, int | float | str) and not isinstance(value, bool)):
        return value
    if hasattr(value, "isoformat"):  # a date, as Python or YAML give it
        return value.isoformat()
    raise StepError(f"must be numbers or dates, not {describe(value)}", "as in sel: {y: [0, 45.5]}")


def coordinate_of(record: DatasetRecord, dim: str) -> str | None:
    """The array that has the values along a dimension: of this one dimension, and called like it; of a data type of a fixed size."""
    fitting = {path: array for path, array in record.metadata.items() if array.dims == (dim,) and array.dtype is not None}
    found = [path for path in fitting if path.rpartition("/")[2] == dim]
    return min(found, key=len, default=None)


def lengths(record: DatasetRecord, selected: Sequence[str], names: Sequence[str], section: str) -> dict[str, int]:
    """Of the dimensions `names` of the selected arrays. ConfigError for one that none has, or that has several lengths."""
    found: dict[str, set[int]] = {}
    for path in selected:
        array = record.metadata[path]
        for dim, size in zip(array.dims, array.shape, strict=True):
            if dim is not None:
                found.setdefault(dim, set()).add(size)
    problems = []
    for name in names:
        where = f"source.{section}.{name}"
        if name not in found:
            hint = (
                suggestion(name, found)
                if found
                else "their dimensions have no names: use a `crop` step, which takes axis numbers"
            )
            problems.append(Problem(f"the arrays have no dimension `{name}`", where, hint=hint))
        elif len(found[name]) > 1:
            sizes = " and ".join(map(str, sorted(found[name])))
            problems.append(Problem(f"dimension `{name}` has {sizes} places", where, hint="name arrays of one length"))
    if problems:
        raise ConfigError(problems)
    return {name: next(iter(found[name])) for name in names}


def ranges(
    record: DatasetRecord, selected: Sequence[str], wanted: Mapping[Any, tuple[int | None, int | None]]
) -> dict[str, tuple[int, int]]:
    """Start and stop of the dimensions that `isel` names. ConfigError for what lies outside, or is empty."""
    sizes, problems, found = lengths(record, selected, list(wanted), "isel"), [], {}
    for name, (start, stop) in wanted.items():
        size = sizes[name]
        outside = [one for one in (start, stop) if one is not None and not -size <= one <= size]
        first, last, _ = slice(start, stop).indices(size)
        if outside:
            reason, hint = f"`{name}` has {size} places, and {outside[0]} lies outside", f"give indices from 0 to {size}"
        elif first >= last:
            reason, hint = f"nothing is left of `{name}`, which has {size} places", "choose a start below the stop"
        else:
            found[name] = first, last
            continue
        problems.append(Problem(reason, f"source.isel.{name}", hint=hint))
    if problems:
        raise ConfigError(problems)
    return found


def crop_of(metadata: ArrayMetadata, wanted: Mapping[str, tuple[int, int]]) -> Crop | None:
    """The step that reads the part of an array; None when it has all of it."""
    to = ByAxis()
    for axis, (dim, size) in enumerate(zip(metadata.dims, metadata.shape, strict=True)):
        if dim is not None and wanted.get(dim, (0, size)) != (0, size):
            to[axis] = wanted[dim]
    return Crop(to=to) if to else None


def found_range(dim: str, labels: tuple[Any, Any], values: NDArray[Any], attributes: Mapping[str, Any]) -> tuple[int, int]:
    """Where along `dim` the coordinate's `values` lie between both labels. StepError when that cannot be said, or is nowhere."""
    rises, falls = (values[1:] > values[:-1]).all(), (values[1:] < values[:-1]).all()
    if not (rises or falls) or (values.dtype.kind == "f" and not np.isfinite(values).all()):
        raise StepError(f"coordinate `{dim}` neither rises nor falls all the way", "use isel, by index")
    if any(isinstance(label, str) for label in labels):
        values = _times(dim, values, attributes)
        low, high = _instant(labels[0], 0), _instant(labels[1], 1)
        within = np.ones(len(values), bool)
        within &= True if low is None else values >= low
        within &= True if high is None else values < high
    else:
        if values.dtype.kind not in "iuf":
            raise StepError(f"coordinate `{dim}` has {values.dtype}, which numbers do not name", "write dates, or use isel")
        given = [label for label in labels if label is not None]
        low, high = (min(given), max(given)) if len(given) == 2 else labels
        within = np.ones(len(values), bool)
        within &= True if low is None else values >= low
        within &= True if high is None else values <= high
    places = np.flatnonzero(within)
    if not len(places):
        span = f"it goes from {values[0]} to {values[-1]}" if len(values) else "it has no values"
        raise StepError(f"coordinate `{dim}` has no value from {labels[0]} to {labels[1]}", span)
    return int(places[0]), int(places[-1]) + 1


def _instant(label: Any, further: int) -> Any:
    """The beginning of the year, month, day, ... that a text names, or the one after it."""
    if label is None:
        return None
    try:
        instant = np.datetime64(str(label))
    except ValueError:
        raise StepError(f"{label!r} is not a date", "write 2020, 2020-01, 2020-01-31 or 2020-01-31T12:00") from None
    if np.isnat(instant):
        return None
    step = np.array(further, f"m8[{np.datetime_data(instant.dtype)[0]}]")
    return (instant + step).astype("M8[s]")


def _times(dim: str, values: NDArray[Any], attributes: Mapping[str, Any]) -> NDArray[Any]:
    """The coordinate as instants: as it is, or by the CF conventions (hours since 1900-01-01)."""
    if values.dtype.kind == "M":
        return values
    units, calendar = str(attributes.get("units", "")), str(attributes.get("calendar", "standard"))
    match = _CF.fullmatch(units)
    if values.dtype.kind not in "iuf" or match is None or calendar.lower() not in _CALENDARS:
        has = f"units {units!r} and the calendar {calendar!r}" if units else f"{values.dtype} without units"
        raise StepError(f"coordinate `{dim}` has {has}, which dates do not name", "write its own values, or use isel")
    year, month, day, hour, minute, second = (int(part or 0) for part in match.groups()[1:])
    try:
        since = np.datetime64(datetime(year, month, day, hour, minute, second), "s")
    except ValueError:
        raise StepError(f"coordinate `{dim}` has units {units!r}, which are no date", "use isel, by index") from None
    seconds = np.round(values.astype("f8") * _SECONDS[match[1].lower()])
    return np.asarray(since + seconds.astype("i8").astype("m8[s]"))
