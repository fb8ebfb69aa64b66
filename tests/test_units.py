"""Bytes and seconds, written and read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuflow.units import counted, format_nbytes, format_seconds, parse_nbytes


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (2**20 - 1, "1.0 MiB"),
        (2**20, "1.0 MiB"),
        (3 * 2**30, "3.0 GiB"),
        (2**40, "1.0 TiB"),
        (2**52, "4096.0 TiB"),
        (-1536, "-1.5 KiB"),
    ],
)
def test_nbytes_are_written_in_binary_units(nbytes: int, text: str) -> None:
    assert format_nbytes(nbytes) == text


@given(st.integers(0, 2**49))
def test_a_written_size_reads_back_to_within_its_rounding(nbytes: int) -> None:
    assert abs(parse_nbytes(format_nbytes(nbytes)) - nbytes) <= 0.05 * nbytes
    assert not format_nbytes(nbytes).startswith("1024.0 ")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0123, "12 ms"), (0.9999, "1.0 s"), (1.25, "1.2 s"), (59.97, "1 min 0 s"), (75, "1 min 15 s"), (119.8, "2 min 0 s")],
)
def test_seconds(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("4 MiB", 2**22), (" 4mib ", 2**22), ("1.5KB", 1500), ("7", 7), (9, 9), ("9007199254740993", 2**53 + 1), ("0.1 TB", 10**11)],
)
def test_sizes_are_read(text: str | int, nbytes: int) -> None:
    assert parse_nbytes(text) == nbytes


@pytest.mark.parametrize("text", ["", "MiB", "-1", "4 XB", "1,5 MB", "1e3", "4 Mi B", "1.MB"])
def test_what_is_not_a_size_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size; write it like 4MiB"):
        parse_nbytes(text)


def test_numbers_of_things() -> None:
    assert [counted(number, "chunk") for number in (0, 1, 2, 1000)] == ["0 chunks", "1 chunk", "2 chunks", "1,000 chunks"]
