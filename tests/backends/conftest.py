"""Fixtures of this room."""

from tests.backends.kernels import kernel_cache

__all__ = ["kernel_cache"]
