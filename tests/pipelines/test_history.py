"""How far chunks have come, and what an address names."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gpuflow.errors import NotFound
from gpuflow.pipelines.fingerprint import recipe
from gpuflow.pipelines.history import split_address, stages, stale_generations
from gpuflow.pipelines.plan import ArrayPlan, steps_from
from gpuflow.storage.manifest import REPLICA_DTYPE, UNKNOWN
from gpuflow.storage.metadata import ArrayMetadata
from gpuflow.storage.record import DatasetRecord

STEPS: list[list[dict[str, Any]]] = [[{"map": {"expression": "x + 1"}}], [{"map": {"expression": "x * 2"}}]]
METADATA = ArrayMetadata.create((20, 6), (5, 3), np.dtype("float32"))


def record(*names: str, transforms: int = 0) -> DatasetRecord:
    told = tuple({"steps": dict.fromkeys(names, steps)} for steps in STEPS[:transforms])
    return DatasetRecord("d", state="ready", arrays=dict.fromkeys(names, METADATA.document), transforms=told)


def rows(*recipes: bytes, inputs: bytes = b"i" * 16) -> NDArray[Any]:
    return np.array([(number, 1, 9, b"d" * 16, made, inputs) for number, made in enumerate(recipes)], REPLICA_DTYPE)


def made_by(level: int) -> str:
    return ArrayPlan.mapped("a", METADATA, METADATA, steps_from(STEPS[level])).made_by(level)


def test_each_chunk_is_as_far_as_its_recipe_says() -> None:
    table = rows(b"r" * 16, recipe(made_by(0), b"i" * 16), recipe(made_by(1), b"i" * 16), UNKNOWN, b"r" * 16)
    table["generation"][4] = 0
    assert stages(record("a", transforms=2), "a", table) == [
        "as made",
        "in-place pipeline 1",
        "in-place pipeline 2",
        "of unknown history",
        "missing",
    ]
    assert stages(record("a"), "a", table[:2]) == ["as made", "as made"]
    assert stages(record("a", transforms=2), "a", table[:0]) == []


@pytest.mark.parametrize(
    ("rest", "found"),
    [
        ("", (None, None)),
        ("a", ("a", None)),
        ("a/", ("a", None)),
        ("a/b", ("a/b", None)),
        ("a/b/7", ("a/b", 7)),
        ("a/7", ("a", 7)),
        ("a/c.3.1", ("a", 7)),
        ("a/b/c.0.0", ("a/b", 0)),
    ],
)
def test_an_address(rest: str, found: tuple[str | None, int | None]) -> None:
    assert split_address(record("a", "a/b"), rest) == found


@pytest.mark.parametrize("chunk", ["8", "-1", "c.4.0", "c.0", "c.0.0.0", "0/0", "c.00.0", "x", "c.0/0", "99999999999999999999"])
def test_no_such_chunk(chunk: str) -> None:
    with pytest.raises(
        NotFound, match=re.escape(f"no chunk 'd/a/{chunk}'; it has 8: give a number from 0, or a key such as c.3.1")
    ):
        split_address(record("a"), f"a/{chunk}")


def test_no_such_array() -> None:
    with pytest.raises(NotFound, match="no array 'd/b'; there is: a"):
        split_address(record("a"), "b")


def test_older_replicas() -> None:
    assert stale_generations({"n0": [3], "n1": [2], "n2": []}, 3) == {"n1": 2}
