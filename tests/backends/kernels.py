"""Kernels are compiled into a folder of the session, or into the one that GPUFLOW_CACHE names. For the conftest of a room."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

__all__ = ["kernel_cache"]


@pytest.fixture(scope="session", autouse=True)
def kernel_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if "GPUFLOW_CACHE" not in os.environ:
            patch.setenv("GPUFLOW_CACHE", str(tmp_path_factory.mktemp("kernels")))
        yield
