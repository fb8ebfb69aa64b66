"""What is encoded here zarr reads, what zarr writes is decoded here, and bad bytes are a CodecError, never data."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from gpuflow.errors import ConfigError
from gpuflow.storage.codecs import ArrayCodec, Block, CodecError
from gpuflow.storage.metadata import COMPRESSORS, ArrayMetadata

DTYPES = (
    "bool",
    "int8",
    "int16",
    "int64",
    "uint8",
    "uint32",
    "uint64",
    "float16",
    "float32",
    "float64",
    "complex64",
    "complex128",
)
LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}
BIG = {"name": "bytes", "configuration": {"endian": "big"}}
ZSTD = {"name": "zstd", "configuration": {"level": 3, "checksum": True}}
CRC = {"name": "crc32c"}


def _blosc(cname: str, shuffle: str, typesize: int) -> dict[str, Any]:
    configuration = {"typesize": typesize, "cname": cname, "clevel": 5, "shuffle": shuffle, "blocksize": 0}
    return {"name": "blosc", "configuration": configuration}


FAST_CHAINS: dict[str, list[dict[str, Any]]] = {
    "none": [LITTLE],
    "big": [BIG],
    "zstd": [LITTLE, ZSTD],
    "gzip": [BIG, {"name": "gzip", "configuration": {"level": 1}}],
    "lz4 shuffle": [LITTLE, _blosc("lz4", "shuffle", 4)],
    "zstd bitshuffle": [BIG, _blosc("zstd", "bitshuffle", 8)],
    "blosclz": [LITTLE, _blosc("blosclz", "noshuffle", 1)],
    "crc32c": [LITTLE, CRC],
    "zstd crc32c": [LITTLE, ZSTD, CRC],
    "crc32c gzip": [LITTLE, CRC, {"name": "gzip", "configuration": {"level": 1}}],
}
SLOW_CHAINS = ("transpose", "sharded", "sharded zstd")


def _chain(name: str, chunks: tuple[int, ...]) -> list[dict[str, Any]]:
    if name == "transpose":
        return [{"name": "transpose", "configuration": {"order": list(reversed(range(len(chunks))))}}, LITTLE, ZSTD]
    if name.startswith("sharded"):
        configuration = {
            "chunk_shape": [size // 2 if size % 2 == 0 else size for size in chunks],
            "codecs": [LITTLE, ZSTD] if name.endswith("zstd") else [LITTLE],
            "index_codecs": [LITTLE, CRC],
            "index_location": "end",
        }
        return [{"name": "sharding_indexed", "configuration": configuration}]
    return FAST_CHAINS[name]


def _metadata(
    shape: tuple[int, ...], chunks: tuple[int, ...], dtype: str, chain: list[dict[str, Any]], fill: Any = None
) -> ArrayMetadata:
    document = dict(ArrayMetadata.create(shape, chunks, np.dtype(dtype), compressor="none").document)
    document["codecs"] = chain
    if fill is not None:
        document["fill_value"] = fill
    return ArrayMetadata(document)


@st.composite
def arrays(draw: st.DrawFn) -> tuple[ArrayMetadata, Block]:
    """An array's metadata, and data of its shape."""
    ndim = draw(st.integers(0, 3))
    shape = tuple(draw(st.lists(st.integers(0, 5), min_size=ndim, max_size=ndim)))
    chunks = tuple(draw(st.lists(st.integers(1, 4), min_size=ndim, max_size=ndim)))
    dtype = draw(st.sampled_from(DTYPES))
    name = draw(st.sampled_from([*FAST_CHAINS, *(SLOW_CHAINS if ndim else ())]))
    data = draw(hnp.arrays(np.dtype(dtype), shape))
    return _metadata(shape, chunks, dtype, _chain(name, chunks)), data


def _open(metadata: ArrayMetadata, objects: dict[str, bytes]) -> zarr.Array[Any]:
    buffer = default_buffer_prototype().buffer
    stored = {key: buffer.from_bytes(data) for key, data in {"zarr.json": metadata.to_json(), **objects}.items()}
    return zarr.open_array(MemoryStore(stored), mode="r+").with_config({"write_empty_chunks": True})


def _same(found: Block, wanted: Block) -> bool:
    """Bit for bit: NaN payloads and negative zeros too."""
    return found.dtype == wanted.dtype and found.shape == wanted.shape and found.tobytes() == wanted.tobytes()


QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@QUICK
@given(arrays())
def test_zarr_reads_what_is_encoded_here(array: tuple[ArrayMetadata, Block]) -> None:
    metadata, data = array
    codec, grid = ArrayCodec(metadata), metadata.grid
    objects = {metadata.key(number): codec.encode(data[grid.region(number)]) for number in range(grid.size)}
    assert _same(np.asarray(_open(metadata, objects)[...]), data)


@QUICK
@given(arrays())
def test_what_zarr_writes_is_decoded_here(array: tuple[ArrayMetadata, Block]) -> None:
    metadata, data = array
    codec, grid = ArrayCodec(metadata), metadata.grid
    written = _open(metadata, {})
    written[...] = data
    objects = written.store._store_dict
    for number in range(grid.size):
        block = codec.decode(objects[metadata.key(number)].to_bytes())
        assert block.shape == grid.chunks
        assert _same(block[tuple(slice(0, size) for size in grid.extent(number))], data[grid.region(number)])


@pytest.mark.parametrize("name", FAST_CHAINS)
def test_common_chains_do_not_go_through_zarr(name: str) -> None:
    assert ArrayCodec(_metadata((4,), (4,), "float32", FAST_CHAINS[name])).is_fast


