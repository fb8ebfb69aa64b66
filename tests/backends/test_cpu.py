"""Kernels by numba."""

from __future__ import annotations

from gpuflow.backends.cpu import TOLERANCE_ULP

from .contract import BackendContract


class TestNumba(BackendContract):
    backend = "numba"
    tolerance_ulp = TOLERANCE_ULP
