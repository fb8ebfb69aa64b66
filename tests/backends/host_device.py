"""A device whose memory is so many bytes of the host's: what the lane does with one, by real threads and buffers, without CUDA.

An uploaded block is not copied: it is what the host's buffer holds when it is used, so that one which is used again too soon is seen."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuflow.backends.accelerator import Frames, Framing
from gpuflow.errors import DeviceFull
from gpuflow.storage.byte_codecs import BYTE_CODECS
from gpuflow.storage.tier_memory import HostMemory

LINKS = {
    "zstd": BYTE_CODECS["zstd"]({"level": 1}),
    "gzip": BYTE_CODECS["gzip"]({"level": 1}),
    "lz4": BYTE_CODECS["numcodecs.lz4"]({}),
}

_SECONDS = 0.005  # a batch takes, so that others come meanwhile


class HostDevice:
    """nbytes: of its memory. broken: calls that fail. counts: what was done, and `peak`: queues that were in use at once."""

    def __init__(self, nbytes: int = 2**40, broken: tuple[str, ...] = ()) -> None:
        self.memory, self.nbytes, self.broken = HostMemory(), nbytes, broken
        self.counts, self.used, self.lock = Counter[str](), 0, threading.Lock()
        self.in_use = 0

    def queue(self) -> HostQueue:
        return HostQueue(self)

    def pinned(self, nbytes: int) -> NDArray[np.uint8]:
        return np.empty(nbytes, np.uint8)

    def takes(self, kernel: Any, device: str) -> bool:
        return kernel is None or bool(kernel.fused)

    def has_codecs(self) -> bool:
        return True

    def reads_files(self) -> bool:
        return True

    def release(self) -> None:
        self.counts["released"] += 1

    def take(self, nbytes: int) -> None:
        with self.lock:
            if self.used + nbytes > self.nbytes:
                raise DeviceFull(f"the device is full: {nbytes} bytes", self.nbytes - self.used, self.nbytes)
            self.used += nbytes

    def count(self, what: str) -> None:
        with self.lock:
            self.counts[what] += 1
        if what in self.broken:
            raise RuntimeError(f"{what} is broken")


class HostQueue:
    """As `accelerator.Queue`. What was put on the device is there until the end of `with queue():`."""

    def __init__(self, device: HostDevice) -> None:
        self.device, self.taken = device, 0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        device = self.device
        with device.lock:
            device.in_use += 1
            device.counts["peak"] = max(device.counts["peak"], device.in_use)
        try:
            yield
        finally:
            with device.lock:
                device.in_use -= 1
                device.used -= self.taken
            self.taken = 0

    def empty(self, nbytes: int) -> NDArray[np.uint8]:
        self.device.take(nbytes)
        self.taken += nbytes
        return np.empty(nbytes, np.uint8)

    def upload(self, host: NDArray[Any]) -> NDArray[Any]:
        self.empty(host.nbytes)
        self.device.count("upload")
        return host

    def download(self, array: NDArray[Any], out: NDArray[Any]) -> NDArray[Any]:
        out[...] = array
        return out

    def decode(self, frames: Frames, stored: NDArray[np.uint8]) -> NDArray[Any]:
        self.device.count("decode")
        out = self.empty(frames.count * frames.nbytes)
        time.sleep(_SECONDS)
        for offset, size, place in frames.places:
            frame = stored[offset : offset + size]
            if frames.codec == "lz4":
                frame = np.concatenate([np.frombuffer(np.uint32(frames.nbytes).tobytes(), np.uint8), frame])
            LINKS[frames.codec].decode_into(frame, out[place : place + frames.nbytes])
        return np.ascontiguousarray(frames.arrange(out))

    def encode(self, framing: Framing, array: NDArray[Any]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        self.device.count("encode")
        chunks = framing.split(array, np).reshape(framing.count, framing.nbytes)
        found = [np.frombuffer(LINKS[framing.codec].encode(chunk), np.uint8) for chunk in chunks]
        made = [frame[4:] if framing.codec == "lz4" else frame for frame in found]
        row = -(-(framing.lead_nbytes + max(len(frame) for frame in made)) // 16) * 16
        room = self.empty(framing.count * row).reshape(framing.count, row)
        room[...] = 0xAA
        for place, frame in zip(room, made, strict=True):
            place[framing.lead_nbytes : framing.lead_nbytes + len(frame)] = frame
        sizes = np.array([len(frame) for frame in made], np.int64)
        return framing.pack(room, sizes, np), sizes

    def read_file(self, path: str, nbytes: int) -> NDArray[np.uint8]:
        self.device.count("read_file")
        found = np.frombuffer(Path(path).read_bytes(), np.uint8)
        if len(found) != nbytes:
            raise OSError(f"{path} has {len(found)} bytes, not {nbytes}")
        self.empty(nbytes)
        return found

    def wait(self) -> None:
        """All is done already."""
