"""Buffers are used again, aligned, and never shared between two threads."""

from __future__ import annotations

import threading

import numpy as np

from gpuflow.storage.buffers import ALIGNMENT, Buffer, Slots


def test_a_buffer_is_aligned_and_used_again() -> None:
    buffer = Buffer()
    first = buffer.array((3, 5), np.dtype("float32"))
    assert first.ctypes.data % ALIGNMENT == 0
    assert first.flags.c_contiguous
    again = buffer.array((5, 2), np.dtype("int16"))
    assert again.ctypes.data == first.ctypes.data
    assert buffer.nbytes == 60
    assert buffer.bytes(1000).ctypes.data % ALIGNMENT == 0
    assert buffer.nbytes == 1000
    assert buffer.array((0, 4), np.dtype("float64")).shape == (0, 4)
    assert buffer.array((), np.dtype("int8")).shape == ()


def test_slots_are_taken_by_one_and_come_back() -> None:
    slots = Slots()
    with slots.take() as one, slots.take() as other:
        assert one is not other
        one.stored.bytes(100)
        other.decoded.bytes(10)
    with slots.take() as last:
        assert last in (one, other)
    assert slots.nbytes == 110


def test_threads_never_share_a_slot() -> None:
    slots, clashes, used = Slots(), [], set()

    def work(number: int) -> None:
        for _ in range(200):
            with slots.take() as slot:
                used.add(id(slot))
                memory = slot.stored.bytes(64)
                memory[:] = number
                if (memory != number).any():
                    clashes.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not clashes
    assert len(used) <= 4
