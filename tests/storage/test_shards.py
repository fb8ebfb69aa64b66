"""Shards: frames where GPUs want them, no copy where none is needed, and an index that lies is an error, never data."""

from __future__ import annotations

import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor
from math import prod
from typing import Any

import google_crc32c
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuflow.storage import zarr_fallback
from gpuflow.storage.buffers import Buffer, Slot
from gpuflow.storage.codecs import ArrayCodec, Block, CodecError
from gpuflow.storage.metadata import COMPRESSORS, ArrayMetadata
from tests.storage.arrays import BIG, CRC, GZIP, LITTLE, LZ4, ZSTD, blosc, metadata_of, opened, same, sharded, transposed

pytestmark = pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in:zarr.errors.ZarrUserWarning")

SHAPE, INNER = (8, 6), (2, 6)
BLOCK = np.arange(48, dtype="f4").reshape(SHAPE)
ABSENT = 2**64 - 1


def _codec(inner: list[dict[str, Any]], *, index: list[dict[str, Any]] | None = None, location: str = "end") -> ArrayCodec:
    chain = [sharded(INNER, inner, index, location)]
    codec = ArrayCodec(metadata_of(SHAPE, SHAPE, "float32", chain, fill=7.0))
    assert codec.is_fast
    return codec


def _index_of(data: bytes, location: str = "end", count: int = 4) -> np.ndarray[Any, np.dtype[np.uint64]]:
    raw = data[: 16 * count] if location == "start" else data[-16 * count - 4 : -4]
    return np.frombuffer(raw, "<u8").reshape(count, 2).copy()


def _with_index(data: bytes, index: Any, location: str = "end") -> bytes:
    raw = np.asarray(index, "<u8").tobytes()
    raw += google_crc32c.value(raw).to_bytes(4, "little")
    return raw + data[len(raw) :] if location == "start" else data[: -len(raw)] + raw


@pytest.mark.parametrize("compressor", COMPRESSORS)
@pytest.mark.parametrize("location", ["start", "end"])
def test_frames_begin_at_multiples_of_sixteen_and_padding_is_zero(compressor: str, location: str) -> None:
    codec = _codec([LITTLE, *COMPRESSORS[compressor]], location=location)
    slot = Slot()
    slot.encoded.bytes(4096)[:] = 0xFF
    data = bytes(codec.encode(BLOCK, slot))
    index = _index_of(data, location)
    used = np.zeros(len(data), bool)
    used[slice(0, 68) if location == "start" else slice(-68, None)] = True
    for start, nbytes in index.tolist():
        assert start % 16 == 0
        used[start : start + nbytes] = True
    assert not any(np.frombuffer(data, np.uint8)[~used])
    assert data == bytes(codec.encode(BLOCK))
    assert same(codec.decode(data), BLOCK)
    assert same(np.asarray(opened(codec.metadata, {"c.0.0": data})[...]), BLOCK)


def test_created_shards_are_what_zarr_creates() -> None:
    wanted = zarr.create_array({}, shape=(9, 6), shards=(4, 6), chunks=(2, 6), dtype="float32", compressors=None)
    made = ArrayMetadata.create((9, 6), (4, 6), np.dtype("f4"), compressor="none", inner_chunks=(2, 6))
    found = opened(made, {})
    assert found.metadata.codecs == wanted.metadata.codecs
    assert (found.shards, found.chunks) == ((4, 6), (2, 6)) == (made.grid.chunks, wanted.chunks)


