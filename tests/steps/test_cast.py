"""Cast: NumPy's astype, quietly, to dtypes that can be stored."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from gpuflow.pipelines.load import from_dict
from gpuflow.steps.base import ArraySpec, StepError
from gpuflow.steps.cast import DTYPES, Cast
from tests.backends.samples import whole

from .contract import StepContract


class TestContract(StepContract):
    steps = tuple(Cast(dtype=name) for name in DTYPES)
    # NaN and infinity in an integer are what the loop makes of them, which may differ between a vector and its tail.
    split_dtypes = tuple(name for name in DTYPES if np.dtype(name).kind != "f")
    compiled_dtypes = ("bool", "int8", "float16", "float64")


def test_the_dtypes_are_those_that_datasets_store() -> None:
    from gpuflow.storage import metadata

    assert tuple(metadata._DTYPES) == DTYPES


def test_no_warning_leaks() -> None:
    block = np.array([np.nan, np.inf, 1e300, -1.0])
    for dtype in ("u1", "i8", "f2", "f4"):
        Cast(dtype=np.dtype(dtype)).apply(np, block, whole(block))


def test_values_are_those_of_astype() -> None:
    block = np.array([0.9, 2.5, 100.0])
    np.testing.assert_array_equal(Cast(dtype="uint8").apply(np, block, whole(block)), [0, 2, 100])


@pytest.mark.parametrize("given", [np.float16, np.dtype("f2"), "float16"])
def test_ways_to_name_a_dtype(given: Any) -> None:
    assert Cast(dtype=given).to_yaml_value() == {"dtype": "float16"}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("floot32", "unknown dtype `floot32`; did you mean `float32`"),
        ("Float32", "did you mean `float32`"),
        ("f4", "did you mean `float32`"),
        ("<i2", "did you mean `int16`"),
        ("float", "did you mean `float64`"),
        ("half", "did you mean `float16`"),
        ("xyz", "known: bool, int8"),
        ("x" * 10_000, "unknown dtype"),
        (np.dtype("U3"), "unknown dtype `str96`"),
        (str, "must be the name of a dtype"),
        (3, "must be the name of a dtype such as float32, not the number 3"),
        (None, "not empty"),
        ("bfloat16", "bfloat16 cannot be stored: zarr does not open it; store float16, or float32"),
    ],
)
def test_wrong_dtypes(value: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Cast(dtype=value)


def test_the_imaginary_part_is_not_dropped_silently() -> None:
    with pytest.raises(StepError, match="imaginary"):
        Cast(dtype="float32").check(ArraySpec((2,), np.dtype("c8"), (None,)))
    assert Cast(dtype="complex128").check(ArraySpec((2,), np.dtype("f4"), (None,))).dtype == np.complex128


def test_strict_is_off_and_unsaid_by_default() -> None:
    assert not Cast(dtype="int16").strict
    assert Cast(dtype="int16", strict=True).to_yaml_value() == {"dtype": "int16", "strict": True}
    spec = from_dict({"source": "a", "output": "b", "steps": [{"cast": "int8"}, {"cast": {"dtype": "int16", "strict": True}}]})
    assert spec.steps == (Cast(dtype="int8"), Cast(dtype="int16", strict=True))
    with pytest.raises(ValidationError):
        Cast(dtype="int16", strict="yes")


@pytest.mark.parametrize(
    ("value", "dtype"), [(1e300 + 0j, "complex64"), (1e300, "complex64"), (np.nan, "uint8"), (256, "uint8"), (-1.0, "uint64")]
)
def test_strictly_a_value_has_to_fit(value: complex, dtype: str) -> None:
    block = np.array([[0, 1], [0, value]])
    with pytest.raises(StepError, match=r", at \[1, 1\] of the chunk, does not fit"):
        Cast(dtype=dtype, strict=True).apply(np, block, whole(block))
    number = block[1, 1]
    with pytest.raises(StepError, match=r", at \[\] of the chunk"):
        Cast(dtype=dtype, strict=True).apply(np, np.asarray(number), ())


@pytest.mark.parametrize("target", DTYPES)
def test_what_fits_is_cast_as_ever(target: str) -> None:
    for source in DTYPES:
        block = np.array([0, 1, 100]).astype(source)
        if not (block.dtype.kind == "c" and np.dtype(target).kind != "c"):
            strictly = Cast(dtype=target, strict=True).apply(np, block, whole(block))
            np.testing.assert_array_equal(strictly, Cast(dtype=target).apply(np, block, whole(block)), strict=True)
