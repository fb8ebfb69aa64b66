"""Arrays of a batch as PyTorch tensors on a device: the module of this package that imports torch for tensors.

On the CPU a tensor is a view of the batch's memory. For a CUDA device it is copied to page-locked memory in a reader's thread, and from
there on a stream of its own while the previous batch is computed."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np

from gpuflow.errors import ConfigError, DeviceUnavailable, Problem

NUMPY = "numpy"
"""The device that stands for NumPy arrays, without PyTorch."""


def check_device(device: str) -> None:
    """ConfigError for a word that PyTorch does not know, DeviceUnavailable when the device is not there, or PyTorch is not."""
    if device == NUMPY:
        return
    if find_spec("torch") is None:
        hint = "pip install 'gpuflow[torch]', or use device='numpy' for NumPy arrays"
        raise DeviceUnavailable("PyTorch is not installed", hint)
    import torch

    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ConfigError([Problem(f"device {device!r} is unknown", "device", hint="use cpu, cuda, cuda:N or numpy")]) from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise DeviceUnavailable("no CUDA device", "use device='cpu'")


class Tensors:
    """What makes tensors of a batch, for one loader. `begin` is called in a reader's thread, `end` in the loop's."""

    def __init__(self, device: str) -> None:
        import torch

        self._torch, self._device = torch, torch.device(device)
        self._cuda: Any = torch.cuda
        self._stream = self._cuda.Stream(self._device) if self._device.type == "cuda" else None

    def begin(self, batch: Any) -> tuple[Any, Any]:
        """Tensors that may still be on their way, and the event that tells when they are there; None when they are."""
        if self._stream is None:
            return _mapped(batch, np.ndarray, lambda array: self._tensor(array).to(self._device)), None
        with self._cuda.stream(self._stream):
            moved = _mapped(batch, np.ndarray, lambda array: self._tensor(array).pin_memory().to(self._device, non_blocking=True))
            return moved, self._stream.record_event()

    def end(self, begun: tuple[Any, Any]) -> Any:
        """The tensors, to be used on the current stream."""
        moved, event = begun
        if event is not None:
            stream = self._cuda.current_stream(self._device)
            stream.wait_event(event)
            _mapped(moved, self._torch.Tensor, lambda tensor: tensor.record_stream(stream))
        return moved

    def _tensor(self, array: np.ndarray[Any, Any]) -> Any:
        return self._torch.from_numpy(array if array.flags.writeable else array.copy())


def _mapped(value: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """`value` with everything of that kind changed, wherever it is in dicts, lists and tuples."""
    if isinstance(value, dict):
        return {name: _mapped(part, kind, change) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_mapped(part, kind, change) for part in value)
    is_text = isinstance(value, np.ndarray) and value.dtype.kind not in "biufc"
    return change(value) if isinstance(value, kind) and not is_text else value