@pytest.mark.parametrize("extent", [(5, 6), (2, 6), (8, 3), (1, 1), (8, 6)])
@pytest.mark.parametrize("inner", [(2, 6), (2, 2), (8, 3), (1, 6)])
@pytest.mark.parametrize("links", [[], [ZSTD]])
def test_inner_chunks_beyond_the_edge_are_left_out(
    extent: tuple[int, int], inner: tuple[int, int], links: list[dict[str, Any]]
) -> None:
    metadata = metadata_of(extent, SHAPE, "float32", [sharded(inner, [LITTLE, *links])], fill="NaN")
    codec = ArrayCodec(metadata)
    valid = BLOCK[: extent[0], : extent[1]]
    data = bytes(codec.encode(valid))
    counts = tuple(size // part for size, part in zip(SHAPE, inner, strict=True))
    there = _index_of(data, count=prod(counts))[:, 0].reshape(counts) != ABSENT
    wanted = np.zeros(counts, bool)
    wanted[: -(-extent[0] // inner[0]), : -(-extent[1] // inner[1])] = True
    assert np.array_equal(there, wanted)
    decoded = codec.decode(data)
    assert same(np.ascontiguousarray(decoded[: extent[0], : extent[1]]), np.ascontiguousarray(valid))
    rest = np.ones(SHAPE, bool)
    rest[: extent[0], : extent[1]] = False
    assert np.isnan(decoded[rest]).all()
    assert same(np.asarray(opened(metadata, {"c.0.0": data})[...]), np.ascontiguousarray(valid))


def test_raw_slabs_in_order_are_read_where_they_lie() -> None:
    codec = _codec([LITTLE])
    data = bytes(codec.encode(BLOCK))
    assert np.shares_memory(codec.decode(data, Slot()), np.frombuffer(data, np.uint8))


@pytest.mark.parametrize(
    "chain",
    [
        [sharded((2, 6), [BIG])],
        [sharded((2, 3), [LITTLE])],
        [sharded((2, 6), [LITTLE, ZSTD])],
        [sharded((2, 3), [BIG, LZ4])],
        [sharded((2, 2), [transposed([1, 0]), LITTLE, ZSTD])],
        [transposed([1, 0]), LITTLE],
        [transposed([1, 0]), LITTLE, ZSTD],
        [LITTLE, LZ4],
    ],
    ids=str,
)
def test_after_the_first_chunk_nothing_of_its_size_is_allocated(chain: list[dict[str, Any]]) -> None:
    shape = (512, 768)
    scaled = [dict(codec) for codec in chain]
    for codec in scaled:
        if codec["name"] == "sharding_indexed":
            rows, columns = codec["configuration"]["chunk_shape"]
            codec["configuration"] = codec["configuration"] | {"chunk_shape": [rows * 16, columns * 128]}
    array = ArrayCodec(metadata_of(shape, shape, "float32", scaled))
    assert array.is_fast
    block, slot = np.arange(prod(shape), dtype="f4").reshape(shape), Slot()
    data = bytes(array.encode(block, slot))
    array.decode(data, slot)
    held = slot.nbytes
    tracemalloc.start()
    try:
        decoded = array.decode(data, slot)
        decode_peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        array.encode(block, slot)
        encode_peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert same(decoded, block)
    assert slot.nbytes == held
    assert decode_peak < 100_000
    compressed = chain[-1]["name"] not in ("bytes", "sharding_indexed")
    assert encode_peak < (block.nbytes * 1.1 if compressed else 200_000)  # numcodecs allocates each frame


LIES: dict[str, Any] = {
    "offset past the end": (1, 10**6, 48),
    "last byte past the end": (3, 144, 49),
    "huge offset": (1, 2**63, 48),
    "huge nbytes": (1, 48, 2**63),
    "nbytes that wrap around": (1, 48, 2**64 - 2),
    "offset alone absent": (1, ABSENT, 48),
    "nbytes alone absent": (1, 48, ABSENT),
    "into the index": (1, 190, 48),
    "over another": (1, 40, 48),
    "another's place": (1, 0, 48),
    "within another": (1, 4, 8),
    "too short": (1, 48, 44),
    "nothing": (1, 48, 0),
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("location", ["end", "start"])
@pytest.mark.parametrize("links", [[], [CRC], [ZSTD], [LZ4]], ids=["raw", "crc32c", "zstd", "lz4"])
def test_an_index_that_lies(lie: str, location: str, links: list[dict[str, Any]]) -> None:
    codec = _codec([LITTLE, *links], location=location)
    data = bytes(codec.encode(BLOCK))
    index = _index_of(data, location)
    number, offset, nbytes = LIES[lie]
    first, shift = int(index[0, 0]), len(data) - 260
    if location == "start" and offset < 10**6:
        offset = 4 if lie == "into the index" else offset + first
    elif links and lie in ("into the index", "last byte past the end"):
        offset += shift
    if lie == "last byte past the end" and location == "start":
        offset = len(data) - 48
    index[number] = offset, nbytes
    with pytest.raises(CodecError):
        codec.decode(_with_index(data, index, location))


def test_what_is_wrong_is_named() -> None:
    codec = _codec([LITTLE, ZSTD])
    data = bytes(codec.encode(BLOCK))
    index = _index_of(data)
    index[2] = 10**9, 5
    with pytest.raises(CodecError, match=r"puts inner chunk 2 at 5 bytes from 1000000000 on, inner chunks lie from 0 to \d+"):
        codec.decode(_with_index(data, index))
    index = _index_of(data)
    index[3] = index[2]
    with pytest.raises(CodecError, match="puts inner chunks over one another"):
        codec.decode(_with_index(data, index))
    index[3] = index[2, 0], 3
    index[2] = ABSENT, ABSENT
    with pytest.raises(CodecError, match="inner chunk 3: "):
        codec.decode(_with_index(data, index))
    with pytest.raises(CodecError, match="index of the shard: crc32c does not match"):
        codec.decode(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CodecError, match="67 bytes, the index of a shard alone has 68"):
        codec.decode(data[-67:])
    with pytest.raises(CodecError, match="no bytes"):
        codec.decode(b"")


@pytest.mark.parametrize("location", ["end", "start"])
@pytest.mark.parametrize("links", [[], [ZSTD]], ids=["raw", "zstd"])
def test_a_truncated_shard(location: str, links: list[dict[str, Any]]) -> None:
    codec = _codec([LITTLE, *links], location=location)
    data = bytes(codec.encode(BLOCK))
    padding = 0 if location == "end" else len(data) - int(_index_of(data, location)[-1].sum())
    for length in range(len(data) - padding):
        with pytest.raises(CodecError):
            codec.decode(data[:length])


@pytest.mark.parametrize("location", ["end", "start"])
def test_inner_chunks_may_lie_anywhere_and_any_may_be_absent(location: str) -> None:
    codec = _codec([LITTLE, ZSTD], location=location)
    frames = [bytes(ArrayCodec(metadata_of(INNER, INNER, "float32", [LITTLE, ZSTD])).encode(BLOCK[i : i + 2])) for i in (0, 2, 4)]
    begin = 68 if location == "start" else 0
    index, body = [(ABSENT, ABSENT)] * 4, b""
    for number in (2, 0, 1):
        body += b"?" * (number + 1)
        index[number] = begin + len(body), len(frames[number])
        body += frames[number]
    blank = bytes(68)
    data = _with_index(blank + body if location == "start" else body + blank, index, location)
    wanted = BLOCK.copy()
    wanted[6:] = 7
    assert same(codec.decode(data), wanted)
    assert same(np.asarray(opened(codec.metadata, {"c.0.0": data})[...]), wanted)


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_a_damaged_shard_with_checksums_is_an_error_or_whole(data: st.DataObject) -> None:
    links = data.draw(st.sampled_from([[CRC], [ZSTD, CRC], [LZ4, CRC], [GZIP, CRC]]))
    codec = _codec([LITTLE, *links], location=data.draw(st.sampled_from(["end", "start"])))
    stored = bytearray(codec.encode(BLOCK))
    for place in data.draw(st.lists(st.integers(0, len(stored) - 1), min_size=1, max_size=4)):
        stored[place] ^= data.draw(st.integers(1, 255))
    try:
        assert same(codec.decode(bytes(stored)), BLOCK)  # padding, or damaged twice
    except CodecError:
        return


@settings(deadline=None, max_examples=150)
@given(
    st.lists(
        st.tuples(*[st.one_of(st.integers(0, 300), st.sampled_from([ABSENT, ABSENT - 1, 2**63]))] * 2), min_size=4, max_size=4
    )
)
def test_any_index_is_read_within_the_shard(index: list[tuple[int, int]]) -> None:
    codec = _codec([LITTLE])
    data = bytes(codec.encode(BLOCK))
    lying = _with_index(data, index)
    try:
        decoded = codec.decode(lying)
    except CodecError:
        return
    for number, (offset, nbytes) in enumerate(index):
        part = decoded[2 * number : 2 * number + 2]
        wanted = (
            np.frombuffer(data[offset : offset + nbytes], "f4").reshape(INNER) if offset != ABSENT else np.full(INNER, 7, "f4")
        )
        assert offset == ABSENT or offset + nbytes <= 192
        assert same(np.ascontiguousarray(part), np.ascontiguousarray(wanted))


def _zstd_header(nbytes: int) -> bytes:
    """The header of a frame of `nbytes` with an 8 byte Frame_Content_Size, then one empty last block."""
    return b"\x28\xb5\x2f\xfd\xe0" + nbytes.to_bytes(8, "little") + b"\x01\x00\x00"


def _gzip_bomb() -> bytes:
    packer = zlib.compressobj(9, wbits=31)
    return b"".join(packer.compress(bytes(2**20)) for _ in range(200)) + packer.flush()


FRAMES: dict[str, tuple[list[dict[str, Any]], bytes]] = {
    "zstd 2**60": ([ZSTD], _zstd_header(2**60)),
    "zstd 2**64 - 1": ([ZSTD], _zstd_header(2**64 - 1)),
    "zstd 2**30": ([ZSTD], _zstd_header(2**30)),
    "zstd, nothing": ([ZSTD], _zstd_header(0)),
    "zstd says 48": ([ZSTD], _zstd_header(48)),
    "two zstd frames, sum wraps": ([ZSTD], _zstd_header(2**63) * 2),
    "skippable alone": ([ZSTD], b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"),
    "skippable past the end": ([ZSTD], b"\x50\x2a\x4d\x18\xff\xff\xff\xff"),
    "zstd under crc": ([CRC, ZSTD], _zstd_header(2**40)),
    "lz4 4 GiB": ([LZ4], b"\xff\xff\xff\xff" + bytes(20)),
    "lz4 nothing": ([LZ4], bytes(4)),
    "lz4 within zstd": ([LZ4, ZSTD], _zstd_header(2**40)),
    "blosc 2 GiB": (
        [blosc("lz4", "noshuffle", 1)],
        b"\x02\x01\x00\x01" + b"\xff\xff\xff\x7f" + bytes(4) + (32).to_bytes(4, "little") + bytes(16),
    ),
    "gzip bomb": ([GZIP], _gzip_bomb()),
    "gzip bomb in zstd": ([ZSTD, GZIP], _gzip_bomb()),
}


@pytest.mark.parametrize("name", FRAMES)
@pytest.mark.parametrize("where", ["chunk", "shard", "around a shard"])
def test_what_a_lying_frame_asks_for_is_not_allocated(name: str, where: str) -> None:
    links, frame = FRAMES[name]
    codec = ArrayCodec(metadata_of(INNER, INNER, "float32", [LITTLE, *links]))
    stored = frame
    if where == "shard":
        codec = _codec([LITTLE, *links])
        stored = _with_index(frame + bytes(68), [(0, len(frame)), *[(ABSENT, ABSENT)] * 3])
    elif where == "around a shard":
        codec = ArrayCodec(metadata_of(SHAPE, SHAPE, "float32", [sharded(INNER, [LITTLE]), *links]))
    assert codec.is_fast
    tracemalloc.start()
    try:
        with pytest.raises(CodecError):
            codec.decode(stored, Slot())
        assert tracemalloc.get_traced_memory()[1] < 2**20 + 2 * len(stored)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("links", [[ZSTD], [LZ4], [GZIP], [CRC], [blosc("lz4", "shuffle", 4)], [ZSTD, CRC]], ids=str)
def test_an_inner_chunk_of_another_size(rows: int, links: list[dict[str, Any]]) -> None:
    other = ArrayCodec(metadata_of((rows, 6), (rows, 6), "float32", [LITTLE, *links]))
    frame = bytes(other.encode(BLOCK[:rows]))
    data = _with_index(frame + bytes(68), [(0, len(frame)), *[(ABSENT, ABSENT)] * 3])
    with pytest.raises(CodecError, match="inner chunk 0: "):
        _codec([LITTLE, *links]).decode(data)


def test_several_zstd_frames_and_frames_that_do_not_tell_their_size() -> None:
    codec = ArrayCodec(metadata_of((8,), (8,), "uint8", [LITTLE, ZSTD]))
    half = ArrayCodec(metadata_of((4,), (4,), "uint8", [LITTLE, ZSTD]))
    values: Block = np.arange(8, dtype="u1")
    skippable = b"\x5f\x2a\x4d\x18\x02\x00\x00\x00ab"
    frames = [bytes(half.encode(values[:4])), bytes(half.encode(values[4:]))]
    assert same(codec.decode(b"".join([frames[0], skippable, frames[1]])), values)
    raw = bytes([8 << 3 & 0xFF | 1, 0, 0]) + values.tobytes()  # one last, raw block of 8 bytes
    untold = b"\x28\xb5\x2f\xfd\x00\x58" + raw
    assert same(codec.decode(untold), values)
    with pytest.raises(CodecError):
        half.decode(untold)
    with pytest.raises(CodecError):
        ArrayCodec(metadata_of((9,), (9,), "uint8", [LITTLE, ZSTD])).decode(untold)
    with pytest.raises(CodecError):
        codec.decode(frames[0])
    with pytest.raises(CodecError):
        codec.decode(frames[0] * 3)


def test_threads_share_a_codec_with_a_slot_each() -> None:
    codec = ArrayCodec(metadata_of((64, 96), (64, 96), "float32", [sharded((16, 32), [BIG, ZSTD])]))

    def round_trips(seed: int) -> bool:
        slot, block = Slot(), np.random.default_rng(seed).normal(size=(64, 96)).astype("f4")
        return all(same(codec.decode(bytes(codec.encode(block, slot)), slot), block) for _ in range(50))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(round_trips, range(4)))


def test_a_block_made_in_its_place_is_not_copied() -> None:
    """Raw shards only: of all others, and of ragged ones, the place is memory beside the encoded bytes."""
    raw = ArrayMetadata.create((30, 8, 8), (16, 8, 8), np.dtype("float32"), compressor="none", inner_chunks=(2, 8, 8))
    codec, slot = ArrayCodec(raw), Slot()
    block = codec.place((16, 8, 8), slot)
    block[...] = np.arange(1024, dtype="float32").reshape(16, 8, 8)
    wanted = block.copy()
    data = codec.encode(block, slot)
    assert np.shares_memory(np.frombuffer(data, np.uint8), block)
    np.testing.assert_array_equal(codec.decode(bytes(data)), wanted)
    np.testing.assert_array_equal(zarr_fallback.decode(raw, bytes(data)), wanted)
    ragged = codec.place((14, 8, 8), slot)
    assert ragged.shape == (14, 8, 8)
    assert not np.shares_memory(ragged, np.frombuffer(codec.encode(ragged, slot), np.uint8))
    packed = ArrayCodec(ArrayMetadata.create((16, 8), (16, 8), np.dtype("int16"), inner_chunks=(2, 8)))
    assert packed.place((16, 8), slot).shape == (16, 8)


def test_inner_chunks_read_one_by_one_tell_a_flipped_bit() -> None:
    """As gpuflow writes them, with zstd: an inner chunk that still has a checksum decodes to what it was, or does not decode."""
    values = np.arange(48, dtype="int32").reshape(8, 6) % 5
    codec = ArrayCodec(ArrayMetadata.create((8, 6), (8, 6), np.dtype("int32"), inner_chunks=(2, 6)))
    shard = codec.shard
    assert shard is not None
    stored = np.frombuffer(codec.encode(values), np.uint8)
    for position in range(len(stored)):
        damaged = stored.copy()
        damaged[position] ^= 0x10
        try:
            frames = shard.frames(damaged[slice(*shard.index_place(len(damaged)))], len(damaged))
        except CodecError:
            continue
        for number, (start, nbytes) in enumerate(frames.tolist()):
            frame, place = damaged[start : start + nbytes], np.empty((2, 6), "int32")
            if not shard.inner.is_checked(frame):
                continue  # whoever reads it compares the digest of the whole
            try:
                shard.inner.decode_into(frame, place, Buffer())
            except (ValueError, RuntimeError):  # the libraries have errors of their own
                continue
            assert same(place, values[2 * number : 2 * number + 2])


def test_what_cannot_be_read_in_parts() -> None:
    plain = ArrayMetadata.create((8, 6), (8, 6), np.dtype("int32"))
    assert ArrayCodec(plain).shard is None
    document = ArrayMetadata.create((8, 6), (8, 6), np.dtype("int32"), inner_chunks=(2, 6)).document
    assert ArrayCodec(ArrayMetadata({**document, "codecs": [*document["codecs"], CRC]})).shard is None
    shard = ArrayCodec(ArrayMetadata(document)).shard
    assert shard is not None
    with pytest.raises(CodecError, match="the index of a shard alone has"):
        shard.index_place(8)
