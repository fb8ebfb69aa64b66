"""Lent memory is never anybody else's while a view of it lives, and used again after that."""

from __future__ import annotations

import gc
from collections import deque

import numpy as np
import pytest

from gpuflow.storage import lent
from gpuflow.storage.lent import Lent

NBYTES = 2 * 2**20


@pytest.fixture(autouse=True)
def _none_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lent, "_free", deque(maxlen=lent._KEPT))


def test_what_is_looked_at_is_not_given_to_others() -> None:
    first = Lent().bytes(NBYTES)
    first[:] = 1
    views = [np.frombuffer(first.data[:1000], np.uint8), memoryview(first.data)[5:10], first[7:9].reshape(2, 1)]
    place = first.ctypes.data
    del first
    while views:
        gc.collect()
        other = Lent().bytes(NBYTES)
        assert other.ctypes.data != place
        other[:] = 2
        assert all((np.asarray(view) == 1).all() for view in views)
        views.pop()
        del other
    gc.collect()
    assert place in {memory.ctypes.data for memory in lent._free}
    assert place in {Lent().bytes(NBYTES).ctypes.data for _ in range(3)} | {memory.ctypes.data for memory in lent._free}


def test_little_is_kept() -> None:
    held = [Lent().bytes(NBYTES) for _ in range(30)]
    assert len({block.ctypes.data for block in held}) == 30
    del held
    gc.collect()
    assert 0 < len(lent._free) <= lent._KEPT
    assert Lent().bytes(100).shape == (100,)
