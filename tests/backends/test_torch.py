"""Kernels by Torch."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from gpuflow.errors import DeviceUnavailable
from gpuflow.steps.base import ArraySpec
from gpuflow.steps.cast import Cast
from gpuflow.steps.clip import Clip
from gpuflow.steps.fuse import compile_steps
from gpuflow.steps.map import Map

from .contract import WideContract
from .same import assert_same
from .samples import spec_of, whole

torch = pytest.importorskip("torch")

from gpuflow.backends.torch import EITHER_ZERO, TOLERANCE_ULP, Compiled, find_device  # noqa: E402


class TestTorch(WideContract):
    backend = "torch"
    tolerance_ulp = TOLERANCE_ULP
    either_zero = EITHER_ZERO
    more = (*WideContract.more, "x ** (x % 7)", "2 ** (x % 8)")

    def test_float64_is_rounded_to_half_once(self) -> None:
        halves = np.arange(2**15, dtype=np.uint16).view(np.float16)
        halves = halves[np.isfinite(halves)].astype(np.float64)
        middle = (halves[1:] + halves[:-1]) / 2
        block = np.concatenate([halves, middle, middle * (1 + 1e-12), middle * (1 - 1e-12), [65519.99, 65520, 1e300, 1e-300]])
        block = np.concatenate([block, -block])
        kernel = self.compile((Cast(dtype="float16"),), spec_of(block))
        assert_same(kernel(block, whole(block)), Cast(dtype="float16").apply(np, block, whole(block)))


if torch.cuda.is_available():

    @pytest.mark.gpu
    class TestTorchOnCuda(TestTorch):
        device = "cuda:0"


def test_tensors_go_in_and_come_out() -> None:
    """What a training loop does: no NumPy between, and bfloat16 by Torch's own rounding."""
    step = Map(expression="x / 3")
    block = np.arange(6, dtype=np.uint16).reshape(2, 3)
    kernel = Compiled((step.express(spec_of(block)),), (block.dtype, np.dtype("f8")))
    out = torch.empty((2, 3), dtype=torch.bfloat16)
    kernel.compute(torch.from_numpy(block), whole(block), out)
    assert torch.equal(out, (torch.arange(6, dtype=torch.float64).reshape(2, 3) / 3).bfloat16())


def test_memory_is_not_copied_where_torch_can_look_at_it() -> None:
    from gpuflow.backends.torch import _shared

    block = np.zeros((4, 6), np.float32)
    assert _shared(block).data_ptr() == block.ctypes.data
    assert _shared(block[1:, ::2]).data_ptr() == block[1:].ctypes.data
    assert _shared(block[::-1]).data_ptr() != block.ctypes.data


def test_a_negative_power_of_an_integer_is_an_error() -> None:
    block = np.array([2, -2])
    with pytest.raises(ValueError, match="negative integer powers"):
        compile_steps((Map(expression="x ** x"),), spec_of(block), "torch")(block, whole(block))


def test_a_device_that_is_not_there() -> None:
    assert find_device("cpu") == "cpu"
    name = f"cuda:{torch.cuda.device_count()}"
    with pytest.raises(DeviceUnavailable, match="CUDA device"):
        compile_steps((Clip(min=0),), ArraySpec((4,), np.dtype("f4"), (None,)), "torch", name)


def test_the_plan_says_what_runs_where() -> None:
    kernel = compile_steps((Clip(min=0), Cast(dtype="int8")), ArraySpec((4,), np.dtype("f4"), (None,)), "torch")
    assert kernel.describe() == "clip, cast: by Torch on cpu"


def test_torch_is_not_loaded_without_being_asked_for() -> None:
    code = "import sys, gpuflow.steps.fuse, gpuflow.backends.select as s; s.compiler('numba', 'cpu'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
