"""Which device steps run on, and what compiles them for it. `auto` may fall back, and says so; what is named never does."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from functools import lru_cache, partial
from importlib.util import find_spec
from typing import Any, Literal, Protocol

from numpy.typing import NDArray

from gpuflow.backends.devices import CudaDevice, Library, cuda_devices, why_no_cuda, why_no_device, why_no_library
from gpuflow.backends.expression_tree import Node
from gpuflow.backends.operations import DType
from gpuflow.errors import ConfigError, DeviceUnavailable, Problem

logger = logging.getLogger(__name__)

Backend = Literal["numba", "torch", "torch.compile"]


class Compiled(Protocol):
    """A chain of trees, compiled by one of the backends. Safe in threads."""

    @property
    def on_device(self) -> bool:
        """Whether it takes blocks that lie on a CUDA device, as CuPy arrays, and gives them."""

    def describe(self) -> str:
        """How it runs, for the plan."""

    def __call__(self, block: NDArray[Any], region: tuple[slice, ...], out: NDArray[Any] | None = None) -> NDArray[Any]:
        """block: the part `region` of the array, of any strides; out: C-contiguous, or None for a new one; may be `block`.

        Unfit when a value fails a check; `block` is then as it was."""


_ON_CUDA: dict[Backend, Library] = {"numba": "cupy", "torch": "torch", "torch.compile": "torch"}
"""The library by which what a backend compiles runs on a CUDA device: see `compiler`."""
_REMEDY = "use device: auto or cpu"


def check_device_word(asked: str) -> None:
    """ConfigError for a word that names no device."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", asked):
        raise ConfigError([Problem(f"device {asked!r} is unknown", hint="use auto, cpu, cuda or cuda:N")])


def select_device(asked: str, backend: str | None = None) -> str:
    """What `asked` is on this machine, for this process: cpu, cuda or cuda:N. backend: what is to run there; None: anything.

    ConfigError for a word that names no device, DeviceUnavailable for one that is not there."""
    check_device_word(asked)
    if asked == "cpu":
        return asked
    reason = why_not_cuda(backend)
    if asked == "auto":
        say_of_auto("cpu" if reason else "cuda", reason)
        return "cpu" if reason else "cuda"
    if reason:
        raise DeviceUnavailable(f"{asked} cannot be used: {reason}", _REMEDY)
    find_device(asked)
    return asked


@lru_cache(maxsize=64)
def say_of_auto(chosen: str, reason: str) -> None:
    """To the log, once a process."""
    logger.info("device: auto is %s%s", chosen, f": {reason}" if reason else "")


def find_device(asked: str) -> CudaDevice:
    """The device of `cuda` (the first), or `cuda:N`. DeviceUnavailable when it is not among those that this process may use."""
    devices = cuda_devices()
    wanted = int(asked.partition(":")[2] or -1)
    found = next((device for device in devices if wanted in (-1, device.index)), None)
    if found is None:
        there = f"there are {', '.join(map(str, devices))}" if devices else why_no_cuda()
        raise DeviceUnavailable(f"there is no device {asked} for this process: {there}", _REMEDY)
    return found


def why_not_cuda(backend: str | None) -> str:
    """Why this process cannot run what `backend` compiles on a CUDA device; empty when it can. None: anything at all."""
    if backend is None or (reason := why_no_device()):
        return why_no_cuda() if backend is None else reason
    return why_no_library(library_of(backend))


def library_of(backend: str) -> Library:
    """By what `backend` runs on a CUDA device."""
    return _ON_CUDA[select_backend(backend)]


def device_for_arrays(library: Library, who: str) -> str:
    """`cuda`, for arrays of `library`. DeviceUnavailable when this process cannot have them there. who: wants them."""
    if reason := why_no_cuda(library):
        raise DeviceUnavailable(f"{who} needs a CUDA device: {reason}")
    return "cuda"


def select_backend(asked: str) -> Backend:
    """`auto` or `numba` -> `numba`. ConfigError for a word that names no backend, DeviceUnavailable for one that is not installed."""
    if asked in ("torch", "torch.compile") and find_spec("torch") is None:
        raise DeviceUnavailable("PyTorch is not installed", "pip install 'gpuflow[torch]', or use backend: auto")
    match asked:
        case "auto" | "numba":
            return "numba"
        case "torch" | "torch.compile":
            return asked
    raise ConfigError([Problem(f"backend {asked!r} is unknown", hint="use auto, numba, torch or torch.compile")])


def compiler(backend: Backend, device: str) -> Callable[[tuple[Node, ...], tuple[DType, ...]], Compiled]:
    """What compiles trees that follow one another: given them and the dtypes before, between and after them.

    NotExpressible from it when the result would not be NumPy's. DeviceUnavailable when the device is not there."""
    if library_of(backend) == "torch":
        from gpuflow.backends import torch

        return partial(torch.Compiled, device=torch.find_device(device), fused=backend == "torch.compile")
    if device != "cpu":
        if reason := why_no_library("cupy"):
            raise DeviceUnavailable(f"kernels for {device} cannot be made: {reason}", _REMEDY)
        from gpuflow.backends import cuda

        return cuda.Compiled
    from gpuflow.backends import cpu

    return cpu.Compiled
