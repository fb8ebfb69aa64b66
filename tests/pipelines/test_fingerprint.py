"""Equal content, equal digest; anything else changes it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gpuflow.pipelines import fingerprint as module
from gpuflow.pipelines.fingerprint import fingerprint, recipe, recipes
from gpuflow.pipelines.pipeline import Pipeline

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def reversed_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: reversed_keys(inner) for key, inner in reversed(value.items())}
    return [reversed_keys(inner) for inner in value] if isinstance(value, list) else value


@given(plain)
def test_the_order_of_keys_does_not_matter(value: Any) -> None:
    digest = fingerprint(value)
    assert fingerprint(reversed_keys(value)) == digest
    assert len(bytes.fromhex(digest)) == 16
    assert fingerprint(json.loads(json.dumps(value))) == digest, "what a record keeps must fingerprint as what was kept"


@given(plain, plain)
def test_other_content_has_another_digest(one: Any, other: Any) -> None:
    assume(json.dumps(one, sort_keys=True) != json.dumps(other, sort_keys=True))
    assert fingerprint(one) != fingerprint(other)


def steps_of(pipeline: Pipeline) -> str:
    return fingerprint(pipeline.to("b").spec.to_dict()["steps"])


BASE = Pipeline("a").standardize("c", mean=[1, 2], std=[3, 4]).clip(-1, 1).map("x * 2").cast("float16")


@pytest.mark.parametrize(
    "other",
    [
        Pipeline("a").standardize("y", mean=[1, 2], std=[3, 4]).clip(-1, 1).map("x * 2").cast("float16"),
        Pipeline("a").standardize("c", mean=[1, 2.000001], std=[3, 4]).clip(-1, 1).map("x * 2").cast("float16"),
        Pipeline("a").standardize("c", mean=[1, 2], std=[4, 3]).clip(-1, 1).map("x * 2").cast("float16"),
        Pipeline("a").standardize("c", mean=[1, 2], std=[3, 4]).clip(max=1).map("x * 2").cast("float16"),
        Pipeline("a").standardize("c", mean=[1, 2], std=[3, 4]).clip(-1, 1).map("x * 3").cast("float16"),
        Pipeline("a").standardize("c", mean=[1, 2], std=[3, 4]).clip(-1, 1).map("x * 2").cast("float32"),
        Pipeline("a").standardize("c", mean=[1, 2], std=[3, 4]).map("x * 2").clip(-1, 1).cast("float16"),
        Pipeline("a").standardize("c", mean=[1, 2], std=[3, 4]).clip(-1, 1).map("x * 2"),
    ],
)
def test_any_parameter_or_order_changes_it(other: Pipeline) -> None:
    assert steps_of(other) != steps_of(BASE)
    assert steps_of(BASE) == steps_of(Pipeline.from_spec(BASE.to("b").spec))


def test_a_new_algebra_makes_everything_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint([1])
    monkeypatch.setattr(module, "ALGEBRA", module.ALGEBRA + 1)
    assert fingerprint([1]) != before


def test_the_digests_are_a_format() -> None:
    """Manifests keep them: a change here makes every dataset be computed again."""
    assert fingerprint({"b": [1, 2.5, None], "a": "x"}) == "876e85ff72c153c7602abf316aa01c37"
    assert recipe("00" * 16, bytes(16)).hex() == "9a026d96b3c0f0fca057271c9071c99d"


@given(st.binary(min_size=16, max_size=16), st.binary(min_size=16, max_size=16), st.binary(min_size=16, max_size=16))
def test_a_recipe_depends_on_both(made_by: bytes, inputs: bytes, other: bytes) -> None:
    assume(inputs != other)
    assert len(recipe(made_by.hex(), inputs)) == 16
    assert recipe(made_by.hex(), inputs) != recipe(made_by.hex(), other)
    assert recipe(inputs.hex(), made_by) != recipe(other.hex(), made_by)


@given(st.binary(min_size=16, max_size=16), st.lists(st.binary(min_size=16, max_size=16)))
def test_many_recipes_at_once(made_by: bytes, inputs: list[bytes]) -> None:
    found = recipes(made_by.hex(), np.array(inputs, "V16"))
    assert found.tolist() == [recipe(made_by.hex(), each) for each in inputs]
