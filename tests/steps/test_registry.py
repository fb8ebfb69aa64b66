"""Steps are found by name; a wrong name meets the nearest one. Errors survive pickling."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from gpuflow.steps.clip import Clip
from gpuflow.steps.parameters import StepError, describe, nearest
from gpuflow.steps.registry import STEPS, find


def test_the_table_is_by_kind() -> None:
    assert {"cast", "clip", "crop", "map", "stack"} <= STEPS.keys()
    assert {kind: step.kind for kind, step in STEPS.items()} == {kind: kind for kind in STEPS}
    assert find("clip") is Clip


@pytest.mark.parametrize(
    ("kind", "hint"),
    [
        ("standardise", "did you mean `standardize`?"),
        ("CLIP", "did you mean `clip`?"),
        ("qqq", f"known: {', '.join(sorted(STEPS))}"),
    ],
)
def test_an_unknown_step(kind: str, hint: str) -> None:
    with pytest.raises(StepError) as caught:
        find(kind)
    assert caught.value.hint == hint
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.message, again.hint, str(again)) == (caught.value.message, hint, str(caught.value))


def test_nearest_ignores_case_and_breaks_ties_by_name() -> None:
    assert nearest("Dataset", ["dataset", "device"]) == "dataset"
    assert nearest("ax", ["bx", "ay", "aa"]) == nearest("ax", ["aa", "ay", "bx"])
    assert nearest("zzz", ["dataset"]) is None
    assert nearest("x" * 10**6, ["dataset"]) is None


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "empty"), (True, "true"), (3, "the number 3"), (float("inf"), "the number inf"), (10**400, "a huge number"),
        ("a" * 50, f"the text '{'a' * 40}'..."), ([1], "a list"), (np.zeros(3), "a list"), ({}, "a mapping"), (b"", "a bytes"),
    ],
)  # fmt: skip
def test_values_are_described(value: object, words: str) -> None:
    assert describe(value) == words
