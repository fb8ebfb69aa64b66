"""Which chunks of an output chunks of the source touch: against a look at every chunk of the output."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from gpuflow.pipelines.load import from_dict
from gpuflow.pipelines.plan import ArrayPlan, make_plan
from gpuflow.pipelines.pulls import pulls_of
from gpuflow.pipelines.touched import needed, touched
from gpuflow.storage.metadata import ArrayMetadata
from gpuflow.storage.record import DatasetRecord


def _plan(shape: tuple[int, ...], chunks: tuple[int, ...], steps: list[Any], **output: Any) -> ArrayPlan:
    dims = ("time", "y", "x")[-len(shape) :]
    arrays = {name: ArrayMetadata.create(shape, chunks, np.dtype("float32"), dims=dims).document for name in "uv"}
    record = DatasetRecord("d", state="ready", arrays=arrays)
    spec = from_dict({"source": "d", "steps": steps, "output": {"dataset": "e", **output}})
    return make_plan(spec, record).arrays[0]


def _by_looking(array: ArrayPlan, changed: dict[str, list[int]]) -> list[int]:
    found = []
    for chunk in range(array.target.grid.size):
        pulls = pulls_of(array.flow, array.specs, array.sources, array.target.grid.region(chunk))
        if any(set(changed.get(one.path, ())) & set(one.chunks.tolist()) for one in pulls):
            found.append(chunk)
    return found


STEPS: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "map": ([{"map": "x + 1"}], {}),
    "halo": ([{"gaussian": {"sigma": {"y": 1.5, "x": 1}}}], {}),
    "halo that wraps": ([{"gaussian": {"sigma": {"y": 1.5, "x": 1}, "mode": "wrap"}}], {}),
    "other shards": ([], {"shards": [5, 7, 9]}),
    "transposed": ([{"transpose": ["x", "time", "y"]}], {}),
    "cropped": ([{"crop": {"to": {"y": [5, 20]}}}], {}),
    "resized": ([{"resize": {"to": {"y": 12, "x": 40}}}], {}),
    "derived of both": ([{"map": {"speed": "sqrt(u * u + v * v)"}}, {"drop": ["u", "v"]}], {}),
    "median": ([{"median": {"size": {"time": 3, "x": 5}}}], {}),
}


@pytest.mark.parametrize("name", STEPS)
def test_as_a_look_at_every_chunk(name: str) -> None:
    steps, output = STEPS[name]
    array = _plan((11, 24, 30), (4, 6, 10), steps, **output)
    size = array.source.grid.size
    generator = np.random.default_rng(3)
    for count in (1, 2, 5, size):
        changed = {array.flow.paths[0]: generator.choice(size, count, replace=False).tolist()}
        assert touched(array, changed).tolist() == _by_looking(array, changed), changed
    every = needed(array, range(array.target.grid.size))
    assert all(len(numbers) for numbers in every.values())


def test_nothing_and_what_is_beyond_the_array() -> None:
    array = _plan((11, 24, 30), (4, 6, 10), [{"gaussian": {"sigma": {"y": 1}}}])
    assert touched(array, {}).tolist() == []
    assert touched(array, {"another": [1], "u": [10**6, -1]}).tolist() == []
    assert touched(_plan((0, 24, 30), (4, 6, 10), [{"map": "x"}]), {"u": [0]}).tolist() == []


def test_one_among_a_million_is_found_at_once() -> None:
    array = _plan((1000, 10000, 10), (1, 10, 10), [{"gaussian": {"sigma": {"y": 1}}}])
    assert array.target.grid.size == 10**6
    began = time.process_time()
    assert len(touched(array, {"u": [500_500]})) == 3
    assert time.process_time() - began < 1
