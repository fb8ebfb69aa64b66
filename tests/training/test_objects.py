"""Stored objects read in parts: verified once, and never read twice for it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from gpuflow.errors import ChunkCorrupt
from gpuflow.storage.buffers import Buffer, Slot
from gpuflow.storage.byte_codecs import Bytes
from gpuflow.storage.codecs import ArrayCodec
from gpuflow.storage.disk import digest
from gpuflow.storage.manifest import Replica
from gpuflow.storage.metadata import ArrayMetadata
from gpuflow.training.objects import StoredObject

ROWS, WIDTH = 64, 2**17
BLOCK = np.random.default_rng(0).integers(0, 9, (ROWS, WIDTH), dtype=np.uint8)


class Stored:
    """BLOCK as a shard of an inner chunk a row: 8 MiB, more than is read at once. reads: from where to where, index not counted."""

    def __init__(self, compressor: str) -> None:
        codec = ArrayCodec(
            ArrayMetadata.create(BLOCK.shape, BLOCK.shape, BLOCK.dtype, compressor=compressor, inner_chunks=(1, WIDTH))
        )
        assert codec.shard is not None
        self.data = np.frombuffer(bytes(codec.encode(BLOCK, Slot())), np.uint8).copy()
        replica = Replica("d", "a", 0, 1, len(self.data), digest(self.data.data), bytes(16), bytes(16))
        self.reads: list[tuple[int, int]] = []
        self.opened = StoredObject("d/a/0", "n0", replica, codec.shard, self._read_at, verified=False)
        self.reads.clear()

    def _read_at(self, start: int, stop: int, buffer: Buffer) -> Bytes:
        self.reads.append((start, stop))
        part = buffer.bytes(stop - start)
        part[:] = self.data[start:stop]
        return part

    def rows(self, numbers: list[int]) -> dict[int, bytes]:
        """What is read of some rows, as stored."""
        found = self.opened.read(numbers, Buffer(), Buffer())
        return {number: bytes(frame) for number, frame in found if frame is not None}


def test_the_first_who_reads_it_has_it_from_what_was_verified() -> None:
    stored = Stored("none")
    assert stored.rows(list(range(ROWS))) == {number: BLOCK[number].tobytes() for number in range(ROWS)}
    assert stored.reads[1:] == [(0, len(stored.data))], "but for the first part, whose lack of a checksum was found then"


def test_later_reads_are_compared_with_what_was_verified() -> None:
    stored = Stored("none")
    assert stored.rows([3]) == {3: BLOCK[3].tobytes()}
    stored.reads.clear()
    assert stored.rows([3, 4]) == {number: BLOCK[number].tobytes() for number in (3, 4)}
    assert stored.reads == [(3 * WIDTH, 5 * WIDTH)]
    stored.data[4 * WIDTH + 5] ^= 1
    with pytest.raises(ChunkCorrupt, match="inner chunk 4 is not what it was"):
        stored.rows([3, 4])


@pytest.mark.parametrize("at", [0, 40 * WIDTH])
def test_damage_is_found_before_anything_is_given(at: int) -> None:
    stored = Stored("none")
    stored.data[at] ^= 1
    with pytest.raises(ChunkCorrupt, match="committed was"):
        stored.rows([7])


def test_what_is_known_is_read_to_its_place_and_compared() -> None:
    stored, place = Stored("none"), np.zeros(WIDTH, np.uint8)
    assert not stored.opened.is_known
    stored.rows([0])
    assert stored.opened.is_known
    stored.reads.clear()
    assert stored.opened.read_into(5, place)
    np.testing.assert_array_equal(place, BLOCK[5])
    assert stored.reads == [(5 * WIDTH, 6 * WIDTH)]
    assert not stored.opened.read_into(5, place[1:])
    stored.data[5 * WIDTH] ^= 1
    with pytest.raises(ChunkCorrupt, match="inner chunk 5"):
        stored.opened.read_into(5, place)


def test_threads_verify_it_once() -> None:
    stored = Stored("none")
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(stored.rows, [[number] for number in range(ROWS)]))
    assert found == [{number: BLOCK[number].tobytes()} for number in range(ROWS)]
    assert stored.reads.count((0, len(stored.data))) == 1


def test_with_checksums_only_what_is_wanted_is_read() -> None:
    stored = Stored("zstd")
    stored.rows([9])
    ((start, stop),) = stored.reads
    assert stop - start < WIDTH
