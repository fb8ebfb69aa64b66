"""Which device steps run on, and what compiles them for it. `auto` may fall back, and says so; what is named never does."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any, Literal, Protocol

from numpy.typing import NDArray

from gpuflow.backends.expression_tree import Node
from gpuflow.backends.operations import DType
from gpuflow.errors import ConfigError, DeviceUnavailable, Problem

logger = logging.getLogger(__name__)

Backend = Literal["numba", "torch"]


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


def select_device(asked: str) -> str:
    """`auto` or `cpu` -> `cpu`. ConfigError for a word that names no device, DeviceUnavailable for one that is not there."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", asked):
        raise ConfigError([Problem(f"device {asked!r} is unknown", hint="use auto, cpu, cuda or cuda:N")])
    if asked.startswith("cuda"):
        raise DeviceUnavailable("this version of gpuflow has no CUDA backend", "use device: auto or cpu")
    if asked == "auto":
        logger.info("device: auto is cpu")
    return "cpu"


def select_backend(asked: str) -> Backend:
    """`auto` or `numba` -> `numba`. ConfigError for a word that names no backend, DeviceUnavailable for one that is not installed."""
    if asked == "torch" and find_spec("torch") is None:
        raise DeviceUnavailable("PyTorch is not installed", "pip install 'gpuflow[torch]', or use backend: auto")
    match asked:
        case "auto" | "numba":
            return "numba"
        case "torch":
            return "torch"
    raise ConfigError([Problem(f"backend {asked!r} is unknown", hint="use auto, numba or torch")])


def compiler(backend: Backend, device: str) -> Callable[[tuple[Node, ...], tuple[DType, ...]], Compiled]:
    """What compiles trees that follow one another: given them and the dtypes before, between and after them.

    NotExpressible from it when the result would not be NumPy's. DeviceUnavailable when the device is not there."""
    if select_backend(backend) == "torch":
        from gpuflow.backends import torch

        return partial(torch.Compiled, device=torch.find_device(device))
    if device != "cpu":
        raise DeviceUnavailable(f"kernels by numba run on the CPU, not on {device}", "use device: cpu, or backend: torch")
    from gpuflow.backends import cpu

    return cpu.Compiled
