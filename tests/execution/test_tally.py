"""Tallies add up, and survive the way from a worker."""

from __future__ import annotations

import pickle
import time
from dataclasses import fields

import pytest

from gpuflow.execution.tally import STAGES, Failure, Tally

COUNTS = [field.name for field in fields(Tally) if field.type == "int"]


def example(factor: int) -> Tally:
    tally = Tally(**{name: factor * (i + 1) for i, name in enumerate(COUNTS)})  # type: ignore[arg-type]
    tally.seconds = dict.fromkeys(STAGES, factor * 0.5)
    tally.by_node.update({"n0": factor, f"n{factor}": 1})
    tally.shipped_why.update({"hot_node": factor})
    tally.failures.append(Failure(f"d/x/c/{factor}", factor, "n0", "KeyError: 'x'", "Traceback", retry=bool(factor % 2)))
    return tally


def test_add_takes_over_everything() -> None:
    total = Tally()
    for factor in (1, 2):
        total.add(example(factor))
    assert len(COUNTS) == 13
    assert [getattr(total, name) for name in COUNTS] == [3 * (i + 1) for i in range(len(COUNTS))]
    assert total.seconds == dict.fromkeys(STAGES, 1.5)
    assert total.by_node == {"n0": 3, "n1": 1, "n2": 1}
    assert total.shipped_why == {"hot_node": 3}
    assert [failure.index for failure in total.failures] == [1, 2]


def test_adding_leaves_the_other_alone() -> None:
    other, total = example(2), Tally()
    total.add(other)
    total.add(other)
    total.by_node["n0"] += 5
    total.seconds["read"] += 5
    total.failures.clear()
    assert other == example(2)


def test_timed_adds_also_when_the_block_raises() -> None:
    tally = Tally()
    with tally.timed("read"):
        time.sleep(0.01)
    with pytest.raises(ZeroDivisionError), tally.timed("encode"):
        sum(1 / (9_999 - i) for i in range(10_000))
    assert 0.01 <= tally.seconds["read"] < 1
    assert 0 < tally.seconds["encode"] < 1
    assert tally.seconds["commit"] == 0


def test_pickles() -> None:
    assert pickle.loads(pickle.dumps(example(3))) == example(3)


def test_a_failure_in_a_receipt() -> None:
    (failure,) = example(1).failures
    assert failure.to_dict() == {"chunk": "d/x/c/1", "node": "n0", "error": "KeyError: 'x'", "traceback": "Traceback"}
