"""Which kind of source lies at a location. Decided by looking at it, never by its name alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit
from urllib.request import url2pathname

from gpuflow.errors import ConfigError, NotFound, Problem, SourceError
from gpuflow.objectstore.sources.base import Source

ZARR_MARKERS = ("zarr.json", ".zgroup", ".zarray", ".zmetadata")
_NPY_MAGIC = b"\x93NUMPY"
_SUPPORTED = "a source is a Zarr directory or URL, a .npy file, an image, or a directory of images"
_DEFAULTS: dict[str, Any] = {
    "tile": None,
    "size": None,
    "color": "rgb",
    "chunk_samples": None,
    "skip_bad": False,
    "arrays": None,
}
_OPTIONS = {
    "Zarr": ("arrays",),
    "npy": ("chunk_samples",),
    "image": ("tile", "size", "color", "chunk_samples", "skip_bad"),
}
Kind = Literal["Zarr", "npy", "image"]


def open_source(
    location: str | os.PathLike[str],
    *,
    tile: tuple[int, int] | None = None,
    size: tuple[int, int] | None = None,
    color: str = "rgb",
    chunk_samples: int | None = None,
    skip_bad: bool = False,
    arrays: Sequence[str] | None = None,
) -> Source:
    """The source at `location`: a path or a URL (which is Zarr). Nothing is scanned yet.

    tile, size: (height, width) in pixels; color: rgb, gray or keep; skip_bad: leave unreadable images out (all images).
    chunk_samples: items of the first axis in a chunk (images, npy). arrays: paths of arrays or groups to take (Zarr).
    NotFound when nothing is there; SourceError when it is nothing that can be ingested; ConfigError for an option that is wrong
    or does not apply."""
    options = {
        "tile": tile,
        "size": size,
        "color": color,
        "chunk_samples": chunk_samples,
        "skip_bad": skip_bad,
        "arrays": arrays or None,
    }
    text = os.fspath(location)
    if "://" in text and urlsplit(text).scheme != "file":
        return _open("Zarr", text, options)
    if "://" in text:
        text = url2pathname(urlsplit(text).path)
    path = os.path.abspath(os.path.expanduser(text))
    return _open(_kind(Path(path)), path, options)


def _kind(path: Path) -> Kind:
    if not path.exists():
        raise NotFound("source", str(path), hint="check the path; a remote source is a URL such as s3://bucket/data.zarr")
    if path.is_dir():
        return "Zarr" if any((path / marker).is_file() for marker in ZARR_MARKERS) else "image"
    if path.suffix == ".npy" or _starts_with(path, _NPY_MAGIC):
        return "npy"
    from gpuflow.objectstore.sources.image_files import is_image

    if is_image(path.name):
        return "image"
    raise SourceError(str(path), "is a file of a kind that gpuflow does not read", hint=_SUPPORTED)


def _starts_with(path: Path, magic: bytes) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(magic)) == magic
    except OSError as error:
        raise SourceError(str(path), f"cannot be read: {error}") from error


def _open(kind: Kind, location: str, options: dict[str, Any]) -> Source:
    given = {name: value for name, value in options.items() if value != _DEFAULTS[name]}
    hint = f"it takes {', '.join(_OPTIONS[kind])}; leave it out"
    problems = [
        Problem(f"does not apply to {location}, which is a source of kind {kind}", path=name, hint=hint)
        for name in given
        if name not in _OPTIONS[kind]
    ]
    if problems:
        raise ConfigError(problems)
    if kind == "Zarr":
        from gpuflow.objectstore.sources.zarr_source import ZarrSource

        return ZarrSource(location, **given)
    if kind == "npy":
        from gpuflow.objectstore.sources.npy_source import NpySource

        return NpySource(location, **given)
    from gpuflow.objectstore.sources.image_source import ImageSource

    return ImageSource(location, **given)
