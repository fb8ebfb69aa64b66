"""The ceiling: a loop written by hand for one job, with nothing that a real engine needs (no manifest, no digests, no recovery).

pread into a reused buffer, numcodecs, one fused numba kernel with a half-precision intrinsic, temporary file and rename; one thread a
core over a shared list of chunks."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic


@intrinsic
def _half_bits(typingctx: Any, value: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(builder.fptrunc(arguments[0], ir.HalfType()), ir.IntType(16))

    return types.uint16(types.float32), codegen


@njit(nogil=True, error_model="numpy", cache=True)
def normalise_half(x: Any, mean: Any, std: Any, low: Any, high: Any, out: Any) -> None:
    """(x - mean) / std, clipped, as float16 bits. x: float32, out: uint16, flat."""
    for i in range(x.size):
        out[i] = _half_bits(min(max((x[i] - mean) / std, low), high))


@njit(nogil=True, error_model="numpy", cache=True)
def normalise_single(x: Any, mean: Any, std: Any, low: Any, high: Any, out: Any) -> None:
    """The same, as float32."""
    for i in range(x.size):
        out[i] = min(max((x[i] - mean) / std, low), high)


@njit(nogil=True, error_model="numpy", cache=True, fastmath={"reassoc", "contract"})
def sums(x: Any, shift: Any) -> tuple[float, float]:
    """Sum and sum of squares of x - shift, in float64."""
    total = 0.0
    squares = 0.0
    for i in range(x.size):
        d = np.float64(x[i]) - shift
        total += d
        squares += d * d
    return total, squares


def read_into(path: Path, buffer: np.ndarray) -> int:
    """All bytes of a file into `buffer`; their number."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.preadv(descriptor, [buffer], 0)
    finally:
        os.close(descriptor)


def write_over(path: Path, data: Any, durable: bool) -> None:
    """Temporary file, rename; with fsyncs when durable."""
    temporary = path.with_name(path.name + ".part")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.write(descriptor, data)
    if durable:
        os.fsync(descriptor)
    os.close(descriptor)
    os.rename(temporary, path)
    if durable:
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)


def over_chunks(chunks: int, threads: int, make_worker: Callable[[], Callable[[int], None]]) -> None:
    """Each chunk number once, on `threads` threads; `make_worker` makes a thread's function, with buffers of its own."""
    numbers = count()

    def work() -> None:
        one = make_worker()
        while (number := next(numbers)) < chunks:
            one(number)

    running = [threading.Thread(target=work) for _ in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()


def normalise(
    source: Path, target: Path, chunks: int, nbytes: int, codec: Any, *, half: bool, threads: int, durable: bool = False
) -> None:
    """The normalise job over `chunks` files of float32, `nbytes` each when decoded. codec: of numcodecs, or None."""
    mean, std, low, high = (np.float32(value) for value in (280.0, 12.0, -3.0, 3.0))

    def make_worker() -> Callable[[int], None]:
        stored, x = np.empty(nbytes + 4096, np.uint8), np.empty(nbytes // 4, np.float32)
        out = np.empty(nbytes // 4, np.uint16 if half else np.float32)
        kernel = normalise_half if half else normalise_single

        def one(number: int) -> None:
            size = read_into(source / str(number) / "0" / "0", stored)
            if codec is None:
                values = stored[:size].view(np.float32)
            else:
                codec.decode(stored[:size], x)
                values = x
            kernel(values, mean, std, low, high, out)
            write_over(target / str(number) / "0" / "0", out if codec is None else codec.encode(out.view(np.uint8)), durable)

        return one

    for number in range(chunks):
        (target / str(number) / "0").mkdir(parents=True, exist_ok=True)
    over_chunks(chunks, threads, make_worker)


def mean_and_std(source: Path, chunks: int, nbytes: int, codec: Any, *, threads: int) -> tuple[float, float]:
    """Mean and standard deviation over `chunks` files of float32."""
    parts: list[tuple[float, float]] = []

    def make_worker() -> Callable[[int], None]:
        stored, x = np.empty(nbytes + 4096, np.uint8), np.empty(nbytes // 4, np.float32)

        def one(number: int) -> None:
            size = read_into(source / str(number) / "0" / "0", stored)
            values = stored[:size].view(np.float32) if codec is None else codec.decode(stored[:size], x).view(np.float32)
            parts.append(sums(values, 280.0))

        return one

    over_chunks(chunks, threads, make_worker)
    total, squares = (sum(column) for column in zip(*parts, strict=True))
    size = chunks * nbytes // 4
    return 280.0 + total / size, float(np.sqrt(squares / size - (total / size) ** 2))
