"""Shards out of what a device encodes: read by our codecs and by zarr-python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuflow.storage.buffers import Slot
from gpuflow.storage.codecs import ArrayCodec
from gpuflow.storage.framing import framing
from gpuflow.storage.measure_device import rates_of
from gpuflow.storage.metadata import COMPRESSORS, ArrayMetadata, checked
from tests.backends.host_device import HostDevice
from tests.storage.arrays import BIG, GZIP, LITTLE, ZSTD, metadata_of, sharded, transposed


def encode(codec: ArrayCodec, block: np.ndarray[Any, Any]) -> bytes:
    make, slot, queue = framing(codec), Slot(), HostDevice().queue()
    assert make is not None
    batch = make(block.shape)
    slot.encoded.bytes(2**16)[:] = 0x55
    with queue():
        frames, sizes = queue.encode(batch, queue.upload(block))
        queue.download(frames, batch.place(sizes, slot.encoded))
        return batch.finish(sizes, slot.encoded).tobytes()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_batch_decodes_to_the_block(data: st.DataObject) -> None:
    link = checked(COMPRESSORS[data.draw(st.sampled_from(["zstd", "lz4"]))][0])
    dtype = data.draw(st.sampled_from(["uint8", "float16", "float32", "int64"]))
    inner = tuple(data.draw(st.lists(st.sampled_from([1, 2, 4]), min_size=1, max_size=3))) + (16,)
    shape = tuple(size * data.draw(st.integers(1, 3)) for size in inner)
    extent = tuple(data.draw(st.integers(1, size)) for size in shape)
    place = data.draw(st.sampled_from(["start", "end"]))
    document = {**sharded(inner, [LITTLE, link])}
    document["configuration"] = {**document["configuration"], "index_location": place}
    codec = ArrayCodec(metadata_of(shape, shape, dtype, [document], fill=7))
    block = np.random.default_rng(1).integers(0, 99, extent).astype(dtype)
    stored = encode(codec, block)
    decoded = codec.decode(stored)
    np.testing.assert_array_equal(decoded[tuple(slice(size) for size in extent)], block)
    np.testing.assert_array_equal(decoded, codec.decode(bytes(codec.encode(block))))
    shard = codec.shard
    assert shard is not None
    index = shard.frames(np.frombuffer(stored, np.uint8)[slice(*shard.index_place(len(stored)))], len(stored))
    ours = np.frombuffer(bytes(codec.encode(block)), np.uint8)
    np.testing.assert_array_equal(
        index == 2**64 - 1, shard.frames(ours[slice(*shard.index_place(len(ours)))], len(ours)) == 2**64 - 1
    )


@pytest.mark.parametrize("name", ["zstd", "lz4"])
@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3")
def test_zarr_reads_it(name: str, tmp_path: Path) -> None:
    block = np.arange(6 * 20 * 48, dtype=np.float32).reshape(6, 20, 48)
    metadata = ArrayMetadata.create((6, 20, 48), (8, 32, 48), np.dtype("f4"), compressor=name, inner_chunks=(2, 16, 48))
    (tmp_path / "zarr.json").write_bytes(metadata.to_json())
    (tmp_path / "c.0.0.0").write_bytes(encode(ArrayCodec(metadata), block))
    np.testing.assert_array_equal(zarr.open_array(tmp_path, mode="r")[...], block)


@pytest.mark.parametrize(
    "chain",
    [
        [LITTLE, ZSTD],
        [sharded((4, 16), [LITTLE])],
        [sharded((4, 16), [BIG, ZSTD])],
        [sharded((4, 16), [LITTLE, GZIP])],
        [sharded((4, 16), [LITTLE, {"name": "zstd", "configuration": {"level": 19, "checksum": False}}])],
        [transposed([1, 0]), sharded((16, 4), [LITTLE, ZSTD])],
    ],
)
def test_what_is_left_to_the_cpu(chain: list[dict[str, Any]]) -> None:
    assert framing(ArrayCodec(metadata_of((16, 16), (16, 16), "float32", chain, fill=0))) is None


def test_what_a_device_can_do_is_measured_where_it_gives_back_what_it_got(tmp_path: Path) -> None:
    field = np.round(np.random.default_rng(0).normal(280, 9, (32, 64, 64)), 1).astype(np.float32)
    found = rates_of(HostDevice(), field, tmp_path / "one")
    assert set(found.decode) == {"zstd", "gzip", "lz4"}
    assert set(found.encode) == {"zstd", "lz4"}
    assert set(found.read) == {"copied", "direct"}
    assert all(rate > 0 for rates in (found.decode, found.encode, found.read) for rate in rates.values())
    found = rates_of(HostDevice(broken=("encode",)), field, tmp_path / "other")
    assert not found.encode
    assert found.decode


def test_a_device_that_encodes_something_else_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device, field = HostDevice(), np.zeros((32, 64, 64), np.float32)
    queue = device.queue()
    encode_well = queue.encode
    monkeypatch.setattr(queue, "encode", lambda batch, array: encode_well(batch, array + 1))
    monkeypatch.setattr(device, "queue", lambda: queue)
    found = rates_of(device, field, tmp_path / "one")
    assert not found.encode
    assert set(found.decode) == set(COMPRESSORS) - {"none", "blosc"}
