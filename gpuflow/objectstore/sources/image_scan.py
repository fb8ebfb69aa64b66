"""From what each file holds to the samples: how many a file gives, their shape, dtype and class, and what is left out.

Pure: what the files hold is an argument."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import numpy as np
from numpy.typing import NDArray

from gpuflow.errors import ConfigError, Problem, SourceError
from gpuflow.objectstore.sources.image_files import Probe

_COLORS = ("rgb", "gray", "keep")
_NAMED = 5
"""Files that a note names before it says "..."."""
_CONVERTED = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "HSV"})
"""Pillow's modes of at most 8 bits that it converts to both RGB and L."""
_MODES: dict[str, tuple[str, int]] = {
    "1": ("bool", 1),
    "I;16": ("uint16", 1),
    "I": ("int32", 1),
    "F": ("float32", 1),
    "LA": ("uint8", 2),
    "La": ("uint8", 2),
    "PA": ("uint8", 2),
    "L": ("uint8", 1),
    "P": ("uint8", 1),
    "RGBA": ("uint8", 4),
    "RGBa": ("uint8", 4),
    "RGBX": ("uint8", 4),
    "CMYK": ("uint8", 4),
}
"""dtype and channels that NumPy gets from each of Pillow's modes; the others are three channels of uint8."""


