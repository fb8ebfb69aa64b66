"""Arrays of every form for the codec tests, and zarr-python's view of them."""

from __future__ import annotations

from math import gcd
from typing import Any

import numpy as np
import zarr
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from gpuflow.storage.codecs import Block
from gpuflow.storage.metadata import ArrayMetadata

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
GZIP = {"name": "gzip", "configuration": {"level": 1}}
LZ4 = {"name": "numcodecs.lz4", "configuration": {"acceleration": 1}}
CRC = {"name": "crc32c"}


def blosc(cname: str, shuffle: str, typesize: int) -> dict[str, Any]:
    configuration = {"typesize": typesize, "cname": cname, "clevel": 5, "shuffle": shuffle, "blocksize": 0}
    return {"name": "blosc", "configuration": configuration}


LINKS = (ZSTD, GZIP, LZ4, CRC, blosc("lz4", "shuffle", 4), blosc("zstd", "bitshuffle", 8), blosc("blosclz", "noshuffle", 1))


def transposed(order: list[int]) -> dict[str, Any]:
    return {"name": "transpose", "configuration": {"order": order}}


def sharded(
    inner: tuple[int, ...], codecs: list[dict[str, Any]], index: list[dict[str, Any]] | None = None, location: str = "end"
) -> dict[str, Any]:
    configuration = {
        "chunk_shape": list(inner),
        "codecs": codecs,
        "index_codecs": [LITTLE, CRC] if index is None else index,
        "index_location": location,
    }
    return {"name": "sharding_indexed", "configuration": configuration}


def metadata_of(
    shape: tuple[int, ...], chunks: tuple[int, ...], dtype: str, chain: list[dict[str, Any]], fill: Any = None
) -> ArrayMetadata:
    document = dict(ArrayMetadata.create(shape, chunks, np.dtype(dtype), compressor="none").document)
    document["codecs"] = chain
    if fill is not None:
        document["fill_value"] = fill
    return ArrayMetadata(document)


def fills(dtype: str) -> st.SearchStrategy[Any]:
    floats = st.sampled_from([0, 1.5, -0.0, "NaN", "Infinity", "-Infinity"])
    match np.dtype(dtype).kind:
        case "b":
            return st.booleans()
        case "f":
            return floats
        case "c":
            return st.tuples(floats, floats).map(list)
        case _:
            return st.integers(0, 100)


links = st.lists(st.sampled_from(LINKS), max_size=2)


@st.composite
def chains(draw: st.DrawFn, chunks: tuple[int, ...], *, sharding: bool = True) -> list[dict[str, Any]]:
    """Codecs, as they stand in `zarr.json`, of every form that is decoded here."""
    ndim, axes = len(chunks), list(range(len(chunks)))
    turns = draw(st.lists(st.permutations(axes), max_size=2)) if ndim else []
    codecs = [transposed(order) for order in turns]
    if not sharding or not ndim or draw(st.booleans()):
        return [*codecs, draw(st.sampled_from([LITTLE, BIG])), *draw(links)]
    order = axes
    for turn in turns:
        order = [order[axis] for axis in turn]
    # zarr-python compares inner chunks with the shape before the transposes: they divide both.
    common = [gcd(chunks[axis], chunks[order[axis]]) for axis in axes]
    inner = tuple(draw(st.sampled_from([part for part in range(1, size + 1) if size % part == 0])) for size in common)
    index = [draw(st.sampled_from([LITTLE, BIG])), *([CRC] if draw(st.booleans()) else [])]
    location = draw(st.sampled_from(["start", "end"]))
    return [*codecs, sharded(inner, draw(chains(inner, sharding=False)), index, location), *draw(links)]


@st.composite
def arrays(draw: st.DrawFn) -> tuple[ArrayMetadata, Block]:
    """An array's metadata, and data of its shape, with stretches of fill value."""
    ndim = draw(st.integers(0, 3))
    shape = tuple(draw(st.lists(st.integers(0, 7), min_size=ndim, max_size=ndim)))
    chunks = tuple(draw(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=ndim, max_size=ndim)))
    dtype = draw(st.sampled_from(DTYPES))
    metadata = metadata_of(shape, chunks, dtype, draw(chains(chunks)), draw(fills(dtype)))
    return metadata, draw(hnp.arrays(np.dtype(dtype), shape))


def opened(metadata: ArrayMetadata, objects: dict[str, Any], *, write_empty: bool = True) -> zarr.Array[Any]:
    """zarr-python's array over these stored objects."""
    buffer = default_buffer_prototype().buffer
    stored = {key: buffer.from_bytes(bytes(data)) for key, data in {"zarr.json": metadata.to_json(), **objects}.items()}
    return zarr.open_array(MemoryStore(stored), mode="r+").with_config({"write_empty_chunks": write_empty})


def objects_of(array: zarr.Array[Any]) -> dict[str, bytes]:
    """The stored objects of an array of `opened`."""
    return {key: data.to_bytes() for key, data in array.store._store_dict.items() if key != "zarr.json"}


def same(found: Block, wanted: Block) -> bool:
    """Bit for bit: NaN payloads and negative zeros too."""
    return found.dtype == wanted.dtype and found.shape == wanted.shape and found.tobytes() == wanted.tobytes()
