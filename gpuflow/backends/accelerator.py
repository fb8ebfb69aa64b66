"""What the passage of chunks asks of a worker's device, whatever that is: memory, queues, and the codecs that it has.

`backends.cuda` has the one of CUDA; the tests have one over the host's memory, which goes the same way."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gpuflow.backends.block import Block

Array = Any
"""A block in the device's memory: of CuPy, or of another library that has NumPy's functions."""


class Frames(Protocol):
    """What is decoded in one batch; see `storage.frames.Frames`."""

    @property
    def codec(self) -> str: ...

    @property
    def nbytes(self) -> int: ...

    @property
    def numbers(self) -> NDArray[np.int64]: ...

    @property
    def count(self) -> int: ...

    @property
    def places(self) -> list[tuple[int, int, int]]: ...

    def arrange(self, decoded: Array) -> Array: ...


class Framing(Protocol):
    """What is encoded in one batch; see `storage.framing.Framing`."""

    @property
    def codec(self) -> str: ...

    @property
    def nbytes(self) -> int: ...

    @property
    def count(self) -> int: ...

    @property
    def lead_nbytes(self) -> int: ...

    def split(self, array: Array, xp: Any) -> Array: ...

    def pack(self, room: Array, sizes: NDArray[np.int64], xp: Any) -> Array: ...


class Queue(Protocol):
    """What is put into it is done in order, beside what is in others: copies, kernels and codecs of one slot.

    `with queue():` has kernels use it. A queue belongs to one thread at a time; what comes out of `download` and `wait` is done."""

    def __call__(self) -> AbstractContextManager[None]:
        """DeviceFull when the device has no memory for what is asked meanwhile."""
        ...

    def upload(self, host: Block) -> Array:
        """A copy on the device, C-contiguous; `host` may be used again after `wait`."""
        ...

    def download(self, array: Array, out: Block) -> Block:
        """`out`, C-contiguous, filled from the device."""
        ...

    def decode(self, frames: Frames, stored: Block | Array) -> Array:
        """The shard that is `stored`, on the host or the device already, in one batch. ValueError when a frame does not decode to what it
        should; RuntimeError when the decoder cannot go on."""
        ...

    def encode(self, framing: Framing, array: Array) -> tuple[Array, NDArray[np.int64]]:
        """The frames of the shard that `array` becomes, one after the other as `framing.pack` has them, still on the device; and how many
        bytes each has. RuntimeError when the encoder cannot go on."""
        ...

    def read_file(self, path: str, nbytes: int) -> Array:
        """The file's content, read by the device itself. OSError when it cannot be read, or is shorter."""
        ...

    def wait(self) -> None:
        """Until all that was put in is done; other threads run meanwhile."""
        ...


class Accelerator(Protocol):
    """A worker's device. memory: for decoded chunks that stay there, as `storage.tier_memory.Memory`."""

    memory: Any

    def queue(self) -> Queue: ...

    def pinned(self, nbytes: int) -> Block:
        """Memory of the host, which the device copies from and to by itself."""
        ...

    def takes(self, kernel: Any, device: str) -> bool:
        """Whether chunks can lie in its memory for `kernel`, a `steps.fuse.Kernel`; for None, if steps on `device` can."""
        ...

    def has_codecs(self) -> bool:
        """Whether it decodes and encodes."""
        ...

    def reads_files(self) -> bool:
        """Whether it reads files by itself, and was allowed to."""
        ...

    def release(self) -> None:
        """Give back memory that nobody uses."""
        ...
