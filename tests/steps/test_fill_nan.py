"""Fill NaN: what is NaN is replaced, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from gpuflow.steps.base import ArraySpec, StepError
from gpuflow.steps.fill_nan import FillNan
from tests.backends.samples import whole

from .contract import StepContract


class TestContract(StepContract):
    steps = (FillNan(value=0), FillNan(value=-1.5))


@pytest.mark.parametrize(
    ("dtype", "hint"), [("i4", "int32 values are never NaN; leave it out"), ("?", "bool values are never NaN")]
)
def test_dtypes_without_nan_are_refused(dtype: str, hint: str) -> None:
    with pytest.raises(StepError, match=hint):
        FillNan(value=0).check(ArraySpec((1,), np.dtype(dtype), (None,)))


def test_a_value_that_does_not_fit_is_refused() -> None:
    with pytest.raises(StepError, match="1000000 does not fit float16"):
        FillNan(value=10**6).check(ArraySpec((1,), np.dtype("f2"), (None,)))
    with pytest.raises(ValidationError, match="must be a finite number"):
        FillNan(value=float("nan"))


@settings(deadline=None)
@given(st.lists(st.floats(width=32), max_size=20), st.floats(-1e6, 1e6, width=32))
def test_only_nan_changes(values: list[float], value: float) -> None:
    block = np.array(values, "f4")
    out = FillNan(value=value).apply(np, block, whole(block))
    assert out.dtype == np.float32
    np.testing.assert_array_equal(out, np.nan_to_num(block, nan=value, posinf=np.inf, neginf=-np.inf))
