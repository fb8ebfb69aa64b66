"""A device that is full: here memory of the host that is counted, by real threads."""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from gpuflow.backends.inflight import InFlight
from gpuflow.errors import DeviceFull


class Memory:
    """Room for so many at once."""

    def __init__(self, room: int) -> None:
        self.room, self.used, self.most, self.released = room, 0, 0, 0
        self.lock = threading.Lock()

    def work(self) -> int:
        with self.lock:
            if self.used == self.room:
                raise DeviceFull("8 MiB", 0, 2**30)
            self.used += 1
            self.most = max(self.most, self.used)
        time.sleep(0.002)
        with self.lock:
            self.used -= 1
        return 1

    def release(self) -> None:
        self.released += 1


@pytest.mark.parametrize(("threads", "room", "left"), [(8, 8, {8}), (8, 3, {2}), (8, 1, {1}), (5, 2, {2, 1}), (1, 1, {1})])
def test_all_is_done_with_as_many_as_there_is_room_for(threads: int, room: int, left: set[int]) -> None:
    memory = Memory(room)
    flight = InFlight(threads, memory.release)
    with ThreadPoolExecutor(threads) as pool:
        assert sum(pool.map(lambda _: flight.run(memory.work), range(64))) == 64
    assert memory.used == 0
    assert memory.most <= room
    assert flight.most in left
    assert bool(memory.released) == (flight.most < threads)


def test_what_does_not_fit_alone_is_an_error_and_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    memory = Memory(0)
    flight = InFlight(4, memory.release)
    with caplog.at_level(logging.WARNING), pytest.raises(DeviceFull, match=r"the device is full: 0\.0 of 1\.0 GiB are free"):
        flight.run(memory.work)
    assert [record.args[1:] for record in caplog.records] == [(2, 4), (1, 2)]
    memory.room = 1
    assert flight.run(memory.work) == 1


def test_other_errors_pass_and_give_their_place_back() -> None:
    flight = InFlight(1, lambda: None)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            flight.run(lambda: 1 // 0)
    assert flight.run(lambda: 5) == 5
