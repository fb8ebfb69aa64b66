"""What the CUDA device of this process decodes, encodes and reads, for the codecs of gpuflow's own arrays; copies count.

What does not come back as it was is not measured, and so is left to the CPU."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from gpuflow.backends.accelerator import Accelerator, Queue
from gpuflow.backends.devices import why_no_cuda
from gpuflow.storage.buffers import Slot
from gpuflow.storage.codecs import ArrayCodec, Block
from gpuflow.storage.disk import digest, drop_from_cache, read_into, write_file
from gpuflow.storage.frames import batching
from gpuflow.storage.framing import framing
from gpuflow.storage.inner_chunks import inner_chunks
from gpuflow.storage.metadata import COMPRESSORS, ArrayMetadata

logger = logging.getLogger(__name__)

_REPEATS = 5


@dataclass(frozen=True)
class DeviceRates:
    """GB/s: decoded bytes by compressor, and of files, as `calibration.Calibration` has them."""

    decode: dict[str, float]
    encode: dict[str, float]
    read: dict[str, float]


def device_rates(field: Block, path: Path) -> DeviceRates:
    """Of shards that hold `field`, and of a file of it, made at `path`; nothing without a device."""
    if why_no_cuda("cupy"):
        return DeviceRates({}, {}, {})
    from gpuflow.backends.cuda import Cuda

    return rates_of(Cuda(), field, path)


def rates_of(accelerator: Accelerator, field: Block, path: Path) -> DeviceRates:
    """Of any device."""
    found = DeviceRates({}, {}, {})
    slot, queue = Slot(accelerator.pinned), accelerator.queue()
    with queue():
        for name in COMPRESSORS if accelerator.has_codecs() else ():
            inner = inner_chunks(field.shape, field.itemsize)
            metadata = ArrayMetadata.create(field.shape, field.shape, field.dtype, compressor=name, inner_chunks=inner)
            for kind, make in (("decode", _decoding), ("encode", _encoding)):
                try:
                    work = make(queue, ArrayCodec(metadata), field, slot)
                    if work is not None:
                        getattr(found, kind)[name] = field.nbytes / 1e9 / _seconds(work, queue)
                except (ValueError, RuntimeError) as error:  # it is left to the CPU
                    logger.warning("the device does not %s %s: %s", kind, name, error)
        for way, seconds in _reading(accelerator, queue, field, slot, path):
            found.read[way] = field.nbytes / 1e9 / seconds
    return found


def _seconds(work: Callable[[], object], queue: Queue) -> float:
    work()  # the first one loads what nvCOMP needs
    found = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        work()
        queue.wait()
        found.append(time.perf_counter() - began)
    return median(found)


def _decoding(queue: Queue, codec: ArrayCodec, field: Block, slot: Slot) -> Callable[[], object] | None:
    make = batching(codec)
    encoded = memoryview(codec.encode(field, slot))
    stored = slot.stored.bytes(encoded.nbytes)
    stored[:] = encoded
    frames = make(stored) if make is not None else None
    if frames is None:
        return None
    _same(queue.download(queue.decode(frames, stored), slot.decoded.array(field.shape, field.dtype)), field)
    return lambda: queue.decode(frames, stored)


def _encoding(queue: Queue, codec: ArrayCodec, field: Block, slot: Slot) -> Callable[[], object] | None:
    make = framing(codec)
    if make is None:
        return None
    batch, there = make(field.shape), queue.upload(field)

    def encode() -> Any:
        frames, sizes = queue.encode(batch, there)
        queue.download(frames, batch.place(sizes, slot.encoded))
        return batch.finish(sizes, slot.encoded)

    _same(codec.decode(encode(), slot), field)
    return encode


def _same(found: Block, field: Block) -> None:
    if not np.array_equal(found.view(np.uint8), field.view(np.uint8)):
        raise ValueError("what it gives is something else")


def _reading(accelerator: Accelerator, queue: Queue, field: Block, slot: Slot, path: Path) -> Iterator[tuple[str, float]]:
    """Seconds until a file that is not in the page cache is on the device, verified, by each way that there is."""
    if not accelerator.reads_files():
        return
    write_file(path, field.data.cast("B"))
    buffer = slot.stored

    def copied() -> None:
        data = read_into(path, field.nbytes, buffer)
        assert data is not None
        digest(data)
        queue.upload(np.frombuffer(data, np.uint8))

    def direct() -> None:
        digest(queue.download(queue.read_file(str(path), field.nbytes), buffer.bytes(field.nbytes)).data)

    for way, read in (("copied", copied), ("direct", direct)):
        seconds = []
        for _ in range(_REPEATS):
            drop_from_cache(path)
            began = time.perf_counter()
            read()
            queue.wait()
            seconds.append(time.perf_counter() - began)
        yield way, median(seconds)
