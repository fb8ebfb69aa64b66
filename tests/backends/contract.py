"""What every backend has to do: give NumPy's results. Subclass it, and say what compiles and how far it may be off."""

from __future__ import annotations

import re
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gpuflow.backends.expression_tree import FUNCTIONS, OPERATORS
from gpuflow.backends.select import Backend
from gpuflow.steps.base import ArraySpec, Step, StepError
from gpuflow.steps.cast import Cast
from gpuflow.steps.clip import Clip
from gpuflow.steps.fuse import Kernel, compile_steps
from gpuflow.steps.map import Map
from gpuflow.steps.standardize import Standardize
from tests.backends.same import assert_same
from tests.backends.samples import chains, one_by_one, spec_of, values, whole

REAL = ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64"]

TEXTS = [f"{name[-1]}x" if name.startswith("unary") or name == "~" else f"x {name} (x - x // 3)" for name in OPERATORS]
TEXTS += [f"{name}({', '.join(['x', '3', 'x'][:arity])})" for name, arity in FUNCTIONS.items()]
TEXTS += [f"3 {name} x" for name in ("-", "//", "%", "<")] + ["x ** 0.5", "x ** -1.0", "power(x, 0.5)"]

STRICT = [
    ("float32", "int16", [0, -32768.5, 32767.9, -0.9], [np.nan, np.inf, -np.inf, 32768, -32769, 1e30]),
    ("float32", "int32", [0, -(2.0**31), 2147483520], [2.0**31, -2147483904, np.nan]),
    ("float64", "int64", [0, -(2.0**63), 9223372036854774784], [2.0**63, -np.inf, np.nan]),
    ("float64", "uint64", [0, -0.9, 2.0**63], [-1, 2.0**64, np.nan]),
    ("float16", "uint8", [255, 255.9, -0.5], [256, -1, np.inf]),
    ("float16", "int32", [65504, -65504], [np.inf, -np.inf, np.nan]),
    ("int64", "int32", [2**31 - 1, -(2**31)], [2**31, -(2**31) - 1]),
    ("uint64", "int64", [2**63 - 1], [2**63]),
    ("int8", "uint64", [0, 127], [-1]),
    ("uint16", "float16", [65504, 65519], [65520, 65535]),
    ("float64", "float32", [1e38, np.inf, np.nan], [1e39, -1e300]),
    ("float32", "float16", [65504, 65519, -np.inf, np.nan], [65520, -1e10]),
]
"""(from, to, values that fit, values that do not)"""