@pytest.mark.parametrize("name", SLOW_CHAINS)
def test_other_chains_go_through_zarr(name: str) -> None:
    assert not ArrayCodec(_metadata((4,), (4,), "float32", _chain(name, (4,)))).is_fast


@pytest.mark.parametrize("codecs", [[LITTLE, {"name": "lzma_x"}], [{"name": "float_magic"}, LITTLE]])
def test_a_codec_that_nobody_knows_is_a_codec_error(codecs: list[dict[str, Any]]) -> None:
    codec = ArrayCodec(_metadata((4,), (4,), "float32", codecs))
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
    metadata = _metadata((3,), (2,), dtype, [LITTLE], fill)
    codec = ArrayCodec(metadata)
    whole = np.full(2, wanted)
    assert _same(codec.filled(), whole)
    assert _same(codec.decode(codec.encode(whole[:1])), whole)
    assert _same(np.asarray(_open(metadata, {})[:2]), whole)


CHECKED = ("zstd", "crc32c", "zstd crc32c", "crc32c gzip", "gzip", "none", "big", *SLOW_CHAINS, "lz4 shuffle", "zstd bitshuffle")


@pytest.mark.parametrize("name", CHECKED)
@settings(max_examples=25, deadline=None)
@given(cut=st.integers(0, 10**6), tail=st.binary(min_size=1, max_size=40))
def test_bytes_too_short_or_too_long_are_an_error_or_harmless(name: str, cut: int, tail: bytes) -> None:
    codec = ArrayCodec(_metadata((8, 6), (8, 6), "float32", _chain(name, (8, 6))))
    whole = np.random.default_rng(0).normal(size=(8, 6)).astype("f4")
    encoded = bytes(codec.encode(whole))
    for bad in (encoded[: cut % len(encoded)], encoded + tail, encoded + encoded):
        try:
            decoded = codec.decode(bad)
        except CodecError:
            continue
        assert _same(decoded, whole)  # gzip passes over zeros after its end; nothing may come of it


@pytest.mark.parametrize("name", [*FAST_CHAINS, *SLOW_CHAINS])
@settings(max_examples=25, deadline=None)
@given(garbage=st.binary(max_size=150))
def test_garbage_raises_nothing_but_a_codec_error(name: str, garbage: bytes) -> None:
    codec = ArrayCodec(_metadata((8, 6), (8, 6), "int64", _chain(name, (8, 6))))
    with pytest.raises(CodecError):
        codec.decode(garbage)


@pytest.mark.parametrize("name", ["zstd", "crc32c", "zstd crc32c"])
def test_a_flipped_bit_is_an_error_where_the_chain_has_a_checksum(name: str) -> None:
    codec = ArrayCodec(_metadata((8, 6), (8, 6), "float32", FAST_CHAINS[name]))
    whole = np.random.default_rng(0).normal(size=(8, 6)).astype("f4")
    encoded = bytes(codec.encode(whole))
    for position in range(len(encoded)):
        damaged = bytearray(encoded)
        damaged[position] ^= 0x10
        try:
            assert _same(codec.decode(bytes(damaged)), whole)  # an unused bit of a header
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
    codec = ArrayCodec(_metadata((4, 6), (4, 6), "float32", _chain(name, (4, 6))))
    with pytest.raises(CodecError, match="block has"):
        codec.encode(block)


def test_a_block_may_lie_in_memory_in_any_order() -> None:
    codec = ArrayCodec(_metadata((4, 6), (4, 6), "float32", [LITTLE]))
    block = np.arange(24, dtype="f4").reshape(6, 4).T
    assert _same(codec.decode(memoryview(codec.encode(block))), np.ascontiguousarray(block))


@pytest.mark.parametrize("name", ["none", *SLOW_CHAINS])
def test_a_chunk_of_fill_value_becomes_bytes_too(name: str) -> None:
    codec = ArrayCodec(_metadata((4,), (4,), "float32", _chain(name, (4,))))
    assert _same(codec.decode(codec.encode(codec.filled())), codec.filled())


@pytest.mark.parametrize("compressor", COMPRESSORS)
@pytest.mark.parametrize("dtype", ["bool", "float32", "complex128", ">i2"])
def test_created_metadata_is_what_zarr_makes_of_it(compressor: str, dtype: str) -> None:
    metadata = ArrayMetadata.create((5, 3), (2, 3), np.dtype(dtype), dims=("t", None), compressor=compressor, attributes={"a": 1})
    opened = _open(metadata, {})
    assert (opened.shape, opened.chunks, opened.dtype) == ((5, 3), (2, 3), np.dtype(dtype).newbyteorder("="))
    assert opened.metadata.dimension_names == ("t", None) == metadata.dims
    assert dict(opened.attrs) == {"a": 1} == dict(metadata.attributes)
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
    document = {**_metadata((4, 6), (2, 2), "int8", [LITTLE]).document, "chunk_key_encoding": encoding}
    metadata = ArrayMetadata(document)
    opened = _open(metadata, {})
    assert [metadata.key(0), metadata.key(5)] == keys
    assert [opened.metadata.encode_chunk_key((0, 0)), opened.metadata.encode_chunk_key((1, 2))] == keys


@pytest.mark.parametrize(("name", "key"), [("default", "c"), ("v2", "0")])
def test_the_key_of_a_scalar(name: str, key: str) -> None:
    document = {**_metadata((), (), "int8", [LITTLE]).document, "chunk_key_encoding": {"name": name}}
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
