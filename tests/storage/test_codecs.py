"""What is encoded here zarr reads, what zarr writes is decoded here, and bad bytes are a CodecError, never data."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zarr.storage import MemoryStore

from gpuflow.errors import ConfigError
from gpuflow.storage.buffers import Slot
from gpuflow.storage.codecs import ArrayCodec, Block, CodecError
from gpuflow.storage.metadata import COMPRESSORS, ArrayMetadata
from tests.storage.arrays import (
    BIG,
    CRC,
    GZIP,
    LITTLE,
    LZ4,
    ZSTD,
    arrays,
    blosc,
    metadata_of,
    objects_of,
    opened,
    same,
    sharded,
    transposed,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in:zarr.errors.ZarrUserWarning"),
    pytest.mark.filterwarnings("ignore:Combining a `sharding_indexed` codec:zarr.errors.ZarrUserWarning"),
]

FAST_CHAINS: dict[str, list[dict[str, Any]]] = {
    "none": [LITTLE],
    "big": [BIG],
    "zstd": [LITTLE, ZSTD],
    "gzip": [BIG, GZIP],
    "lz4 shuffle": [LITTLE, blosc("lz4", "shuffle", 4)],
    "zstd bitshuffle": [BIG, blosc("zstd", "bitshuffle", 8)],
    "blosclz": [LITTLE, blosc("blosclz", "noshuffle", 1)],
    "crc32c": [LITTLE, CRC],
    "zstd crc32c": [LITTLE, ZSTD, CRC],
    "crc32c gzip": [LITTLE, CRC, GZIP],
    "lz4": [LITTLE, LZ4],
    "lz4 crc32c zstd": [BIG, LZ4, CRC, ZSTD],
}
OTHER_CHAINS = ("transpose", "sharded", "sharded zstd")
SLOW_CHAINS = ("nested", "vlen", "bad transpose", "uneven", "packed index")


def _chain(name: str, chunks: tuple[int, ...]) -> list[dict[str, Any]]:
    halves = tuple(size // 2 if size % 2 == 0 else size for size in chunks)
    turned = transposed(list(reversed(range(len(chunks)))))
    others = {
        "transpose": [turned, LITTLE, ZSTD],
        "sharded": [sharded(halves, [LITTLE])],
        "sharded zstd": [sharded(halves, [LITTLE, ZSTD])],
        "nested": [sharded(halves, [sharded(halves, [LITTLE])])],
        "vlen": [{"name": "vlen-utf8"}],
        "bad transpose": [transposed([0] * (len(chunks) + 1)), LITTLE],
        "uneven": [sharded(tuple(size + 1 for size in chunks), [LITTLE])],
        "packed index": [sharded(halves, [LITTLE], [LITTLE, GZIP])],
    }
    return others.get(name) or FAST_CHAINS[name]


QUICK = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@QUICK
@given(arrays())
def test_zarr_reads_what_is_encoded_here(array: tuple[ArrayMetadata, Block]) -> None:
    metadata, data = array
    codec, grid = ArrayCodec(metadata), metadata.grid
    slot = Slot()
    objects = {metadata.key(number): bytes(codec.encode(data[grid.region(number)], slot)) for number in range(grid.size)}
    assert same(np.asarray(opened(metadata, objects)[...]), data)


@QUICK
@given(arrays(), st.booleans())
def test_what_zarr_writes_is_decoded_here(array: tuple[ArrayMetadata, Block], write_empty: bool) -> None:
    metadata, data = array
    codec, grid, slot = ArrayCodec(metadata), metadata.grid, Slot()
    assert codec.is_fast
    written = opened(metadata, {}, write_empty=write_empty)
    written[...] = data
    objects = objects_of(written)
    wanted = np.asarray(written[...])  # inner chunks that equal the fill value are not stored: -0.0 may come back as 0.0
    for number in range(grid.size):
        stored = objects.get(metadata.key(number))
        block = codec.filled() if stored is None else codec.decode(stored, slot)
        assert block.shape == grid.chunks
        assert block.flags.c_contiguous
        assert block.flags.aligned
        assert same(block[tuple(slice(0, size) for size in grid.extent(number))], wanted[grid.region(number)])


@pytest.mark.parametrize("name", [*FAST_CHAINS, *OTHER_CHAINS])
def test_common_chains_do_not_go_through_zarr(name: str) -> None:
    assert ArrayCodec(metadata_of((4,), (4,), "float32", _chain(name, (4,)))).is_fast


@pytest.mark.parametrize("name", SLOW_CHAINS)
def test_other_chains_go_through_zarr(name: str) -> None:
    assert not ArrayCodec(metadata_of((4,), (4,), "float32", _chain(name, (4,)))).is_fast


def test_shards_in_a_shard_are_right() -> None:
    codec = ArrayCodec(metadata_of((5, 4), (4, 4), "float32", _chain("nested", (4, 4))))
    data = np.arange(4, dtype="f4").reshape(1, 4)
    decoded = codec.decode(codec.encode(data))
    assert same(decoded[:1], data)
    assert not decoded[1:].any()


@pytest.mark.parametrize("codecs", [[LITTLE, {"name": "lzma_x"}], [{"name": "float_magic"}, LITTLE]])
def test_a_codec_that_nobody_knows_is_a_codec_error(codecs: list[dict[str, Any]]) -> None:
    codec = ArrayCodec(metadata_of((4,), (4,), "float32", codecs))
    with pytest.raises(CodecError):
        codec.decode(bytes(16))


@pytest.mark.parametrize(
    ("dtype", "fill", "wanted"),
    [
        ("float32", "NaN", np.float32("nan")),
        ("float64", "Infinity", np.float64("inf")),
        ("float64", "-Infinity", np.float64("-inf")),
        ("float32", "0x7fc00001", np.array(0x7FC00001, "u4").view("f4")[()]),
        ("float16", 1.5, np.float16(1.5)),
        ("float64", -0.0, np.float64(-0.0)),
        ("int16", -7, np.int16(-7)),
        ("uint64", 2**64 - 1, np.uint64(2**64 - 1)),
        ("bool", True, np.bool_(True)),
        ("complex64", [1.0, "NaN"], np.complex64(complex(1, float("nan")))),
    ],
)
def test_fill_values_pad_the_edge_as_zarr_reads_them(dtype: str, fill: Any, wanted: np.generic) -> None:
    metadata = metadata_of((3,), (2,), dtype, [LITTLE], fill)
    codec = ArrayCodec(metadata)
    whole = np.full(2, wanted)
    assert same(codec.filled(), whole)
    assert same(codec.decode(codec.encode(whole[:1])), whole)
    assert same(np.asarray(opened(metadata, {})[:2]), whole)


CHECKED = (
    "zstd",
    "crc32c",
    "zstd crc32c",
    "crc32c gzip",
    "gzip",
    "none",
    "big",
    *OTHER_CHAINS,
    "lz4",
    "lz4 shuffle",
    "zstd bitshuffle",
)


@pytest.mark.parametrize("name", CHECKED)
@settings(max_examples=25, deadline=None)
@given(cut=st.integers(0, 10**6), tail=st.binary(min_size=1, max_size=40))
def test_bytes_too_short_or_too_long_are_an_error_or_harmless(name: str, cut: int, tail: bytes) -> None:
    codec = ArrayCodec(metadata_of((8, 6), (8, 6), "float32", _chain(name, (8, 6))))
    whole = np.random.default_rng(0).normal(size=(8, 6)).astype("f4")
    encoded = bytes(codec.encode(whole))
    for bad in (encoded[: cut % len(encoded)], encoded + tail, encoded + encoded):
        try:
            decoded = codec.decode(bad)
        except CodecError:
            continue
        assert same(decoded, whole)  # gzip passes over zeros after its end; nothing may come of it


@pytest.mark.parametrize("name", [*FAST_CHAINS, *OTHER_CHAINS])
@settings(max_examples=25, deadline=None)
@given(garbage=st.binary(max_size=150))
def test_garbage_raises_nothing_but_a_codec_error(name: str, garbage: bytes) -> None:
    codec = ArrayCodec(metadata_of((8, 6), (8, 6), "int64", _chain(name, (8, 6))))
    with pytest.raises(CodecError):
        codec.decode(garbage)


@pytest.mark.parametrize("name", ["zstd", "crc32c", "zstd crc32c"])
def test_a_flipped_bit_is_an_error_where_the_chain_has_a_checksum(name: str) -> None:
    codec = ArrayCodec(metadata_of((8, 6), (8, 6), "float32", FAST_CHAINS[name]))
    whole = np.random.default_rng(0).normal(size=(8, 6)).astype("f4")
    encoded = bytes(codec.encode(whole))
    for position in range(len(encoded)):
        damaged = bytearray(encoded)
        damaged[position] ^= 0x10
        try:
            assert same(codec.decode(bytes(damaged)), whole)  # an unused bit of a header
        except CodecError:
            continue


@pytest.mark.parametrize("name", ["zstd", "sharded"])
@pytest.mark.parametrize(
    "block",
    [
        np.zeros((4, 6), "f8"),
        np.zeros((4, 6), ">f4"),
        np.zeros((4, 7), "f4"),
        np.zeros(6, "f4"),
        np.zeros((), "f4"),
        np.zeros((1, 4, 6), "f4"),
    ],
    ids=["dtype", "byte order", "too large", "too few axes", "scalar", "too many axes"],
)
def test_a_block_of_another_kind_is_refused(name: str, block: Block) -> None:
    codec = ArrayCodec(metadata_of((4, 6), (4, 6), "float32", _chain(name, (4, 6))))
    with pytest.raises(CodecError, match="block has"):
        codec.encode(block)


def test_a_block_may_lie_in_memory_in_any_order() -> None:
    codec = ArrayCodec(metadata_of((4, 6), (4, 6), "float32", [LITTLE]))
    block = np.arange(24, dtype="f4").reshape(6, 4).T
    assert same(codec.decode(memoryview(codec.encode(block))), np.ascontiguousarray(block))


@pytest.mark.parametrize("name", ["none", *OTHER_CHAINS, "nested"])
def test_a_chunk_of_fill_value_becomes_bytes_too(name: str) -> None:
    codec = ArrayCodec(metadata_of((4,), (4,), "float32", _chain(name, (4,))))
    assert same(codec.decode(codec.encode(codec.filled())), codec.filled())


@pytest.mark.parametrize("compressor", COMPRESSORS)
@pytest.mark.parametrize("dtype", ["bool", "float32", "complex128", ">i2"])
def test_created_metadata_is_what_zarr_makes_of_it(compressor: str, dtype: str) -> None:
    metadata = ArrayMetadata.create((5, 3), (2, 3), np.dtype(dtype), dims=("t", None), compressor=compressor, attributes={"a": 1})
    found = opened(metadata, {})
    assert (found.shape, found.chunks, found.dtype) == ((5, 3), (2, 3), np.dtype(dtype).newbyteorder("="))
    assert found.metadata.dimension_names == ("t", None) == metadata.dims
    assert dict(found.attrs) == {"a": 1} == dict(metadata.attributes)
    assert ArrayCodec(metadata).is_fast
    assert metadata.chunk_nbytes == 6 * np.dtype(dtype).itemsize


def test_what_cannot_be_stored_is_refused_with_what_can() -> None:
    with pytest.raises(ConfigError, match="cast to one of bool, int8"):
        ArrayMetadata.create((1,), (1,), np.dtype("U4"))


@pytest.mark.parametrize(
    ("encoding", "keys"),
    [
        ({"name": "default", "configuration": {"separator": "/"}}, ["c/0/0", "c/1/2"]),
        ({"name": "default", "configuration": {"separator": "."}}, ["c.0.0", "c.1.2"]),
        ({"name": "default"}, ["c/0/0", "c/1/2"]),
        ({"name": "v2"}, ["0.0", "1.2"]),
        ({"name": "v2", "configuration": {"separator": "/"}}, ["0/0", "1/2"]),
    ],
)
def test_keys_are_zarrs(encoding: dict[str, Any], keys: list[str]) -> None:
    document = {**metadata_of((4, 6), (2, 2), "int8", [LITTLE]).document, "chunk_key_encoding": encoding}
    metadata = ArrayMetadata(document)
    found = opened(metadata, {})
    assert [metadata.key(0), metadata.key(5)] == keys
    assert [found.metadata.encode_chunk_key((0, 0)), found.metadata.encode_chunk_key((1, 2))] == keys


@pytest.mark.parametrize(("name", "key"), [("default", "c"), ("v2", "0")])
def test_the_key_of_a_scalar(name: str, key: str) -> None:
    document = {**metadata_of((), (), "int8", [LITTLE]).document, "chunk_key_encoding": {"name": name}}
    assert ArrayMetadata(document).key(0) == key


def test_a_dtype_without_a_fixed_size_is_decoded_by_zarr() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zarr: the string type's specification is not final
        written = zarr.create_array(MemoryStore(), shape=(3,), chunks=(3,), dtype=str)
        written[:] = np.array(["a", "bc", "d"], dtype=object)
        metadata = ArrayMetadata(written.metadata.to_dict())
        data = written.store._store_dict["c/0"].to_bytes()
        assert metadata.dtype is None
        assert metadata.chunk_nbytes == 0
        assert ArrayCodec(metadata).decode(data).tolist() == ["a", "bc", "d"]
