"""Unpack: as xarray decodes what the CF conventions pack."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from gpuflow.steps.base import ArraySpec, StepError
from gpuflow.steps.unpack import Unpack
from tests.backends.samples import whole

from .contract import StepContract


class TestContract(StepContract):
    steps = (
        Unpack(scale_factor=0.1),
        Unpack(scale_factor=0.0017, add_offset=273.15, missing=3),
        Unpack(add_offset=-5, missing=0),
    )


@pytest.mark.parametrize(("dtype", "out"), [("u1", "f4"), ("i2", "f4"), ("u2", "f4"), ("i4", "f8"), ("f4", "f4"), ("f8", "f8")])
def test_packed_values(dtype: str, out: str) -> None:
    block = np.array([0, 1, 100, 120], dtype)
    result = Unpack(scale_factor=0.5, add_offset=200, missing=120).apply(np, block, whole(block))
    assert result.dtype == np.dtype(out)
    np.testing.assert_array_equal(result, np.array([200, 200.5, 250, np.nan], out))


def test_a_missing_value_is_compared_as_it_is_stored() -> None:
    block = np.array([np.float32(1e20), 1.0], "f4")
    np.testing.assert_array_equal(Unpack(missing=1e20).apply(np, block, whole(block)), np.array([np.nan, 1], "f4"))
    large = np.array([-(2**63), 2**63 - 1], "i8")
    out = Unpack(missing=-(2**63)).apply(np, large, whole(large))
    np.testing.assert_array_equal(np.isnan(out), [True, False])


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, "has neither `scale_factor` nor `add_offset` nor `missing`"),
        ({"scale_factor": 0}, "must not be 0"),
        ({"add_offset": "1"}, "must be a number, not the text '1'"),
        ({"missing": float("nan")}, "must be a finite number"),
    ],
)
def test_wrong_parameters(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Unpack(**params)


@pytest.mark.parametrize(
    ("step", "dtype", "message"),
    [
        (Unpack(missing=-32768), "u2", "no uint16 value is -32768, which `missing` says; give the packed value"),
        (Unpack(missing=0.5), "i2", r"no int16 value is 0\.5"),
        (Unpack(scale_factor=1e-50), "i2", "`scale_factor` does not fit float32"),
        (Unpack(add_offset=1), "c8", "does not work on complex64"),
    ],
)
def test_what_an_array_cannot_have(step: Unpack, dtype: str, message: str) -> None:
    with pytest.raises(StepError, match=message):
        step.check(ArraySpec((1,), np.dtype(dtype), (None,)))
