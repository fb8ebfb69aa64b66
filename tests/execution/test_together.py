"""All are asked at once, and an error waits for the others."""

from __future__ import annotations

import threading

import pytest

from gpuflow.execution.together import together


def test_at_once_and_in_order() -> None:
    meeting = threading.Barrier(3, timeout=10)
    assert together(*[lambda number=number: (meeting.wait(), number)[1] for number in range(3)]) == [0, 1, 2]


def test_the_first_error_when_all_have_ended() -> None:
    ended = []

    def fail() -> None:
        raise ValueError("one")

    with pytest.raises(ValueError, match="one"):
        together(fail, lambda: ended.append(True))
    assert ended == [True]
