"""Arrays of a batch as PyTorch tensors on a device: the module of this package that imports torch for tensors.

On the CPU a tensor is a view of the batch's memory. For a CUDA device the memory is page-locked once, where it lies, and copied on a stream
of its own while the previous batch is computed."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np

from gpuflow.errors import ConfigError, DeviceUnavailable, Problem

NUMPY = "numpy"
"""The device that stands for NumPy arrays, without PyTorch."""


def check_device(device: str) -> str:
    """`device` itself when tensors can be made there. ConfigError for a word that PyTorch does not know, DeviceUnavailable when it is not
    there, or PyTorch is not."""
    if device == NUMPY:
        return device
    if find_spec("torch") is None:
        raise DeviceUnavailable(
            "PyTorch is not installed", "pip install 'gpuflow[torch]', or use device='numpy' for NumPy arrays"
        )
    import torch

    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ConfigError([Problem(f"device {device!r} is unknown", "device", hint="use cpu, cuda, cuda:N or numpy")]) from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise DeviceUnavailable("no CUDA device", "use device='cpu'")
    return device


class Tensors:
    """What makes tensors of a batch, for one loader. `begin` is called in a reader's thread, `end` in the loop's."""

    def __init__(self, device: str) -> None:
        import torch

        self._torch, self._device = torch, torch.device(device)
        self._cuda: Any = torch.cuda
        self._stream = self._cuda.Stream(self._device) if self._device.type == "cuda" else None
        self._locked: set[int] = set()

    def begin(self, batch: Any) -> Any:
        """Tensors, that may still be on their way; and what they are waited for with."""
        if self._stream is None:
            return _mapped(batch, lambda array: self._tensor(array).to(self._device)), None, None
        with self._cuda.stream(self._stream):
            moved = _mapped(batch, self._moved)
            return moved, self._stream.record_event(), batch

    def end(self, begun: Any) -> Any:
        """The tensors, to be used on the current stream."""
        moved, event, source = begun
        if event is not None:
            event.synchronize()  # then the memory that was copied from is free
            stream = self._cuda.current_stream(self._device)
            _mapped_tensors(moved, lambda tensor: tensor.record_stream(stream))
            del source
        return moved

    def _tensor(self, array: np.ndarray[Any, Any]) -> Any:
        return self._torch.from_numpy(array if array.flags.writeable else array.copy())

    def _moved(self, array: np.ndarray[Any, Any]) -> Any:
        self._lock_pages(array)
        return self._tensor(array).to(self._device, non_blocking=True)

    def _lock_pages(self, array: np.ndarray[Any, Any]) -> None:
        base = array
        while isinstance(base.base, np.ndarray):
            base = base.base
        address = base.ctypes.data
        if address not in self._locked and address % 4096 == 0:
            self._cuda.cudart().cudaHostRegister(address, base.nbytes, 0)
            self._locked.add(address)


def _mapped(value: Any, change: Callable[[np.ndarray[Any, Any]], Any]) -> Any:
    """`value` with its numeric arrays changed, wherever they are in dicts, lists and tuples."""
    if isinstance(value, dict):
        return {name: _mapped(part, change) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_mapped(part, change) for part in value)
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return change(value)
    return value


def _mapped_tensors(value: Any, change: Callable[[Any], Any]) -> None:
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ():
        _mapped_tensors(part, change)
    if hasattr(value, "record_stream"):
        change(value)
