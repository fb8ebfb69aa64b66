"""Measures what a store root's disk, the memory and the codecs of this machine can do.

Every figure is the median of at least three short repeats. The temporary files lie in the writer's staging folder and go, whatever
happens; their size follows the disk's rate, so that a slow one takes no longer than a fast one: about ten seconds in all."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

from gpuflow.errors import StoreError
from gpuflow.storage.buffers import Buffer, Slot
from gpuflow.storage.calibration import Calibration, CodecRates, keep
from gpuflow.storage.codecs import ArrayCodec
from gpuflow.storage.disk import drop_from_cache, store_errors, write_file
from gpuflow.storage.measure_chunks import chunk_seconds
from gpuflow.storage.measure_device import device_rates
from gpuflow.storage.metadata import COMPRESSORS, ArrayMetadata
from gpuflow.storage.node import NodeStore
from gpuflow.units import format_nbytes

_REPEATS = 3
_FILE_SECONDS = 0.25  # of one durable write: 3 repeats by 1 and by all writers, and as many reads, are about 4 s
_PROBE_NBYTES = 4 * 2**20  # at 5 MB/s, a slow disk, all of it is still about ten seconds
_LARGEST_NBYTES = 256 * 2**20
_ALL_NBYTES = 2**30  # of all writers together
_COPY_NBYTES = 64 * 2**20  # far beyond the caches
_SMALL_FILES = 15
_FIELD_SHAPE = (128, 128, 128)
"""8 MiB of float32, the size of a usual chunk."""


def calibrate(store: NodeStore, threads: int) -> Calibration:
    """Measure the node with `threads` writers, and keep the figures in its root. StoreError without room for the temporary files."""
    files = [Path(store.writer.temporary()) for _ in range(threads)]
    read_by_device = Path(store.writer.temporary())
    largest = max(_PROBE_NBYTES, min(_LARGEST_NBYTES, _ALL_NBYTES // threads))
    with store_errors(store.root):
        _check_room(store.root, largest * threads)
        try:
            with ThreadPoolExecutor(threads) as pool:
                disk = _Disk(files, largest, pool)
                one_write, one_read, cached = disk.rates(1)
                all_write, all_read, _ = (one_write, one_read, cached) if threads == 1 else disk.rates(threads)
            fsync_seconds, (atomic, durable) = _fsync_seconds(store), chunk_seconds(store)
            device = device_rates(representative_field(), read_by_device)
        finally:
            for path in (*files, read_by_device):
                with suppress(OSError):  # it goes with the writer's folder
                    path.unlink(missing_ok=True)
    measured = Calibration(
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        threads=threads,
        write_gb_s=one_write,
        threads_write_gb_s=all_write,
        read_gb_s=one_read,
        threads_read_gb_s=all_read,
        cache_read_gb_s=cached,
        copy_gb_s=_copy_rate(),
        fsync_seconds=fsync_seconds,
        chunk_seconds=atomic,
        durable_chunk_seconds=durable,
        codecs={name: _codec_rates(name) for name in COMPRESSORS if name != "none"},
        device_decode_gb_s=device.decode,
        device_encode_gb_s=device.encode,
        device_read_gb_s=device.read,
    )
    keep(store.root, measured)
    return measured


def _check_room(root: Path, nbytes: int) -> None:
    state = os.statvfs(root)
    free = state.f_bavail * state.f_frsize
    if free < 2 * nbytes:
        reason = f"measuring needs {format_nbytes(2 * nbytes)} free, and {format_nbytes(free)} are"
        raise StoreError(str(root), reason, "free some space; the temporary files are removed afterwards")


class _Disk:
    """Large files, written and read by one thread or by several. Their bytes are random: some file systems compress."""

    def __init__(self, files: list[Path], largest_nbytes: int, pool: ThreadPoolExecutor) -> None:
        self._files, self._pool = files, pool
        self._block = np.random.default_rng(0).integers(0, 256, _PROBE_NBYTES, dtype=np.uint8)
        self._buffers = [Buffer() for _ in files]
        self._nbytes = _PROBE_NBYTES
        self._write(0)  # the first file of a process finds cold caches
        rate = _PROBE_NBYTES / _seconds(lambda: self._write(0))
        blocks = round(min(rate * _FILE_SECONDS, largest_nbytes) / _PROBE_NBYTES)
        self._nbytes = max(1, blocks) * _PROBE_NBYTES

    def rates(self, threads: int) -> tuple[float, float, float]:
        """Durable write, read from the disk, read from the page cache: GB/s of `threads` threads together."""
        written, cold, warm = [], [], []
        for _ in range(_REPEATS):
            written.append(self._all(self._write, threads))
            for path in self._files[:threads]:
                drop_from_cache(path)
            cold.append(self._all(self._read, threads))
            warm.append(self._all(self._read, threads))
        total = threads * self._nbytes / 1e9
        return total / median(written), total / median(cold), total / median(warm)

    def _all(self, work: Callable[[int], None], threads: int) -> float:
        return _seconds(lambda: list(self._pool.map(work, range(threads))))

    def _write(self, number: int) -> None:
        path = self._files[number]
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            for _ in range(self._nbytes // _PROBE_NBYTES):
                view = self._block.data
                while len(view):
                    view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _read(self, number: int) -> None:
        """In pieces, into memory that is used again, as chunks are read."""
        buffer = self._buffers[number].bytes(_PROBE_NBYTES)
        descriptor = os.open(self._files[number], os.O_RDONLY)
        try:
            while os.readv(descriptor, [buffer.data]):
                pass
        finally:
            os.close(descriptor)


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return max(time.perf_counter() - began, 1e-9)


def _fsync_seconds(store: NodeStore) -> float:
    """Of a file of 4 KiB."""
    found = []
    for _ in range(_SMALL_FILES):
        path = Path(store.writer.temporary())
        try:
            write_file(path, bytes(4096), durable=False)
            descriptor = os.open(path, os.O_RDONLY)
            try:
                found.append(_seconds(lambda opened=descriptor: os.fsync(opened)))  # type: ignore[misc]
            finally:
                os.close(descriptor)
        finally:
            path.unlink(missing_ok=True)
    return median(found)


def _copy_rate() -> float:
    """Bytes copied, GB/s: each is read and written once."""
    source, target = np.ones(_COPY_NBYTES, dtype=np.uint8), np.zeros(_COPY_NBYTES, dtype=np.uint8)
    return _COPY_NBYTES / 1e9 / median(_seconds(lambda: np.copyto(target, source)) for _ in range(_REPEATS))


def representative_field() -> NDArray[np.float32]:
    """What measurements look like: a smooth float32 field with noise, given to one decimal. Shape _FIELD_SHAPE."""
    z, y, x = (np.linspace(0, 6, size) for size in _FIELD_SHAPE)
    smooth = 280 + 12 * np.sin(z)[:, None, None] * np.cos(y)[:, None] + 8 * np.sin(x)
    noise = np.random.default_rng(1).normal(0, 0.3, _FIELD_SHAPE)
    return np.asarray(np.round(smooth + noise, 1), dtype=np.float32)


def _codec_rates(name: str) -> CodecRates:
    """A compressor with the settings that outputs get, on one core."""
    field = representative_field()
    codec = ArrayCodec(ArrayMetadata.create(field.shape, field.shape, field.dtype, compressor=name))
    slot = Slot()
    encoded = bytes(codec.encode(field, slot))
    codec.decode(encoded, slot)
    encode = median(_seconds(lambda: codec.encode(field, slot)) for _ in range(_REPEATS))
    decode = median(_seconds(lambda: codec.decode(encoded, slot)) for _ in range(_REPEATS))
    return CodecRates(field.nbytes / encode / 1e9, field.nbytes / decode / 1e9, field.nbytes / len(encoded))