@dataclass(frozen=True, slots=True)
class ImageOptions:
    """tile, size: (height, width) in pixels. ConfigError for what cannot be."""

    tile: tuple[int, int] | None = None
    size: tuple[int, int] | None = None
    color: str = "rgb"
    chunk_samples: int | None = None
    skip_bad: bool = False

    def __post_init__(self) -> None:
        problems = []
        for name, value in (("tile", self.tile), ("size", self.size)):
            if value is not None and (len(value) != 2 or min(value) < 1):
                problems.append(Problem(f"{value} is not (height, width) in pixels", name, hint="give two numbers of 1 or more"))
        if self.tile is not None and self.size is not None:
            problems.append(Problem("tile and size exclude each other", "tile", hint="leave one out"))
        if self.color not in _COLORS:
            near = get_close_matches(self.color, _COLORS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"one of {', '.join(_COLORS)}"
            problems.append(Problem(f"unknown color {self.color!r}", "color", hint=hint))
        if self.chunk_samples is not None and self.chunk_samples < 1:
            problems.append(Problem(f"{self.chunk_samples} is not a number of samples", "chunk_samples", hint="give 1 or more"))
        if problems:
            raise ConfigError(problems)


@dataclass(frozen=True, slots=True)
class ImageScan:
    """All that reading needs. `counts` (samples) and `labels`: one entry a file, int64."""

    files: tuple[str, ...]
    counts: NDArray[np.int64]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    sample_shape: tuple[int, int, int]
    dtype: str
    notes: tuple[str, ...]


def scan_images(location: str, probes: Mapping[str, Probe], others: Sequence[str], options: ImageOptions) -> ImageScan:
    """What the files in `probes` (by relative path, in order) make as a dataset; `others`: files that are no images.

    SourceError, naming files, when something is unreadable (unless skipped), does not fit together or gives no sample."""
    notes = _other_notes(others)
    good = _readable(location, probes, options, notes)
    mode = _common_mode(location, good, options.color, notes)
    counts = _tile_counts(location, good, options.tile, notes) if options.tile else dict.fromkeys(good, 1)
    first = next(iter(good.values()))
    if options.tile is None and options.size is None:
        _check_one_shape(location, good)
    height, width = options.tile or options.size or (first.height, first.width)
    dtype, channels = _MODES.get(mode, ("uint8", 3))
    files = tuple(name for name, count in counts.items() if count)
    classes = _classes(probes)
    numbers = {name: number for number, name in enumerate(classes)}
    return ImageScan(
        files,
        np.array([counts[name] for name in files], dtype=np.int64),
        np.array([numbers.get(_class_of(name), 0) for name in files], dtype=np.int64),
        classes,
        (height, width, channels),
        dtype,
        tuple(notes),
    )


def _readable(location: str, probes: Mapping[str, Probe], options: ImageOptions, notes: list[str]) -> dict[str, Probe]:
    unsupported = {name: found.unsupported for name, found in probes.items() if found.unsupported}
    if unsupported:
        notes.append(f"{_images(unsupported)} of a kind that Pillow does not read, left out: {_some(unsupported)}")
    bad = {name: found.bad for name, found in probes.items() if found.bad}
    if bad and not options.skip_bad:
        named = "; ".join(f"{name} ({reason})" for name, reason in bad.items())
        raise SourceError(location, f"{_images(bad)} cannot be read: {named}", hint="repair or remove them, or skip_bad")
    if bad:
        notes.append(f"{_images(bad)} cannot be read, left out: {_some(bad)}")
    good = {name: found for name, found in probes.items() if not found.bad and not found.unsupported}
    if not good:
        raise SourceError(location, "holds no image that can be read", hint="; ".join(notes))
    return good


def _common_mode(location: str, good: Mapping[str, Probe], color: str, notes: list[str]) -> str:
    """Pillow's mode of all samples. SourceError for what `color` cannot do; adds to `notes` what it loses."""
    narrowed = [name for name, found in good.items() if found.narrowed]
    if color == "keep":
        first = next(iter(good))
        other = next((name for name, found in good.items() if found.mode != good[first].mode), None)
        if other is not None:
            pair = f"{first} is {good[first].mode}, {other} is {good[other].mode}"
            raise SourceError(location, f"its images differ in mode: {pair}", hint="use color=rgb or color=gray")
        if narrowed:
            reason = f"{narrowed[0]} is 16-bit colour, of which Pillow reads 8 bits"
            raise SourceError(location, reason, hint="use color=rgb, or bring it as Zarr or .npy")
        return good[first].mode
    other_modes = [name for name, found in good.items() if found.mode not in _CONVERTED]
    if other_modes:
        reason = f"{_images(other_modes)} of mode {good[other_modes[0]].mode}, which is not 8-bit colour: {_some(other_modes)}"
        raise SourceError(location, reason, hint=f"color={color} cannot take them; use color=keep")
    if narrowed:
        notes.append(f"{_images(narrowed)} of 16-bit colour, upper 8 bits taken: {_some(narrowed)}")
    return "RGB" if color == "rgb" else "L"


def _check_one_shape(location: str, good: Mapping[str, Probe]) -> None:
    first = next(iter(good))
    shape = (good[first].height, good[first].width)
    other = next((name for name, found in good.items() if (found.height, found.width) != shape), None)
    if other is not None:
        pair = f"{first} is {shape[0]} x {shape[1]}, {other} is {good[other].height} x {good[other].width}"
        raise SourceError(location, f"its images differ in shape (y, x): {pair}", hint="give tile or size")


def _tile_counts(location: str, good: Mapping[str, Probe], tile: tuple[int, int], notes: list[str]) -> dict[str, int]:
    """Whole tiles in each file; adds to `notes` what is left out."""
    height, width = tile
    counts = {name: (found.height // height) * (found.width // width) for name, found in good.items()}
    small = [name for name, count in counts.items() if not count]
    if len(small) == len(counts):
        raise SourceError(location, f"no image holds a tile of {height} x {width}", hint="give a smaller tile, or size")
    if small:
        notes.append(f"{_images(small)} smaller than one tile, left out: {_some(small)}")
    pixels = sum(found.height * found.width for name, found in good.items() if counts[name])
    left = pixels - sum(counts.values()) * height * width
    if left:
        cut = [name for name, found in good.items() if counts[name] and (found.height % height or found.width % width)]
        notes.append(f"{_images(cut)} with a remainder at the right or bottom, {left / pixels:.1%} of all pixels, left out")
    return counts


def _class_of(name: str) -> str:
    """The first directory of a relative path; "." for a file in the root."""
    return name.split("/", 1)[0] if "/" in name else "."


def _classes(names: Collection[str]) -> tuple[str, ...]:
    """All classes, sorted; none when no image lies in a sub-directory. Of all files, so that it does not hang on the options."""
    return tuple(sorted({_class_of(name) for name in names})) if any("/" in name for name in names) else ()


def _other_notes(others: Sequence[str]) -> list[str]:
    if not others:
        return []
    endings = sorted({os.path.splitext(name)[1].lower() or "no extension" for name in others})
    return [f"{len(others)} other file{'s' if len(others) > 1 else ''} ignored ({', '.join(endings)})"]


def _images(names: Collection[str]) -> str:
    return f"{len(names)} image{'s' if len(names) > 1 else ''}"


def _some(names: Collection[str]) -> str:
    """The first few names, with their reasons where `names` maps to reasons."""
    reasons: Mapping[str, str] = names if isinstance(names, Mapping) else {}
    shown = [f"{name} ({reasons[name]})" if name in reasons else name for name in list(names)[:_NAMED]]
    return ", ".join([*shown, *(["..."] if len(names) > _NAMED else [])])