class BackendContract:
    backend: ClassVar[Backend]
    device: ClassVar[str] = "cpu"
    tolerance_ulp: ClassVar[dict[str, int]]
    either_zero: ClassVar[tuple[str, ...]] = ()

    def compile(self, steps: tuple[Step, ...], spec: ArraySpec) -> Kernel:
        kernel = compile_steps(steps, spec, self.backend, self.device)
        assert kernel.fused, kernel.describe()
        return kernel

    def check(self, text: str, block: np.ndarray[Any, Any]) -> None:
        """One expression against NumPy, where NumPy has it."""
        step = Map(expression=text)
        try:
            step.check(spec_of(block))
            expected = step.apply(np, block, whole(block))
        except (StepError, ValueError):
            return
        if text == "round(x)" and block.dtype == bool:
            return  # a half float, by NumPy's rules for its methods
        actual = self.compile((step,), spec_of(block))(block, whole(block))
        called = text.replace("**", "power")
        ulp = max((allowed for name, allowed in self.tolerance_ulp.items() if name in called), default=0)
        assert_same(actual, expected, ulp=ulp, either_zero=any(name in text for name in self.either_zero))

    @pytest.mark.parametrize("dtype", ["int64", "uint8", "float16", "float32"])
    def test_every_operator_and_function(self, dtype: str) -> None:
        for text in TEXTS:
            self.check(text, values(np.dtype(dtype), 300))

    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def test_any_operation_on_any_values(self, data: st.DataObject) -> None:
        text, dtype = data.draw(st.sampled_from(TEXTS)), np.dtype(data.draw(st.sampled_from(REAL)))
        with np.errstate(all="ignore"):
            block = data.draw(hnp.arrays(dtype, st.integers(1, 40)))
        self.check(text, block)

    @settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
    @given(chains(), st.booleans(), st.booleans())
    def test_random_chains(self, case: tuple[Any, ...], transposed: bool, given_out: bool) -> None:
        steps, whole_block, region = case
        kernel = self.compile(steps, spec_of(whole_block))
        assert steps[0].kind in kernel.describe()
        blocks = [(whole_block, whole(whole_block)), (whole_block[region], region)]
        if transposed and region:
            blocks += [(np.asfortranarray(block), part) for block, part in blocks]
            blocks += [(block[::-1], part) for block, part in blocks[:1] if not any(step.kind == "standardize" for step in steps)]
        for block, part in ((np.asarray(block), part) for block, part in blocks):
            block.flags.writeable = False
            out = np.empty(block.shape, kernel.out_dtype) if given_out else None
            result = kernel(block, part, out)
            assert out is None or result is out
            assert_same(result, one_by_one(steps, block, part), either_zero=bool(self.either_zero))

    @pytest.mark.parametrize(
        "shape", [(5, 700, 3), (3, 70, 70), (2, 3, 1500), (70_000, 3), (4, 3, 5, 2), (3, 2, 5000), (1, 3, 1), (2, 290_000)]
    )
    @pytest.mark.parametrize("per", [(), (0,), (1,), (-1,), (0, 1), (0, -1)])
    def test_channels_anywhere(self, shape: tuple[int, ...], per: tuple[int, ...]) -> None:
        axes = sorted({axis % len(shape) for axis in per})
        kept = tuple(shape[axis] for axis in axes)
        block = np.random.default_rng(1).integers(0, 255, shape).astype(np.uint8)
        mean = np.arange(np.prod(kept, dtype=int)).reshape(kept) * 0.1
        other = Standardize(per=0, mean=[1.0] * shape[0], std=[2.0] * shape[0])
        steps = (Standardize(per=axes, mean=mean, std=mean + 1), other)
        assert_same(self.compile(steps, spec_of(block))(block, whole(block)), one_by_one(steps, block, whole(block)))

    def test_in_place(self) -> None:
        block = np.random.default_rng(1).normal(0, 3, 100_000).astype(np.float32)
        steps = (Map(expression="exp(x - 1)"), Clip(max=9))
        expected = one_by_one(steps, block, whole(block))
        assert self.compile(steps, spec_of(block))(block, whole(block), block) is block
        assert_same(block, expected, ulp=4)

    def test_wrong_blocks_are_refused(self) -> None:
        kernel = self.compile((Clip(min=0),), ArraySpec((4, 4), np.dtype("f4"), (None, None)))
        region = (slice(0, 4), slice(0, 2))
        with pytest.raises(ValueError, match="the kernel is for float32"):
            kernel(np.zeros((4, 2)), region)
        with pytest.raises(ValueError, match="the kernel is for float32"):
            kernel(np.zeros((2, 4), "f4"), region)
        with pytest.raises(ValueError, match="out has to be"):
            kernel(np.zeros((4, 2), "f4"), region, np.zeros((2, 4), "f4").T)

    @pytest.mark.parametrize(("source", "target", "fitting", "unfit"), STRICT)
    def test_strict_casts(self, source: str, target: str, fitting: list[float], unfit: list[float]) -> None:
        good = np.zeros((3, 1000), source)
        good[1, : len(fitting)] = fitting
        kernel = self.compile((Cast(dtype=target, strict=True),), spec_of(good))
        assert_same(kernel(good, whole(good)), Cast(dtype=target).apply(np, good, whole(good)))
        for value in unfit:
            block = good.copy()
            block[2, 998:] = value
            with pytest.raises(
                StepError,
                match=rf"cast: {re.escape(repr(block[2, 998].item()))}, at \[2, 998\] of the chunk, does not fit {target}",
            ):
                kernel(block, whole(block), np.empty(block.shape, target))

    def test_an_unfit_value_leaves_the_block_alone(self) -> None:
        block = np.array([1.0, 2.5, 3e38, 4.0])
        before = block.copy()
        steps = (Cast(dtype="float16", strict=True), Cast(dtype="float64"))
        with pytest.raises(StepError, match=r"3e\+38, at \[2\]"):
            self.compile(steps, spec_of(block))(block, whole(block), block)
        assert_same(block, before)
        block[2] = 3
        assert self.compile(steps, spec_of(block))(block, whole(block), block) is block
        assert_same(block, np.array([1, 2.5, 3, 4]))

    @pytest.mark.parametrize("text", ["exp(x)", "sqrt(abs(x))", "x < 300", "log1p(exp(x) * 0 + x)"])
    def test_a_strict_cast_may_be_anywhere(self, text: str) -> None:
        block = np.array([0.0, 2.0, 254.0, 5.0], "f4")
        steps = (Map(expression="x + log1p(x * 0)"), Cast(dtype="uint8", strict=True), Map(expression=text))
        kernel = self.compile(steps, spec_of(block))
        assert_same(kernel(block, whole(block)), one_by_one(steps, block, whole(block)), ulp=4)
        block[1] = 300
        with pytest.raises(StepError, match=r"300\.0, at \[1\]"):
            kernel(block, whole(block))


class WideContract(BackendContract):
    """The same of every dtype, for backends that have dtypes of their own. more: texts beside `TEXTS`."""

    more: ClassVar[tuple[str, ...]] = ("x ** 3", "x // -7", "x % -5", "x % (x // 5)")

    @pytest.mark.parametrize("dtype", REAL)
    def test_every_dtype(self, dtype: str) -> None:
        for text in (*TEXTS, *self.more):
            self.check(text, values(np.dtype(dtype), 3000))

    @pytest.mark.parametrize("source", REAL)
    def test_every_cast(self, source: str) -> None:
        block = values(np.dtype(source), 3000)
        for target in REAL:
            kernel = self.compile((Cast(dtype=target),), spec_of(block))
            assert_same(kernel(block, whole(block)), Cast(dtype=target).apply(np, block, whole(block)), block.dtype)
