"""No sample is lost or seen twice, wherever a training is cut off and with however many ranks it goes on."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuflow.errors import StateMismatch
from gpuflow.training.assignment import assign
from gpuflow.training.order import Batches, Buffered, Full, Order
from gpuflow.training.state import State

STATE = State("photos", "c" * 32, "s" * 16, 7, "full", 32, "keep")

ORDERS = st.one_of(
    st.builds(Full, st.integers(1, 200), st.integers(0, 99)),
    st.builds(Buffered, st.integers(1, 200), st.integers(0, 99), st.integers(1, 30), st.integers(1, 5)),
)


@given(
    order=ORDERS,
    batch_size=st.integers(1, 40),
    runs=st.lists(st.tuples(st.integers(1, 5), st.integers(0, 12), st.integers(0, 3)), min_size=1, max_size=6),
)
@settings(max_examples=60, deadline=None)
def test_nothing_lost_or_seen_twice(order: Order, batch_size: int, runs: list[tuple[int, int, int]]) -> None:
    """runs: (ranks, batches until it is killed, batches since the state was saved, which are done again)."""
    batches = Batches(order, batch_size)
    state: dict[str, Any] = STATE.to_dict()
    seen: list[list[int]] = []  # by global batch, in order
    done = 0

    def run(world: int, count: int, unsaved: int) -> None:
        nonlocal state, done
        here = STATE.at(state, batches.count)
        del seen[done:]
        for number in range(count):
            samples, _ = batches.samples(here.epoch, here.batch)
            homes = [frozenset({str(sample % 3)}) for sample in samples.tolist()]
            shares = assign(samples, homes, [str(rank % 3) for rank in range(world)])
            seen.append(sorted(samples[place] for share in shares for place in share))
            here = here.after(batches.count)
            if number < count - unsaved:
                state, done = json.loads(json.dumps(here.to_dict())), len(seen)

    for world, count, unsaved in runs:
        run(world, count, unsaved)
    run(3, batches.count + 1, 0)
    for epoch in range(len(seen) // batches.count):
        mine = seen[epoch * batches.count : (epoch + 1) * batches.count]
        assert sorted(sample for batch in mine for sample in batch) == list(range(order.size))
    expected = [sorted(batches.samples(*divmod(number, batches.count))[0].tolist()) for number in range(len(seen))]
    assert seen == expected


def test_small_and_plain() -> None:
    long = replace(STATE, dataset="d" * 255, epoch=10**9, batch=10**9)
    assert len(json.dumps(long.to_dict())) <= 1024


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"content": "x" * 32, "dataset": "faces"},
            "the dataset was 'photos' and is 'faces', the content of the dataset was 'ccc",
        ),
        ({"content": "x" * 32}, "the content of the dataset was 'ccc"),
        ({"seed": 8}, "the seed was 7 and is 8"),
        ({"order": "none"}, "the order was 'full' and is 'none'"),
        ({"batch_size": 16}, "the batch size was 32 and is 16"),
        ({"last": "drop"}, "what becomes of the last batch was 'keep' and is 'drop'"),
        ({"samples": "t" * 16}, r"what a sample is \(arrays, sample, stride, samples, weights\) was"),
    ],
)
def test_another_training_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(StateMismatch, match=message):
        replace(STATE, **change).at(STATE.to_dict(), 10)


def test_the_same_content_under_another_name_is_the_same() -> None:
    moved = replace(STATE, dataset="copy").at(replace(STATE, epoch=2, batch=3).to_dict(), 10)
    assert (moved.dataset, moved.epoch, moved.batch) == ("copy", 2, 3)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"format": 2},
        [],
        {**STATE.to_dict(), "batch": 11},
        {**STATE.to_dict(), "epoch": -1},
        {**STATE.to_dict(), "batch": "1"},
    ],
)
def test_what_is_no_state(given: Any) -> None:
    with pytest.raises(StateMismatch, match="this state is of another training: its"):
        STATE.at(given, 10)


def test_behind_the_last_batch_the_next_epoch_begins() -> None:
    assert (STATE.after(1).epoch, STATE.after(1).batch) == (1, 0)
    at_end = STATE.at({**STATE.to_dict(), "batch": 10}, 10)
    assert (at_end.epoch, at_end.batch) == (1, 0)
    assert np.unique([STATE.after(10).batch]).tolist() == [1]
