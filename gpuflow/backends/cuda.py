"""CUDA through CuPy: memory, the queue of a slot, and chains of expression trees in one pass over the device's memory.

The result is NumPy's; `TOLERANCE_ULP` lists what may differ. This is the only module that imports cupy: import it where there is
a device."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuflow import settings
from gpuflow.backends import cuda_source
from gpuflow.backends.accelerator import Frames, Framing
from gpuflow.backends.block import Block, BlockKernel, Region, check, on_host
from gpuflow.backends.expression_tree import Node
from gpuflow.backends.layout import Layout, plan
from gpuflow.backends.operations import DType, Unfit
from gpuflow.backends.program import lower
from gpuflow.errors import DeviceFull

logger = logging.getLogger(__name__)

cupy: Any = import_module("cupy")
"""An optional library, unknown to the type checker; who imports this module knows that it is there."""

Array = Any
"""A CuPy array."""

_LIBRARY = "exp exp2 expm1 log log1p log2 log10 sin cos tan arcsin arccos arctan sinh cosh tanh arcsinh arccosh arctanh"
_LIBRARY += " cbrt arctan2 hypot logaddexp power"
TOLERANCE_ULP: dict[str, int] = dict.fromkeys(_LIBRARY.split(), 8)
"""Units in the last place of the operation's own dtype: CUDA's functions are within 1 to 4 of the exact value, NumPy's within 4.
All other operations are exact."""

_THREADS = 256  # of a block
_BLOCKS_PER_PROCESSOR = 16
OPTIONS = ("--std=c++17", "--fmad=false")  # NumPy rounds the product before it adds

NVCOMP_NAMES = {"zstd": "Zstd", "lz4": "LZ4", "gzip": "Gzip"}
"""nvCOMP's names of the codecs whose frames it decodes as they are."""
_ALIGNMENT = 16  # at most what nvCOMP asks of any codec's buffers


@lru_cache(maxsize=1)
def has_nvcomp() -> bool:
    """Whether it is there; said once where it is not."""
    return _can_import("nvidia.nvcomp", "chunks are decoded by the CPU, as there is no nvCOMP (%s): pip install 'gpuflow[cuda]'")


@lru_cache(maxsize=1)
def has_kvikio() -> bool:
    """The same of KvikIO."""
    return _can_import("kvikio", "files are read by the CPU, as there is no KvikIO (%s): pip install kvikio-cu13")


def _can_import(name: str, otherwise: str) -> bool:
    try:
        import_module(name)
    except ImportError as error:
        logger.warning(otherwise, error)
        return False
    return True


