"""What is named is used or refused; only `auto` chooses."""

from __future__ import annotations

import pytest

from gpuflow.backends import devices, select
from gpuflow.backends.devices import CudaDevice, Machine
from gpuflow.errors import ConfigError, DeviceUnavailable


def test_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    assert select.select_backend("auto") == select.select_backend("numba") == "numba"
    with pytest.raises(ConfigError, match=r"use auto, numba, torch or torch\.compile"):
        select.select_backend("jax")
    monkeypatch.setattr(select, "find_spec", lambda name: None)
    with pytest.raises(DeviceUnavailable, match="PyTorch is not installed"):
        select.select_backend("torch")


@pytest.mark.skipif(not devices.why_no_library("cupy"), reason="CuPy is there")
def test_kernels_for_a_device_need_cupy() -> None:
    with pytest.raises(DeviceUnavailable, match="kernels for cuda:0 cannot be made: CuPy is not installed"):
        select.compiler("numba", "cuda:0")


def test_devices(caplog: pytest.LogCaptureFixture) -> None:
    select.say_of_auto.cache_clear()
    with caplog.at_level("INFO", "gpuflow"):
        assert select.select_device("auto", "torch") == select.select_device("auto", "torch") == "cpu"
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("device: auto is cpu: ")
    assert select.select_device("cpu") == "cpu"
    with pytest.raises(DeviceUnavailable, match=r"cuda:1 cannot be used: .*; use device: auto or cpu"):
        select.select_device("cuda:1")
    with pytest.raises(ConfigError):
        select.select_device("tpu")


def test_what_a_backend_needs_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    cards = (CudaDevice(0, 0, "GPU-a", "GPU-a", "A100", 2**30), CudaDevice(1, 1, "GPU-b", "GPU-b", "A100", 2**30))
    monkeypatch.setattr(devices, "machine", lambda: Machine(cards, "", "550.54", (12, 4)))
    monkeypatch.setattr(devices, "installed", lambda library: {"torch": 12} if library == "torch" else {})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert select.select_device("auto", "torch") == select.select_device("auto") == "cuda"
    assert select.select_device("auto", "numba") == "cpu"
    assert select.select_device("cuda:1", "torch") == "cuda:1"
    with pytest.raises(DeviceUnavailable, match=r"no device cuda:0 for this process: there are cuda:1 \(A100\)"):
        select.select_device("cuda:0", "torch")
    with pytest.raises(DeviceUnavailable, match="cuda cannot be used: CuPy is not installed"):
        select.select_device("cuda", "auto")
    assert select.device_for_arrays("torch", "it") == "cuda"
    with pytest.raises(DeviceUnavailable, match="it needs a CUDA device: CuPy is not installed"):
        select.device_for_arrays("cupy", "it")
    monkeypatch.setattr(devices, "installed", lambda library: {"cupy-cuda12x": 12})
    assert select.device_for_arrays("cupy", "it") == "cuda"
    assert select.select_device("auto", "numba") == "cuda"
