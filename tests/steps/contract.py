"""What every step has to do. Subclass it, and give `steps`: examples whose parameters are complete."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import pytest
from pydantic import ValidationError

from gpuflow.grid import Grid
from gpuflow.pipelines.load import from_dict
from gpuflow.steps.base import ArraySpec, Step, StepError
from gpuflow.steps.cast import DTYPES
from gpuflow.steps.fuse import compile_steps
from gpuflow.steps.registry import STEPS
from tests.backends.same import assert_same
from tests.backends.samples import whole

SHAPES = [(), (0,), (5,), (4, 6), (3, 0, 2), (2, 3, 4)]


def sample(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Values of both signs, some large, with a NaN and an infinity where the dtype has them."""
    values = np.random.default_rng((7, *shape)).integers(-9, 10, shape)
    block = np.array(np.abs(values) if dtype.kind in "ub" else values, dtype)
    if dtype.kind == "f" and block.size > 2:
        block.flat[0], block.flat[1], block.flat[2] = np.nan, np.inf, 0.37
    return block


def accepted(step: Step, dtypes: tuple[str, ...]) -> Iterator[tuple[Step, np.ndarray, ArraySpec, ArraySpec]]:
    for dtype in map(np.dtype, dtypes):
        for shape in SHAPES:
            spec = ArraySpec(shape, dtype, tuple(f"d{axis}" for axis in range(len(shape))))
            try:
                out = step.check(spec)
            except StepError:
                continue
            yield step.bind(spec), sample(shape, dtype), spec, out


class StepContract:
    steps: ClassVar[tuple[Step, ...]]
    split_dtypes: ClassVar[tuple[str, ...]] = DTYPES
    compiled_dtypes: ClassVar[tuple[str, ...]] = ("bool", "uint8", "float16", "float32", "complex64")

    def cases(self, dtypes: tuple[str, ...] = DTYPES) -> Iterator[tuple[Step, np.ndarray, ArraySpec, ArraySpec]]:
        """(step bound to the array, array, what goes in, what comes out) for all that `check` accepts."""
        for step in self.steps:
            yield from accepted(step, dtypes)

    def test_it_is_registered(self) -> None:
        assert all(STEPS[step.kind] is type(step) for step in self.steps)

    def test_every_example_works_on_something(self) -> None:
        for step in self.steps:
            assert any(array.size for _, array, _, _ in accepted(step, DTYPES)), step

    def test_check_predicts_what_comes_out(self) -> None:
        for step, array, spec, expected in self.cases():
            out = step.apply(np, array, whole(array))
            assert isinstance(out, np.ndarray), (step, spec)
            assert (out.shape, out.dtype, expected.dims) == (expected.shape, expected.dtype, spec.dims), (step, spec)
            assert expected.shape == spec.shape, "steps are elementwise"

    def test_the_input_is_left_alone(self) -> None:
        for step, array, _, _ in self.cases():
            before = array.tobytes()
            array.flags.writeable = False
            out = step.apply(np, array, whole(array))
            assert array.tobytes() == before
            assert not np.shares_memory(out, array)

    def test_any_split_gives_the_same(self) -> None:
        for step, array, _, expected in self.cases(self.split_dtypes):
            at_once = step.apply(np, array, whole(array))
            for edge in (1, 2, 3):
                grid = Grid(array.shape, (edge,) * array.ndim)
                pieces = np.empty(expected.shape, expected.dtype)
                for linear in range(grid.size):
                    region = grid.region(linear)
                    pieces[region] = step.apply(np, np.ascontiguousarray(array[region]).reshape(array[region].shape), region)
                np.testing.assert_array_equal(pieces, at_once)

    def test_compiled_it_gives_the_same(self) -> None:
        for step, array, spec, expected in self.cases(self.compiled_dtypes):
            kernel = compile_steps((step,), spec)
            assert kernel.out_dtype == expected.dtype
            assert kernel.fused == (spec.dtype.kind != "c" and expected.dtype.kind != "c"), kernel.describe()
            at_once = step.apply(np, array, whole(array))
            assert_same(kernel(array, whole(array)), at_once, spec.dtype)
            part = tuple(slice(size // 3, size) for size in array.shape)
            block = np.asarray(array[part])
            out = np.empty(block.shape, expected.dtype)
            assert kernel(block, part, out) is out
            assert_same(out, step.apply(np, block, part), spec.dtype)

    def test_it_survives_pickling(self) -> None:
        for step, array, _, _ in self.cases():
            step.apply(np, array, whole(array))
            again = pickle.loads(pickle.dumps(step))
            assert again == step
            assert hash(again) == hash(step)
            np.testing.assert_array_equal(again.apply(np, array, whole(array)), step.apply(np, array, whole(array)))

    def test_it_round_trips_through_json(self) -> None:
        for step in self.steps:
            value = json.loads(json.dumps(step.to_yaml_value(), allow_nan=False))
            assert type(step)(**value) == step
            spec = from_dict({"source": "a", "output": "b", "steps": [{step.kind: value}]})
            assert spec.steps == (step,)
            assert spec.steps[0].to_yaml_value() == value

    def test_it_is_immutable_and_knows_its_fields(self) -> None:
        for step in self.steps:
            assert set(step.shorthand) <= set(type(step).model_fields)
            with pytest.raises(ValidationError):
                setattr(step, step.shorthand[0], 1)
            with pytest.raises(ValidationError):
                type(step)(**step.to_yaml_value(), unknown=1)

    def test_it_needs_nothing_more(self) -> None:
        for step, _, spec, _ in self.cases():
            assert step.needs(spec) is None
