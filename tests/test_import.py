"""What an import loads: optional and heavy libraries only when they are used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import gpuflow

HEAVY = ("distributed", "dask", "torch", "cupy", "zarr", "numba", "numpy", "pydantic")


def loaded_by(code: str) -> set[str]:
    """Top-level modules in a fresh interpreter after `code`."""
    show = "import sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    return set(
        subprocess.run([sys.executable, "-c", f"{code}; {show}"], capture_output=True, text=True, check=True).stdout.split()
    )


def test_import_gpuflow_is_light() -> None:
    assert loaded_by("import gpuflow").isdisjoint(HEAVY)


@pytest.mark.parametrize(
    ("code", "unloaded"),
    [
        ("import gpuflow; gpuflow.Pipeline", {"distributed", "zarr", "torch", "cupy", "numba"}),
        ("import gpuflow.cli", {"distributed", "dask", "zarr", "numpy", "torch", "cupy", "numba"}),
        ("import gpuflow.storage.node", {"distributed", "dask", "torch", "cupy"}),
        ("import gpuflow; gpuflow.connect", {"torch", "cupy", "zarr"}),
        ("import gpuflow; gpuflow.loader", {"distributed", "dask", "torch", "cupy", "zarr", "numba"}),
    ],
)
def test_parts_load_what_they_need(code: str, unloaded: set[str]) -> None:
    assert loaded_by(code).isdisjoint(unloaded)


def test_everything_promised_is_there() -> None:
    for name in gpuflow.__all__:
        assert getattr(gpuflow, name) is not None
    assert set(gpuflow.__all__) <= set(dir(gpuflow))
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        gpuflow.nothing_of_the_kind  # noqa: B018
