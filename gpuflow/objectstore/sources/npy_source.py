"""A `.npy` file as one array, `data`, cut along its first axis.

The file is memory-mapped, so that a chunk costs the reading of its own pages. Pickled objects are never loaded."""

from __future__ import annotations

import os
import pathlib
import threading
from collections.abc import Mapping
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuflow.errors import ConfigError, NotFound, Problem, SourceError
from gpuflow.objectstore.sources.base import Layout, array_of, chunk_shape, created
from gpuflow.storage.codecs import ArrayCodec

ARRAY = "data"


class NpySource:
    """`chunk_samples`: items of the first axis in a chunk; by default as many as make about 4 MiB."""

    linkable = False

    def __init__(self, location: str, chunk_samples: int | None = None) -> None:
        if chunk_samples is not None and chunk_samples < 1:
            raise ConfigError([Problem(f"{chunk_samples} is not a number of samples", "chunk_samples", hint="give 1 or more")])
        self.location, self.chunk_samples = location, chunk_samples
        self._expected: Mapping[str, Any] | None = None
        self._lock = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        # The scheduler pickles it again, where the file need not be.
        expected = self._expected if self._expected is not None else self._codec.metadata.document
        return {"args": (self.location, self.chunk_samples), "expected": expected}

    def __setstate__(self, state: dict[str, Any]) -> None:
        NpySource.__init__(self, *state["args"])
        self._expected = state["expected"]

    @property
    def options(self) -> Mapping[str, Any]:
        return {"chunk_samples": self.chunk_samples}

    def identity(self) -> str:
        """Location, option, size and time of the file."""
        try:
            stat = os.stat(self.location)
        except FileNotFoundError:
            raise NotFound("source", self.location) from None
        return f"npy {self.location} chunk_samples={self.chunk_samples} nbytes={stat.st_size} mtime_ns={stat.st_mtime_ns}"

    def layout(self) -> Layout:
        return Layout({ARRAY: self._codec.metadata}, {"": {}})

    def read(self, array: str, linear: int) -> bytes:
        """Encoded bytes of rows `linear`. Fortran order costs strided reads over the whole file."""
        codec = self._checked(array)
        region = codec.metadata.grid.region(linear)
        dtype = codec.metadata.dtype
        return bytes(
            codec.encode(np.ascontiguousarray(self._data[region], dtype=dtype).reshape(codec.metadata.grid.extent(linear)))
        )

    def path(self, array: str, linear: int) -> pathlib.Path | None:
        """None: the bytes are encoded anew."""
        self._checked(array).metadata.grid.unravel(linear)
        return None

    def _checked(self, array: str) -> ArrayCodec:
        codec: ArrayCodec = array_of({ARRAY: self._codec}, array)
        return codec

    @property
    def _data(self) -> NDArray[Any]:
        with self._lock:
            return self._mapped

    @cached_property
    def _mapped(self) -> NDArray[Any]:
        try:
            if os.path.getsize(self.location) == 0:
                raise SourceError(self.location, "is an empty file", hint="write it again with numpy.save")
            data = np.load(self.location, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            raise NotFound("source", self.location) from None
        except (ValueError, EOFError, OSError, SyntaxError) as error:
            raise SourceError(self.location, f"cannot be read as .npy: {error}", hint=_hint(error)) from error
        if not isinstance(data, np.ndarray):
            raise SourceError(self.location, "is not one array", hint="save one array with numpy.save")
        return data

    @cached_property
    def _codec(self) -> ArrayCodec:
        data = self._data
        chunks = chunk_shape(data.shape, data.dtype.itemsize)
        if self.chunk_samples is not None:
            if not data.shape:
                raise ConfigError([Problem("a 0-d array has no samples", "chunk_samples", hint="leave it out")])
            chunks = (self.chunk_samples, *(max(1, size) for size in data.shape[1:]))
        if data.dtype.fields is not None or prod(data.dtype.shape) != 1:
            raise SourceError(
                self.location, f"has the structured dtype {data.dtype}", hint="save each field in a file of its own"
            )
        try:
            metadata = created(data.shape, chunks, data.dtype.newbyteorder("="))
        except ConfigError as error:
            raise SourceError(self.location, error.problems[0].message, hint=error.problems[0].hint) from error
        if self._expected is not None and metadata.document != self._expected:
            raise SourceError(self.location, "has changed since the scan", hint="run the ingest again")
        return ArrayCodec(metadata)


def _hint(error: Exception) -> str:
    return "save it with a plain numeric dtype" if "object" in str(error).lower() else "it may be truncated; write it again"
