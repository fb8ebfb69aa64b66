"""Kernels and moments on a CUDA device. What they are made of is tested without one, in test_cuda_source.py and test_cuda_moments.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpuflow.backends.devices import why_no_cuda
from gpuflow.errors import DeviceFull
from gpuflow.reductions.moments import Moments
from gpuflow.steps.cast import Cast
from gpuflow.steps.map import Map

from .contract import WideContract
from .same import assert_same
from .samples import spec_of, whole

if why_no_cuda("cupy"):
    pytest.skip(why_no_cuda("cupy"), allow_module_level=True)

from gpuflow.backends.cuda import TOLERANCE_ULP, Cuda, DeviceMemory, Queue, cupy
from gpuflow.storage.tier_entries import Key, Version
from gpuflow.storage.tiers import Tier

pytestmark = pytest.mark.gpu


class TestCuda(WideContract):
    backend = "numba"
    device = "cuda"
    tolerance_ulp = TOLERANCE_ULP

    def test_blocks_that_lie_on_the_device_stay_there(self) -> None:
        block = np.arange(2 * 3 * 5, dtype=np.float32).reshape(2, 3, 5)
        kernel = self.compile((Map(expression="x * 2 + 1"), Cast(dtype="float16")), spec_of(block))
        assert kernel.on_device
        for there in (cupy.asarray(block), cupy.asarray(block.T).T, cupy.asarray(np.repeat(block, 2, 2))[..., ::2]):
            made = kernel(there, whole(block))
            assert isinstance(made, cupy.ndarray)
            assert_same(made.get(), (block * 2 + 1).astype(np.float16))


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64", "float16", "float32", "float64"])
@pytest.mark.parametrize("keep", [(), (0,), (1,), (2,), (0, 1), (0, 2), (0, 1, 2)])
def test_moments_are_those_of_the_cpu(dtype: str, keep: tuple[int, ...]) -> None:
    block: Any = np.random.default_rng(1).normal(100, 30, (5, 300, 70)).astype(dtype)
    if block.dtype.kind == "f":
        block[..., ::7] = np.nan
    there, here = Moments.of(cupy.asarray(block), keep), Moments.of(block, keep)
    for name in ("count", "minimum", "maximum"):
        np.testing.assert_array_equal(getattr(there, name), getattr(here, name))
    np.testing.assert_allclose(there.mean, here.mean, rtol=1e-12)
    np.testing.assert_allclose(there.m2, here.m2, rtol=1e-9, atol=1e-9)
    assert Moments.of(cupy.asarray(block), keep) == there


def test_copies_of_a_queue() -> None:
    queue, host = Queue(), Cuda().pinned(2**20).view(np.float32).reshape(2, -1)
    host[...] = np.random.default_rng(1).normal(size=host.shape)
    out = np.empty_like(host)
    with queue():
        array = queue.upload(host)
        assert_same(queue.download(array * 2, out), host * 2)
        assert_same(queue.download(array[:, ::2], np.empty((2, host.shape[1] // 2), np.float32)), host[:, ::2])


def test_a_full_device_says_so_and_goes_on() -> None:
    queue = Queue()
    with pytest.raises(DeviceFull, match="the device is full"), queue():
        cupy.empty(2**60, np.uint8)
    with queue():
        assert int(cupy.ones(3, np.int64).sum()) == 3


def test_a_tier_of_the_device_above_one_of_the_host() -> None:
    from gpuflow.storage.tier_memory import HostMemory

    below = Tier(HostMemory(), 2**20)
    tier = Tier(DeviceMemory(), 2**16, below)
    blocks = [np.full(2**13, number, np.float32) for number in range(4)]
    for number, block in enumerate(blocks):
        tier.put(Key("a", "x", number), Version(1, b"d", b"f"), cupy.asarray(block) if number % 2 else block, 0.1)
    for number, block in enumerate(blocks):
        held = tier.take(Key("a", "x", number), Version(1, b"d", b"f"))
        assert held is not None
        with held as found:
            assert_same(found if isinstance(found, np.ndarray) else found.get(), block)


def test_memory_is_given_back() -> None:
    Cuda().release()
    free, _ = cupy.cuda.runtime.memGetInfo()
    kernel = TestCuda().compile((Map(expression="x + 1"),), spec_of(np.zeros((4, 2**20), np.float32)))
    for _ in range(50):
        kernel(np.zeros((4, 2**20), np.float32), (slice(0, 4), slice(0, 2**20)))
    Cuda().release()
    assert cupy.cuda.runtime.memGetInfo()[0] >= free - 2**22
