"""What every source of data offers: a layout from a scan, and the encoded bytes of any stored object of it.

A source is opened in the client and read in worker processes: it pickles small, opens its handles there on first use, and is read
by several threads at once. Reading is a pure function of (array, linear): twice gives the same bytes, on every process."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import numpy as np

from gpuflow.errors import NotFound
from gpuflow.storage.inner_chunks import SMALLEST_NBYTES, inner_chunks
from gpuflow.storage.metadata import ArrayMetadata

CHUNK_NBYTES = 4 * 2**20
"""Decoded bytes of a chunk that a source lays out itself: at 1 GB/s of zstd a few ms, far above the cost of one task, and a ring
of them fits in any worker's memory."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The hierarchy that an ingest creates. Every group between the root and an array is in `groups`."""

    arrays: dict[str, ArrayMetadata]
    """Path in the hierarchy ("image", "era/t2m") -> metadata of the array to be created."""
    groups: dict[str, dict[str, Any]]
    """Path -> attributes; "" is the root."""
    notes: tuple[str, ...] = ()
    """What the user should know about what was left out or changed."""


class Source(Protocol):
    """Picklable; thread-safe after opening and after unpickling."""

    @property
    def location(self) -> str:
        """Absolute path, or URL."""
        ...

    @property
    def linkable(self) -> bool:
        """Whether `path` gives, for every chunk that is present, a local file with exactly the bytes of `read`."""
        ...

    @property
    def options(self) -> Mapping[str, Any]:
        """Plain data: with these, `open_source` opens the same at `location`."""
        ...

    def identity(self) -> str:
        """Text that is equal for equal location, options and (as far as is cheap to see) content."""
        ...

    def layout(self) -> Layout:
        """Scan (once an instance). SourceError when the source cannot be ingested as it is."""
        ...

    def read(self, array: str, linear: int) -> bytes | None:
        """Encoded bytes of stored object `linear`; None when it is absent, that is, fill value. IndexError off the grid."""
        ...

    def path(self, array: str, linear: int) -> pathlib.Path | None:
        """The local file with exactly the bytes of `read`; None when there is none."""
        ...


def chunk_shape(shape: tuple[int, ...], itemsize: int, nbytes: int = CHUNK_NBYTES) -> tuple[int, ...]:
    """Chunks of at most about `nbytes`, cut along the first axis; along the next ones only where one item is larger than that.

    Small items come in such numbers that a chunk can be cut into inner chunks of `SMALLEST_NBYTES`."""
    sizes = [max(1, size) for size in shape]
    fitting = [nbytes // max(1, prod(sizes[axis + 1 :]) * itemsize) for axis in range(len(sizes))]
    if sizes:
        together = -(-SMALLEST_NBYTES // (prod(sizes[1:]) * itemsize))
        fitting[0] -= fitting[0] % together if fitting[0] < sizes[0] else 0
    return tuple(max(1, min(size, count)) for size, count in zip(sizes, fitting, strict=True))


def created(shape: tuple[int, ...], chunks: tuple[int, ...], dtype: np.dtype[Any], **options: Any) -> ArrayMetadata:
    """Metadata of an array that is made here: its chunks are shards where they are large. options: those of `ArrayMetadata.create`."""
    return ArrayMetadata.create(shape, chunks, dtype, inner_chunks=inner_chunks(chunks, dtype.itemsize), **options)


def with_parents(groups: dict[str, dict[str, Any]], arrays: Iterable[str]) -> dict[str, dict[str, Any]]:
    """`groups`, and an empty group for each ancestor of a group or array that has none; sorted by path."""
    paths = {""}
    for path in (*groups, *arrays):
        parts = path.split("/")
        paths.update("/".join(parts[:depth]) for depth in range(1, len(parts)))
    complete: dict[str, dict[str, Any]] = {path: {} for path in paths} | groups
    return dict(sorted(complete.items()))


def array_of(arrays: dict[str, Any], name: str) -> Any:
    """`arrays[name]`, or NotFound that lists what there is."""
    try:
        return arrays[name]
    except KeyError:
        raise NotFound("array", name, known=sorted(arrays)) from None
