"""Frames of a shard as one batch: decoded one by one here, as a device decodes them at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuflow.storage.byte_codecs import BYTE_CODECS, CodecError
from gpuflow.storage.codecs import ArrayCodec
from gpuflow.storage.frames import Frames, batching
from gpuflow.storage.metadata import COMPRESSORS, ArrayMetadata
from tests.storage.arrays import BIG, CRC, GZIP, LITTLE, LZ4, ZSTD, blosc, metadata_of, sharded, transposed

DEVICE_CODECS = {"zstd": ZSTD, "gzip": GZIP, "lz4": LZ4}


def codec_of(shape: tuple[int, ...], inner: tuple[int, ...], links: list[dict[str, Any]], dtype: str = "float32") -> ArrayCodec:
    return ArrayCodec(metadata_of(shape, shape, dtype, [sharded(inner, links)], fill=7))


def decode(frames: Frames, data: bytes, codec: ArrayCodec) -> np.ndarray[Any, Any]:
    """What a device does, with the codecs of the CPU."""
    out = np.full(frames.count * frames.nbytes, 0xAA, np.uint8)
    head = (frames.nbytes).to_bytes(4, "little") if frames.codec == "lz4" else b""
    name = "numcodecs.lz4" if frames.codec == "lz4" else frames.codec
    link = BYTE_CODECS[name](DEVICE_CODECS[frames.codec].get("configuration", {}))
    for offset, size, place in frames.places:
        frame = np.frombuffer(head + data[offset : offset + size], np.uint8)
        link.decode_into(frame, out[place : place + frames.nbytes])
    return frames.arrange(out)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_batch_is_what_the_codec_decodes(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(DEVICE_CODECS)))
    dtype = data.draw(st.sampled_from(["uint8", "float16", "float32", "int64"]))
    inner = tuple(data.draw(st.lists(st.sampled_from([1, 2, 4]), min_size=1, max_size=3))) + (16,)
    shape = tuple(size * data.draw(st.integers(1, 3)) for size in inner)
    extent = tuple(data.draw(st.integers(1, size)) for size in shape)
    codec = codec_of(shape, inner, [LITTLE, DEVICE_CODECS[name]], dtype)
    block = np.random.default_rng(1).integers(0, 99, extent).astype(dtype)
    stored = bytes(codec.encode(block))
    make = batching(codec)
    assert make is not None
    frames = make(np.frombuffer(stored, np.uint8))
    assert frames is not None
    assert frames.codec == name
    np.testing.assert_array_equal(decode(frames, stored, codec), codec.decode(stored))


@pytest.mark.parametrize(
    "chain",
    [
        [LITTLE, ZSTD],
        [sharded((4, 16), [LITTLE])],
        [sharded((4, 16), [BIG, ZSTD])],
        [sharded((4, 16), [LITTLE, ZSTD, CRC])],
        [sharded((4, 16), [LITTLE, blosc("lz4", "shuffle", 4)])],
        [sharded((4, 16), [transposed([1, 0]), LITTLE, ZSTD])],
        [transposed([1, 0]), sharded((16, 4), [LITTLE, ZSTD])],
        [sharded((4, 16), [LITTLE, ZSTD]), CRC],
        [sharded((1, 1), [LITTLE, ZSTD])],
        [sharded((1024, 1024), [LITTLE, ZSTD])],
    ],
)
def test_what_no_batch_is_made_of(chain: list[dict[str, Any]]) -> None:
    shape = (1024, 1024) if "1024" in str(chain) else (16, 16)
    assert batching(ArrayCodec(metadata_of(shape, shape, "float32", chain, fill=0))) is None


def test_the_compressors_of_our_own_arrays_that_a_device_has() -> None:
    made = {name: batching(codec_of((8, 16), (2, 16), [LITTLE, *links])) is not None for name, links in COMPRESSORS.items()}
    assert {name for name, is_made in made.items() if is_made} == {"zstd", "lz4", "gzip"} & set(made)


def test_frames_that_lie_where_a_device_cannot_read_are_left_to_the_cpu(tmp_path: Path) -> None:
    """zarr-python does not pad."""
    array = zarr.create_array(
        tmp_path / "a", shape=(64, 16), shards=(64, 16), chunks=(1, 16), dtype="f4", compressors=[zarr.codecs.ZstdCodec()]
    )
    array[...] = np.random.default_rng(1).integers(0, 9, (64, 16))
    make = batching(ArrayCodec(ArrayMetadata(json.loads((tmp_path / "a" / "zarr.json").read_text()))))
    assert make is not None
    assert make(np.frombuffer((tmp_path / "a" / "c" / "0" / "0").read_bytes(), np.uint8)) is None


def test_an_lz4_frame_of_another_size() -> None:
    codec = codec_of((4, 16), (2, 16), [LITTLE, LZ4])
    stored = np.frombuffer(codec.encode(np.zeros((4, 16), "f4")), np.uint8).copy()
    make = batching(codec)
    assert make is not None
    frames = make(stored)
    assert frames is not None
    stored[frames.offsets[1] - 4] += 1
    with pytest.raises(CodecError, match="inner chunk 1: a frame decodes to 129 bytes, not 128"):
        make(stored)
