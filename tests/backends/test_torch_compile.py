"""Kernels fused by `torch.compile`: those of Torch, bit for bit. Each takes seconds to compile, so there is one; in a process of its own,
since one that has run compiled code with OpenMP cannot be forked, which other tests do."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from gpuflow.backends.select import compiler, select_backend
from gpuflow.steps.base import StepError
from gpuflow.steps.cast import Cast
from gpuflow.steps.fuse import compile_steps
from gpuflow.steps.map import Map
from gpuflow.steps.standardize import Standardize

from .host_cuda import COMPILER
from .samples import spec_of, whole

pytest.importorskip("torch")


def test_it_is_asked_for_by_name() -> None:
    assert select_backend("torch.compile") == "torch.compile"
    assert select_backend("auto") == "numba"
    assert compiler("torch.compile", "cpu").keywords == {"device": "cpu", "fused": True}  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler")
def test_a_chain_is_what_torch_gives_one_by_one() -> None:
    done = subprocess.run([sys.executable, "-m", __name__], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "the same\n"


def compare() -> None:
    block = np.random.default_rng(0).normal(280, 30, (6, 50, 3)).astype(np.float32)
    per = Standardize(mean=[280.0, 270.0, 290.0], std=[10.0, 20.0, 30.0], per=2)
    steps = (per, Map(expression="where(x > 0, sqrt(abs(x)), x / 3)"), Cast(dtype="float16"), Cast(dtype="int8", strict=True))
    fused, plain = (compile_steps(steps, spec_of(block), backend) for backend in ("torch.compile", "torch"))  # type: ignore[arg-type]
    assert fused.describe().endswith("by Torch on cpu, fused by torch.compile")
    for part in (block, block[:1], block[2:, :7]):
        np.testing.assert_array_equal(fused(part, whole(part)), plain(part, whole(part)))
    wide = block * np.float32(1e6)
    with pytest.raises(StepError):
        fused(wide, whole(wide))


if __name__ == "__main__":
    compare()
    sys.stdout.write("the same\n")
