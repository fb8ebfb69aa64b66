"""Single rows and tables are sealed alike, and no bit of a row changes unseen."""

from __future__ import annotations

import random

import numpy as np

from gpuflow.storage.seals import SEALED_DTYPE, are_sound, as_table, seal_of, seal_of_names

_NAMES = seal_of_names("d", "a/b")


def _row(number: int) -> tuple[object, ...]:
    generator = random.Random(number)
    blobs = [generator.randbytes(16) for _ in range(3)]
    return (number, 1 + number % 7, generator.getrandbits(40), number + 1, number % 2, *blobs)


def test_a_table_is_sealed_as_its_rows_are() -> None:
    rows = [(1, *_row(number), seal_of(_NAMES, *_row(number))) for number in range(1000)]
    table = as_table(rows)
    assert are_sound(table, _NAMES).all()
    assert not are_sound(table, seal_of_names("d", "a/c")).any()
    assert are_sound(as_table([]), _NAMES).tolist() == []


def test_every_bit_counts() -> None:
    """But those of the array's number, which the names stand for."""
    sound = as_table([(1, *_row(3), seal_of(_NAMES, *_row(3)))])
    bits = 8 * SEALED_DTYPE.itemsize
    changed = np.repeat(sound.view(np.uint8).reshape(1, -1), bits, axis=0)
    changed[np.arange(bits), np.arange(bits) // 8] ^= (1 << np.arange(bits) % 8).astype(np.uint8)
    found = ~are_sound(changed.reshape(-1).view(SEALED_DTYPE), _NAMES)
    assert found.tolist() == [False] * 64 + [True] * (bits - 64)


def test_rows_of_other_kinds_are_left_out() -> None:
    good = (1, *_row(0), seal_of(_NAMES, *_row(0)))
    for column, value in [(1, None), (1, "text"), (2, -1), (3, 1 << 70), (6, "text"), (9, None)]:
        bad = (*good[:column], value, *good[column + 1 :])
        assert are_sound(as_table([bad, good]), _NAMES).tolist()[-1:] == [True]
        assert not are_sound(as_table([bad]), _NAMES).any()
        assert column == 9 or seal_of(_NAMES, *bad[1:-1]) != bad[-1]
