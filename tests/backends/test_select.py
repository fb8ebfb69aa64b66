"""What is named is used or refused; only `auto` chooses."""

from __future__ import annotations

import pytest

from gpuflow.backends import select
from gpuflow.errors import ConfigError, DeviceUnavailable


def test_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    assert select.select_backend("auto") == select.select_backend("numba") == "numba"
    with pytest.raises(ConfigError, match="backend 'jax' is unknown; use auto, numba or torch"):
        select.select_backend("jax")
    monkeypatch.setattr(select, "find_spec", lambda name: None)
    with pytest.raises(DeviceUnavailable, match="PyTorch is not installed"):
        select.select_backend("torch")


def test_numba_is_for_the_cpu() -> None:
    with pytest.raises(DeviceUnavailable, match="not on cuda:0"):
        select.compiler("numba", "cuda:0")


def test_devices() -> None:
    assert select.select_device("auto") == select.select_device("cpu") == "cpu"
    with pytest.raises(DeviceUnavailable):
        select.select_device("cuda:1")
    with pytest.raises(ConfigError):
        select.select_device("tpu")
