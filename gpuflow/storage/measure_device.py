"""What the CUDA device of this process decodes, for the codecs of gpuflow's own arrays: the copy to it counts."""

from __future__ import annotations

import logging
import time
from statistics import median

from gpuflow.backends.devices import why_no_cuda
from gpuflow.storage.buffers import Slot
from gpuflow.storage.codecs import ArrayCodec, Block
from gpuflow.storage.frames import batching
from gpuflow.storage.inner_chunks import inner_chunks
from gpuflow.storage.metadata import COMPRESSORS, ArrayMetadata

logger = logging.getLogger(__name__)

_REPEATS = 5


def device_decode_rates(field: Block) -> dict[str, float]:
    """Decoded GB/s of shards that hold `field`, by compressor; those that the device decodes, none without a device."""
    if why_no_cuda("cupy"):
        return {}
    from gpuflow.backends.cuda import has_decoder

    found: dict[str, float] = {}
    for name in COMPRESSORS if has_decoder() else ():
        inner = inner_chunks(field.shape, field.itemsize)
        codec = ArrayCodec(ArrayMetadata.create(field.shape, field.shape, field.dtype, compressor=name, inner_chunks=inner))
        try:
            rate = _rate(codec, field)
        except (ValueError, RuntimeError) as error:  # it is left to the CPU
            logger.warning("the device does not decode %s: %s", name, error)
            continue
        if rate is not None:
            found[name] = rate
    return found


def _rate(codec: ArrayCodec, field: Block) -> float | None:
    from gpuflow.backends.cuda import Queue, pinned

    make, slot, queue = batching(codec), Slot(pinned), Queue()
    encoded = memoryview(codec.encode(field, slot))
    stored = slot.stored.bytes(encoded.nbytes)
    stored[:] = encoded
    frames = make(stored) if make is not None else None
    if frames is None:
        return None
    with queue():
        queue.decode(frames, stored)  # the first one loads what nvCOMP needs
        seconds = []
        for _ in range(_REPEATS):
            began = time.perf_counter()
            queue.decode(frames, stored)
            queue.wait()
            seconds.append(time.perf_counter() - began)
    return field.nbytes / 1e9 / median(seconds)
