"""What locality was worth, by hand."""

from __future__ import annotations

import pytest

from gpuflow.execution.saved import saved_seconds
from gpuflow.execution.submit import Outcome
from gpuflow.execution.tally import Tally


@pytest.mark.parametrize(
    ("read", "shipped", "read_seconds", "transferred", "saved"),
    [
        (1000, 0, 1.0, (5, 500, 2.0), 3.0),  # 4 s to ship it all
        (1000, 400, 1.0, (5, 500, 2.0), 1.4),
        (1000, 0, 5.0, (5, 500, 2.0), -1.0),  # a disk slower than the network
        (1000, 0, 4.0, (5, 500, 2.0), 0.0),
        (1000, 1000, 0.0, (10, 1000, 2.0), 0.0),  # nothing was local
        (0, 0, 0.0, (0, 0, 0.0), 0.0),
        (1000, 0, 1.0, (0, 0, 0.0), None),  # what shipping takes has never been seen
        (1000, 0, 1.0, (1, 2, 0.2), 1.0),  # it was, of two bytes
    ],
)
def test_saved(read: int, shipped: int, read_seconds: float, transferred: tuple[int, int, float], saved: float | None) -> None:
    tally = Tally(read=read, shipped=shipped, local_chunks=(read - shipped) // 100)
    tally.seconds["read"] = read_seconds
    found = saved_seconds(Outcome(tally=tally, transferred=transferred))
    assert found == (None if saved is None else pytest.approx(saved))
