"""A directory of images as `image` (sample, y, x, channel), and `label` (sample) where sub-directories name classes.

The scan decodes every image once, in threads: a body that is cut short shows only so, and must not show first in a worker.
Afterwards sample number -> (file, tile) is a binary search, and reading decodes the files of one chunk only."""

from __future__ import annotations

import hashlib
import os
import pathlib
import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuflow.errors import SourceError
from gpuflow.objectstore.sources.base import Layout, array_of, chunk_shape, created
from gpuflow.objectstore.sources.image_files import Listing, Probe, is_image, is_transient, list_images, load, probe
from gpuflow.objectstore.sources.image_scan import ImageOptions, ImageScan, scan_images
from gpuflow.storage.codecs import ArrayCodec

IMAGE, LABEL = "image", "label"
_SCAN_THREADS = min(8, os.cpu_count() or 1)
_SCAN_BATCH = 4096
"""Files handed to the threads at once: futures of a million files would be a gigabyte."""
_CACHE_NBYTES = 256 * 2**20
"""Decoded images kept in a process while neighbouring chunks are cut from them; the largest that Pillow opens is 256 MiB."""


class ImageSource:
    """Samples are whole images of one shape, `tile`s cut from the top left row by row, or images fitted to `size`.

    tile, size: (height, width). color: rgb, gray (one channel) or keep (all images must have one mode). chunk_samples: samples in
    a chunk, by default as many as make about 4 MiB. skip_bad: leave unreadable images out, which else are an error."""

    linkable = False

    def __init__(
        self,
        location: str,
        tile: tuple[int, int] | None = None,
        size: tuple[int, int] | None = None,
        color: str = "rgb",
        chunk_samples: int | None = None,
        skip_bad: bool = False,
    ) -> None:
        self.location = location
        single = is_image(location) and not os.path.isdir(location)
        self._folder = os.path.dirname(location) if single else location
        self._options = ImageOptions(_pair(tile), _pair(size), color, chunk_samples, skip_bad)
        self._scanned: ImageScan | None = None
        self._lock = threading.RLock()
        self._decoded = _DecodedImages(_CACHE_NBYTES)

    def __getstate__(self) -> dict[str, Any]:
        scan = self._scan()
        paths = zlib.compress("\0".join(scan.files).encode("utf-8", "surrogateescape"))
        arrays = [zlib.compress(values.tobytes()) for values in (scan.counts, scan.labels)]
        rest = (scan.classes, scan.sample_shape, scan.dtype, scan.notes)
        return {"location": self.location, "options": self._options, "paths": paths, "arrays": arrays, "rest": rest}

    def __setstate__(self, state: dict[str, Any]) -> None:
        ImageSource.__init__(self, state["location"])
        self._options = state["options"]
        paths = tuple(zlib.decompress(state["paths"]).decode("utf-8", "surrogateescape").split("\0"))
        counts, labels = (np.frombuffer(zlib.decompress(data), dtype=np.int64) for data in state["arrays"])
        self._scanned = ImageScan(paths, counts, labels, *state["rest"])

    @property
    def options(self) -> Mapping[str, Any]:
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self._options).items()}

    def identity(self) -> str:
        """Location, options, and a digest of every image file's path, size and time."""
        listing = self._listing
        digest = hashlib.sha256(repr((listing.images, listing.stamps)).encode()).hexdigest()[:32]
        chosen = " ".join(f"{name}={value}" for name, value in asdict(self._options).items())
        return f"images {self.location} {chosen} files={digest}"

    def layout(self) -> Layout:
        return Layout({name: codec.metadata for name, codec in self._codecs.items()}, {"": {}}, self._scan().notes)

    def read(self, array: str, linear: int) -> bytes:
        """Encoded samples of chunk `linear`. SourceError when a file is gone or no longer what the scan saw."""
        codec: ArrayCodec = array_of(self._codecs, array)
        samples = codec.metadata.grid.region(linear)[0]
        scan = self._scan()
        numbers = np.arange(samples.start, samples.stop)
        files = np.searchsorted(self._offsets, numbers, side="right") - 1
        if array == LABEL:
            return bytes(codec.encode(scan.labels[files]))
        block = np.empty(codec.metadata.grid.extent(linear), dtype=codec.metadata.dtype)
        for file in np.unique(files).tolist():
            places = np.flatnonzero(files == file)
            first = int(numbers[places[0]] - self._offsets[file])
            block[places] = self._samples(scan, file, range(first, first + len(places)))
        return bytes(codec.encode(block))

    def path(self, array: str, linear: int) -> pathlib.Path | None:
        """None: the bytes are encoded anew."""
        codec: ArrayCodec = array_of(self._codecs, array)
        codec.metadata.grid.unravel(linear)
        return None

    def _samples(self, scan: ImageScan, file: int, tiles: range) -> list[NDArray[Any]]:
        """Tiles number `tiles` of a file; without a tile, its one sample."""
        name = scan.files[file]
        pixels = self._pixels(name)
        height, width, channels = scan.sample_shape
        per_row, per_column = pixels.shape[1] // width, pixels.shape[0] // height
        whole = self._options.tile is not None or pixels.shape[:2] == (height, width)
        as_scanned = per_row * per_column == int(scan.counts[file]) and pixels.shape[2] == channels
        if not whole or not as_scanned or pixels.dtype.name != scan.dtype:
            raise SourceError(os.path.join(self._folder, name), "has changed since the scan", hint="run the ingest again")
        places = [divmod(tile, per_row) for tile in tiles]
        return [pixels[row * height : (row + 1) * height, col * width : (col + 1) * width] for row, col in places]

    def _pixels(self, name: str) -> NDArray[Any]:
        """Kept only while tiles are cut: without a tile each image belongs to one chunk."""
        cached = self._decoded.get(name) if self._options.tile is not None else None
        if cached is not None:
            return cached
        path = os.path.join(self._folder, *name.split("/"))
        try:
            pixels = load(path, self._options.color, self._options.size)
        except Exception as error:  # Pillow's decoders raise anything; the scan has read this file
            if is_transient(error):
                raise
            raise SourceError(path, f"cannot be decoded any more: {error}", hint="run the ingest again") from error
        if self._options.tile is not None:
            self._decoded.put(name, pixels)
        return pixels

    @cached_property
    def _offsets(self) -> NDArray[np.int64]:
        """Number of the first sample of each file; one more than files."""
        return np.concatenate([[0], np.cumsum(self._scan().counts)]).astype(np.int64)

    @cached_property
    def _codecs(self) -> dict[str, ArrayCodec]:
        scan = self._scan()
        shape = (int(scan.counts.sum()), *scan.sample_shape)
        dtype = np.dtype(scan.dtype)
        samples = chunk_shape(shape, dtype.itemsize)[0] if self._options.chunk_samples is None else self._options.chunk_samples
        dims = ("sample", "y", "x", "channel")
        arrays = {IMAGE: created(shape, (samples, *scan.sample_shape), dtype, dims=dims)}
        if scan.classes:
            attributes = {"classes": list(scan.classes)}
            arrays[LABEL] = created(shape[:1], (samples,), np.dtype(np.int64), dims=("sample",), attributes=attributes)
        return {name: ArrayCodec(metadata) for name, metadata in arrays.items()}

    @cached_property
    def _listing(self) -> Listing:
        try:
            return list_images(self.location)
        except OSError as error:
            raise SourceError(self.location, f"cannot be listed: {error}") from error

    def _scan(self) -> ImageScan:
        with self._lock:
            if self._scanned is None:
                self._scanned = self._scan_now()
            return self._scanned

    def _scan_now(self) -> ImageScan:
        listing = self._listing
        if not listing.images:
            raise SourceError(self.location, "holds no image", hint="give a directory of images, or of a Zarr hierarchy")
        probes = dict(zip(listing.images, self._probes(listing.images), strict=True))
        return scan_images(self.location, probes, listing.others, self._options)

    def _probes(self, names: Sequence[str]) -> Iterator[Probe]:
        paths = [os.path.join(self._folder, *name.split("/")) for name in names]
        with ThreadPoolExecutor(_SCAN_THREADS, thread_name_prefix="gpuflow-scan") as pool:
            for start in range(0, len(paths), _SCAN_BATCH):
                yield from pool.map(probe, paths[start : start + _SCAN_BATCH])


class _DecodedImages:
    """The images decoded last, up to `limit_nbytes`, and always the last one. Thread-safe; two threads may decode one twice."""

    def __init__(self, limit_nbytes: int) -> None:
        self._limit_nbytes = limit_nbytes
        self._images: OrderedDict[str, NDArray[Any]] = OrderedDict()
        self._nbytes = 0
        self._lock = threading.Lock()

    def get(self, name: str) -> NDArray[Any] | None:
        with self._lock:
            if name in self._images:
                self._images.move_to_end(name)
            return self._images.get(name)

    def put(self, name: str, pixels: NDArray[Any]) -> None:
        with self._lock:
            if name in self._images:
                return
            self._images[name] = pixels
            self._nbytes += pixels.nbytes
            while self._nbytes > self._limit_nbytes and len(self._images) > 1:
                _, oldest = self._images.popitem(last=False)
                self._nbytes -= oldest.nbytes


def _pair(value: Sequence[int] | None) -> tuple[int, int] | None:
    return None if value is None else tuple(int(part) for part in value)  # type: ignore[return-value]
