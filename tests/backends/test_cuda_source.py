"""The text of CUDA kernels, compiled for the CPU and compared with NumPy: there need not be a device."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpuflow.backends import cuda_source
from gpuflow.backends.cpu import TOLERANCE_ULP
from gpuflow.backends.layout import plan
from gpuflow.backends.operations import NotExpressible
from gpuflow.backends.program import Program, lower
from gpuflow.steps.base import Step, StepError
from gpuflow.steps.cast import Cast
from gpuflow.steps.clip import Clip
from gpuflow.steps.map import Map
from gpuflow.steps.standardize import Standardize

from .contract import REAL, STRICT, TEXTS
from .host_cuda import COMPILER, build
from .same import assert_same
from .samples import one_by_one, spec_of, values, whole

Block = np.ndarray[Any, Any]

pytestmark = pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler")


def program_of(steps: tuple[Step, ...], block: Block) -> tuple[Program, np.dtype[Any]]:
    """With the dtype of the result. StepError and NotExpressible as the steps and `lower` raise them."""
    specs = [spec_of(block)]
    for step in steps:
        specs.append(step.check(specs[-1]))
    trees = [step.express(spec) for step, spec in zip(steps, specs, strict=False)]
    return cuda_source.guard(lower(tuple(trees), tuple(spec.dtype for spec in specs))), specs[-1].dtype


def run(function: Any, program: Program, block: Block, out_dtype: np.dtype[Any]) -> tuple[Block, bool]:
    """(result, whether all checks passed) for a whole array."""
    layout = plan(block.shape, [(parameter.values, parameter.axes) for parameter in program.parameters])
    width = cuda_source.width(program)
    together = layout.span % width == 0 and layout.period % width == 0
    unfit, out = np.zeros(1, np.uint32), np.empty(block.shape, out_dtype)
    parameters = [np.ascontiguousarray(array) for pair in layout.parameters for array in pair]
    function(block.size, layout.span, layout.period, together, [unfit, block, out, *parameters])
    return out, not unfit[0]


def expressible(texts: list[str], block: Block) -> list[tuple[str, Program, Block]]:
    """(text, program, what NumPy makes of the block) of those that NumPy has and a kernel may be made of."""
    found = []
    for text in texts:
        step = Map(expression=text)
        try:
            program, _ = program_of((step,), block)
            cuda_source.element(program)
            expected = step.apply(np, block, whole(block))
        except (StepError, ValueError, NotExpressible):
            continue
        if not (text == "round(x)" and block.dtype == bool):  # a half float, by NumPy's rules for its methods
            found.append((text, program, expected))
    return found


@pytest.mark.parametrize("dtype", ["bool", "int8", "int64", "uint16", "float16", "float32", "float64"])
def test_every_operator_and_function(dtype: str, tmp_path: Path) -> None:
    block = values(np.dtype(dtype), 3001)
    cases = expressible([*TEXTS, "x ** 3", "x // -7", "x % -5", "x % (x // 5)"], block)
    assert len(cases) > 60
    for (text, program, expected), function in zip(cases, build([(case[1], False) for case in cases], tmp_path), strict=True):
        actual, fits = run(function, program, block, expected.dtype)
        called = text.replace("**", "power")
        assert fits
        assert_same(actual, expected, ulp=max((ulp for name, ulp in TOLERANCE_ULP.items() if name in called), default=0))


def test_every_cast(tmp_path: Path) -> None:
    cases = []
    for source in REAL:
        block = values(np.dtype(source), 3000)
        cases += [(block, Cast(dtype=target), *program_of((Cast(dtype=target),), block)) for target in REAL]
    functions = build([(program, False) for _, _, program, _ in cases], tmp_path)
    for (block, step, program, dtype), function in zip(cases, functions, strict=True):
        actual, _ = run(function, program, block, dtype)
        assert_same(actual, step.apply(np, block, whole(block)), block.dtype)


def test_strict_casts(tmp_path: Path) -> None:
    steps = [(Cast(dtype=target, strict=True), np.array(fitting, source), unfit) for source, target, fitting, unfit in STRICT]
    programs = [program_of((step,), block) for step, block, _ in steps]
    functions = build([(program, False) for program, _ in programs], tmp_path)
    for (step, block, unfit), (program, dtype), function in zip(steps, programs, functions, strict=True):
        actual, fits = run(function, program, block, dtype)
        assert fits
        assert_same(actual, step.apply(np, block, whole(block)))
        for value in unfit:
            assert not run(function, program, np.array([*block, value], block.dtype), dtype)[1], (step, value)


def test_channels_anywhere(tmp_path: Path) -> None:
    cases = []
    for shape in [(5, 700, 3), (2, 3, 1501), (70_000, 3), (4, 3, 5, 2), (1, 3, 1)]:
        for per in [(), (1,), (0, 1), (0, len(shape) - 1)]:
            block = np.random.default_rng(1).integers(0, 255, shape).astype(np.uint8)
            kept = tuple(shape[axis] for axis in per)
            mean = np.arange(prod(kept)).reshape(kept) * 0.1
            steps = (Standardize(per=per, mean=mean, std=mean + 1), Clip(max=200), Cast(dtype="float32"))
            program, dtype = program_of(steps, block)
            varying = plan(shape, [(one.values, one.axes) for one in program.parameters]).varying
            cases.append((steps, block, program, dtype, varying))
    functions = build([(program, varying) for *_, program, _, varying in cases], tmp_path)
    for (steps, block, program, dtype, _), function in zip(cases, functions, strict=True):
        assert_same(run(function, program, block, dtype)[0], one_by_one(steps, block, whole(block)))


def test_what_raises_in_numpy_fails_a_check(tmp_path: Path) -> None:
    block = np.array([1, 2, 3], np.int32)
    cases = [program_of((Map(expression=text),), block) for text in ("x ** (x - 1)", "x ** (x - 2)")]
    fine, negative = build([(program, False) for program, _ in cases], tmp_path)
    (program, dtype), (other, _) = cases
    actual, fits = run(fine, program, block, dtype)
    assert fits
    np.testing.assert_array_equal(actual, [1, 2, 9])
    assert not run(negative, other, block, dtype)[1]


def test_no_word_of_a_pipeline_reaches_the_text() -> None:
    program, _ = program_of((Map(expression="where(x > 0.1, nan, x)"),), np.zeros(3, np.float32))
    text = cuda_source.element(program)
    assert "0.1" not in text
    assert "nan" not in text.lower()