class Queue:
    """As `accelerator.Queue`: a stream, which CuPy uses within `with queue():`."""

    def __init__(self) -> None:
        self.stream = cupy.cuda.Stream(non_blocking=True)
        self._coders: dict[str, Any] = {}

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """CuPy's current stream meanwhile. DeviceFull when the device has no memory for what is asked."""
        try:
            with self.stream:
                yield
        except cupy.cuda.memory.OutOfMemoryError as error:
            free, whole = cupy.cuda.runtime.memGetInfo()
            raise DeviceFull(str(error), free, whole) from None

    def upload(self, host: Block) -> Array:
        """A copy on the device, C-contiguous; `host` may be used again after `wait`."""
        array = cupy.empty(host.shape, host.dtype)
        array.set(np.ascontiguousarray(host), stream=self.stream)
        return array

    def download(self, array: Array, out: Block) -> Block:
        """`out`, C-contiguous, filled from the device."""
        cupy.ascontiguousarray(array).get(stream=self.stream, out=out)
        self.wait()
        return out

    def decode(self, frames: Frames, stored: Block | Array) -> Array:
        """As `accelerator.Queue`: out of one copy of it and one batch by nvCOMP, waited for."""
        there = self.upload(stored) if on_host(stored) else stored
        out = cupy.empty(frames.count * frames.nbytes, np.uint8)
        if len(frames.places):
            self._decode_batch(frames, there, out)
        return cupy.ascontiguousarray(frames.arrange(out))

    def _decode_batch(self, frames: Frames, there: Array, out: Array) -> None:
        offsets, sizes, targets = (list(column) for column in zip(*frames.places, strict=True))
        wanted, coder = [frames.nbytes] * len(targets), self._coder(frames.codec)
        # From the sizes that are known: parsing the frames for theirs would make the host wait.
        config = coder.decompression_config(coder.compression_config(wanted))
        sources, places = self._arrays(there, offsets, sizes), self._arrays(out, targets, wanted)
        decoded = coder.decode(sources, out=places, decompression_config=config)
        self.wait()
        for number, size in zip(frames.numbers.tolist(), decoded.buffer_sizes, strict=True):
            if size != frames.nbytes:
                raise ValueError(f"inner chunk {number} decodes to {size} bytes instead of {frames.nbytes}")

    def encode(self, framing: Framing, array: Array) -> tuple[Array, NDArray[np.int64]]:
        """As `accelerator.Queue`: one batch by nvCOMP, waited for."""
        chunks, wanted = framing.split(array, cupy), [framing.nbytes] * framing.count
        coder, lead = self._coder(framing.codec), framing.lead_nbytes
        most = coder.get_max_comp_buffer_size(import_module("nvidia.nvcomp").as_array(chunks[: framing.nbytes], self.stream.ptr))
        row = -(-(lead + most) // _ALIGNMENT) * _ALIGNMENT
        room = cupy.empty(framing.count * row, np.uint8)
        sources = self._arrays(chunks, list(range(0, chunks.nbytes, framing.nbytes)), wanted)
        places = self._arrays(room, list(range(lead, room.nbytes, row)), [row - lead] * framing.count)
        encoded = coder.encode(sources, out=places, compression_config=coder.compression_config(wanted))
        self.wait()
        sizes = np.array(encoded.buffer_sizes, np.int64)
        return framing.pack(room, sizes, cupy), sizes

    def _coder(self, codec: str) -> Any:
        if codec not in self._coders:
            nvcomp = import_module("nvidia.nvcomp")
            raw = {"bitstream_kind": nvcomp.BitstreamKind.RAW, "device_id": cupy.cuda.Device().id, "cuda_stream": self.stream.ptr}
            self._coders[codec] = nvcomp.Codec(algorithm=NVCOMP_NAMES[codec], **raw)
        return self._coders[codec]

    def _arrays(self, buffer: Array, offsets: list[int], sizes: list[int]) -> Any:
        return import_module("nvidia.nvcomp").as_arrays(buffer, offsets, sizes, self.stream.ptr)

    def read_file(self, path: str, nbytes: int) -> Array:
        """As `accelerator.Queue`: by KvikIO, which reads past the page cache where the file system lets it."""
        self.wait()  # it reads on no stream
        array = cupy.empty(nbytes, np.uint8)
        with import_module("kvikio").CuFile(path, "r") as file:
            found = file.read(array)
        if found != nbytes:
            raise OSError(f"{path} has {found} bytes, not {nbytes}")
        return array

    def wait(self) -> None:
        """Until all that was put in is done; other threads run meanwhile."""
        self.stream.synchronize()


_threads = threading.local()


def own_queue() -> Queue:
    """The calling thread's."""
    if not hasattr(_threads, "queue"):
        _threads.queue = Queue()
    queue: Queue = _threads.queue
    return queue


class DeviceMemory:
    """Where the blocks of a memory tier lie, as `storage.tiers.Memory` has it. Filled on CuPy's current stream, and waited for: blocks are
    read on others."""

    def allocate(self, nbytes: int) -> Array:
        return cupy.empty(nbytes, np.uint8)

    def fill(self, piece: Array, block: Any) -> None:
        place = self.view(piece, block.shape, block.dtype)
        if on_host(block):
            place.set(block)
        else:
            place[...] = block
        cupy.cuda.get_current_stream().synchronize()

    def view(self, piece: Array, shape: tuple[int, ...], dtype: DType) -> Array:
        return piece[: prod(shape) * dtype.itemsize].view(dtype).reshape(shape)

    def to_host(self, piece: Array, shape: tuple[int, ...], dtype: DType) -> Block:
        found: Block = self.view(piece, shape, dtype).get()
        return found


class Cuda:
    """The current device, as `accelerator.Accelerator`."""

    def __init__(self, nbytes: int | None = None) -> None:
        """nbytes: the most that CuPy's pool takes of it."""
        self.memory = DeviceMemory()
        if nbytes is not None:
            cupy.get_default_memory_pool().set_limit(size=nbytes)

    def queue(self) -> Queue:
        return Queue()

    def pinned(self, nbytes: int) -> Block:
        return np.frombuffer(cupy.cuda.alloc_pinned_memory(nbytes), np.uint8, nbytes)

    def takes(self, kernel: Any, device: str) -> bool:
        return bool(kernel.on_device) if kernel is not None else device != "cpu"

    def has_codecs(self) -> bool:
        """By nvCOMP."""
        return has_nvcomp()

    def reads_files(self) -> bool:
        """By KvikIO, which has to be allowed."""
        return settings.direct_storage_is_allowed() and has_kvikio()

    def release(self) -> None:
        cupy.get_default_memory_pool().free_all_blocks()
        cupy.get_default_pinned_memory_pool().free_all_blocks()


class Compiled(BlockKernel):
    """A program as a CUDA kernel. Safe in threads; compiled on the first call, or loaded from CuPy's cache of what was compiled."""

    on_device = True

    def __init__(self, trees: tuple[Node, ...], dtypes: tuple[DType, ...]) -> None:
        """dtypes: what goes into the first tree, then what comes out of each. NotExpressible when it would not be exact."""
        self.program = cuda_source.guard(lower(trees, dtypes))
        self.dtypes = dtypes[0], dtypes[-1]
        self._axes = {axis for parameter in self.program.parameters for axis in parameter.axes}
        self._layout = lru_cache(maxsize=16)(self._plan)
        self._function = lru_cache(maxsize=4)(self._compile)
        cuda_source.element(self.program)

    def describe(self) -> str:
        """How it runs."""
        return "one pass by CUDA"

    def __call__(self, block: Block, region: Region, out: Block | None = None) -> Block:
        """A block on the device, C-contiguous, gives one there; `out` is for blocks of the host."""
        if on_host(block):
            return super().__call__(block, region, out)
        check(block, region, self.dtypes)
        block = cupy.ascontiguousarray(block)
        made: Block = cupy.empty(block.shape, self.dtypes[1])
        if block.size:
            self.compute(block, region, made)
        return made

    def _fill(self, out: Block, block: Block, region: Region) -> None:
        queue = own_queue()
        with queue():
            made = cupy.empty(block.shape, self.dtypes[1])
            self.compute(queue.upload(block), region, made)
            queue.download(made, out)

    def compute(self, x: Array, region: Region, out: Array) -> None:
        """On the current stream. x, out: C-contiguous on the device, not empty, apart from one another. Unfit when a value fails a check,
        which is waited for."""
        # Where a parameter does not vary, every part of a size is the same.
        kept = tuple((part.start or 0, part.stop) if axis in self._axes else (0, 0) for axis, part in enumerate(region))
        layout, parameters = self._layout(x.shape, kept)
        index = np.uint32 if x.size < 2**31 else np.uint64
        width = cuda_source.width(self.program)
        unfit = cupy.zeros(1, np.uint32)
        arguments = [index(x.size), index(layout.span), index(layout.period), np.int32(_together(layout, width)), unfit, x, out]
        processors = cupy.cuda.Device().attributes["MultiProcessorCount"]
        blocks = max(1, min(-(-x.size // (width * _THREADS)), processors * _BLOCKS_PER_PROCESSOR))
        self._function(layout.varying, np.dtype(index).itemsize)((blocks,), (_THREADS,), (*arguments, *parameters))
        if self.program.checks and int(unfit[0]):
            raise Unfit

    def _plan(self, shape: tuple[int, ...], kept: tuple[tuple[int, int], ...]) -> tuple[Layout, list[Array]]:
        """The layout, and its rows and values on the device."""
        parts = []
        for parameter in self.program.parameters:
            part = parameter.values[tuple(slice(*kept[axis]) for axis in parameter.axes)]
            parts.append((part, parameter.axes))
        layout = plan(shape, parts)
        parameters = [cupy.asarray(array) for pair in layout.parameters for array in pair]
        cupy.cuda.get_current_stream().synchronize()  # they are for all streams
        return layout, parameters

    def _compile(self, varying: bool, index_nbytes: int) -> Any:
        code = cuda_source.write(self.program, varying)
        module = cupy.RawModule(code=code, options=(*OPTIONS, f"-DINDEX=u{index_nbytes}"), backend="nvrtc")
        return module.get_function(cuda_source.ENTRY)


def _together(layout: Layout, width: int) -> bool:
    """Whether the elements of one load are neighbours in a row, and in a period of it."""
    return layout.span % width == 0 and layout.period % width == 0
