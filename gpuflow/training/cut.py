"""What a sample is: which part of which arrays it takes.

Pure. Sample i begins at row `i * stride` of the first axis: one row of every array, or a window of rows, each `step` after the one before.
Along other axes all of it, or a crop, whose place is a function of (key, epoch, sample)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gpuflow.errors import ConfigError, Problem
from gpuflow.storage.metadata import ArrayMetadata
from gpuflow.storage.record import DatasetRecord
from gpuflow.training.keyed import key_of, uniform

Crop = Literal["random", "center"]


@dataclass(frozen=True)
class Part:
    """What samples take of one array. crops: (axis, name, its size, size of the crop); shape: of a sample, rows first when there is a
    window."""

    path: str
    metadata: ArrayMetadata
    dtype: np.dtype[Any]
    crops: tuple[tuple[int, str, int, int], ...]
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Of one sample."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


@dataclass(frozen=True)
class Cut:
    """How a dataset is cut into `count` samples. rows: of a window; None for a single row, without an axis for it."""

    parts: tuple[Part, ...]
    count: int
    rows: int | None
    stride: int
    step: int
    crop: Crop = "random"
    pieces: Mapping[str, int] = field(default_factory=dict)
    """Into what the rows of a window are divided, and how many each has; nothing when they stay together."""

    def offsets(self, key: int, epoch: int, samples: NDArray[np.int64]) -> dict[str, list[int]]:
        """Where the crops of `samples` begin, by the name of the axis."""
        found: dict[str, list[int]] = {}
        for _, name, size, wanted in sorted({crop for part in self.parts for crop in part.crops}, key=lambda crop: crop[1]):
            if self.crop == "center":
                found[name] = [(size - wanted) // 2] * len(samples)
            else:
                drawn = uniform(key_of("crop", key, epoch, name), samples)
                found[name] = (drawn * (size - wanted + 1)).astype(np.int64).tolist()
        return found

    def describe(self) -> str:
        """Equal for two that cut alike."""
        parts = [(part.path, part.crops, part.shape) for part in self.parts]
        return repr((parts, self.count, self.rows, self.stride, self.step, self.crop))


def cut(
    record: DatasetRecord,
    arrays: Sequence[str] | None,
    sample: Mapping[str, int] | None,
    *,
    stride: int = 1,
    step: int = 1,
    crop: Crop = "random",
    pieces: Mapping[str, int] | None = None,
) -> Cut:
    """arrays: patterns; by default all that are as long as the longest first axis of those with two or more axes. sample: rows of a
    window and sizes of crops, by the names of dimensions. ConfigError says what does not fit."""
    chosen = _select(record, arrays)
    _check_options(stride, step, crop)
    lengths = {path: metadata.shape[0] for path, metadata in chosen.items()}
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{path} has {length}" for path, length in sorted(lengths.items()))
        _refuse("arrays", f"the arrays differ in the length of their first axis: {shown}", "choose arrays= that are equally long")
    length = next(iter(lengths.values()))
    wanted = dict(sample or {})
    first = next((metadata.dims[0] for metadata in chosen.values() if metadata.dims[0] in wanted), None)
    rows = wanted.pop(first) if first is not None else None
    if rows is not None and rows < 1:
        _refuse(f"sample.{first}", f"a window of {rows} rows", "give 1 or more")
    parts = tuple(_part(path, metadata, wanted, rows) for path, metadata in chosen.items())
    known = sorted({str(dim) for metadata in chosen.values() for dim in metadata.dims if dim is not None})
    for name in sorted(wanted.keys() - set(known)):
        _refuse(
            f"sample.{name}", "is no dimension of these arrays", f"they have {', '.join(known) or 'dimensions without names'}"
        )
    _check_crops(parts)
    _check_pieces(pieces or {}, rows)
    span = ((rows or 1) - 1) * step + 1
    count = (length - span) // stride + 1 if length >= span else 0
    if not count:
        _refuse("sample", f"{record.name!r} has {length} rows, too few for one sample of {span}", "use a shorter window")
    return Cut(parts, count, rows, stride, step, crop, dict(pieces or {}))


def _select(record: DatasetRecord, arrays: Sequence[str] | None) -> dict[str, ArrayMetadata]:
    there = record.metadata
    if arrays is None:
        fields = {path: metadata for path, metadata in there.items() if len(metadata.shape) > 1} or there
        longest = max((metadata.shape[0] for metadata in fields.values() if metadata.shape), default=0)
        chosen = {
            path: metadata
            for path, metadata in there.items()
            if metadata.shape and metadata.shape[0] == longest and metadata.dtype is not None
        }
    else:
        patterns = [arrays] if isinstance(arrays, str) else list(arrays)
        for pattern in patterns:
            if not any(fnmatchcase(path, pattern) for path in there):
                _refuse("arrays", f"{record.name!r} has no array {pattern!r}", f"it has {', '.join(sorted(there)) or 'none'}")
        chosen = {path: metadata for path, metadata in there.items() if any(fnmatchcase(path, pattern) for pattern in patterns)}
    if not chosen:
        _refuse("arrays", f"{record.name!r} has no array to take samples of")
    for path, metadata in chosen.items():
        if metadata.dtype is None or not metadata.shape:
            what = "is a scalar" if not metadata.shape else f"has data type {metadata.document['data_type']!r}"
            _refuse("arrays", f"{path!r} {what}, which makes no samples", "choose other arrays=")
    return dict(sorted(chosen.items()))


def _part(path: str, metadata: ArrayMetadata, wanted: Mapping[str, int], rows: int | None) -> Part:
    crops, shape = [], [] if rows is None else [rows]
    for axis, (name, size) in enumerate(zip(metadata.dims[1:], metadata.shape[1:], strict=True), start=1):
        taken = wanted.get(name, size) if name is not None else size
        if not 1 <= taken <= size:
            _refuse(f"sample.{name}", f"{taken} of array {path!r}, which has {size} there", f"give 1 to {size}")
        if name is not None and taken != size:
            crops.append((axis, name, size, taken))
        shape.append(taken)
    assert metadata.dtype is not None
    return Part(path, metadata, metadata.dtype, tuple(crops), tuple(shape))


def _check_options(stride: int, step: int, crop: str) -> None:
    for name, value in (("stride", stride), ("step", step)):
        if value < 1:
            _refuse(name, f"is {value}", "give 1 or more")
    if crop not in ("random", "center"):
        _refuse("crop", f"{crop!r} is unknown", "use random or center")


def _check_crops(parts: Sequence[Part]) -> None:
    sizes: dict[str, int] = {}
    for part in parts:
        for _, name, size, _ in part.crops:
            if sizes.setdefault(name, size) != size:
                _refuse(
                    f"sample.{name}",
                    "has different sizes in these arrays, and crops of them do not match",
                    "choose other arrays=",
                )


def _check_pieces(pieces: Mapping[str, int], rows: int | None) -> None:
    if pieces and (rows is None or sum(pieces.values()) != rows or min(pieces.values()) < 1):
        shown = " + ".join(f"{name}: {count}" for name, count in pieces.items())
        _refuse(
            "split", f"{shown} of a window of {rows or 1} rows", "give pieces of 1 or more that add up to the rows of `sample`"
        )


def _refuse(path: str, message: str, hint: str = "") -> None:
    raise ConfigError([Problem(message, path, hint=hint)])
