"""A Zarr v2 array described in Zarr v3's words, so that its chunks can be copied byte for byte.

Follows the Zarr v2 and v3 core specifications; the data types and their fill values are translated by zarr-python."""

from __future__ import annotations

import json
import warnings
from typing import Any

from gpuflow.storage.metadata import ArrayMetadata

Document = dict[str, Any]
_DIMENSIONS = "_ARRAY_DIMENSIONS"
"""The attribute in which xarray keeps dimension names in Zarr v2."""
_SHUFFLES = {0: "noshuffle", 1: "shuffle", 2: "bitshuffle"}


class Inexpressible(ValueError):
    """This v2 array cannot be said so in v3; the text says which part of it."""


def v3_document(v2: Document, attributes: Document) -> Document:
    """`zarr.json` under which the chunks of the v2 array `v2` (its `.zarray`) are read as they are. Else Inexpressible."""
    data_type, fill_value, itemsize = _dtype_and_fill(v2)
    filters = list(v2.get("filters") or [])
    codecs: list[Document] = []
    if v2.get("order") == "F" and len(v2["shape"]) > 1:
        codecs.append({"name": "transpose", "configuration": {"order": list(range(len(v2["shape"])))[::-1]}})
    if data_type == "string" and filters[:1] == [{"id": "vlen-utf8"}]:
        filters.pop(0)
        codecs.append({"name": "vlen-utf8"})
    else:
        codecs.append({"name": "bytes", "configuration": {"endian": "big" if v2["dtype"].startswith(">") else "little"}})
    if filters:
        raise Inexpressible(f"filter {filters[0].get('id')}")
    codecs += _compressor(v2.get("compressor"), itemsize)
    separator = v2.get("dimension_separator") or "."
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": v2["shape"],
        "data_type": data_type,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunks_of(v2)}},
        "chunk_key_encoding": {"name": "v2", "configuration": {"separator": separator}},
        "fill_value": fill_value,
        "codecs": codecs,
        "storage_transformers": [],
        **_names_and_attributes(v2, attributes),
    }


def reencoded_metadata(v2: Document, attributes: Document) -> ArrayMetadata:
    """Metadata of the array anew, in gpuflow's own codecs. ConfigError or Inexpressible when NumPy cannot hold its dtype."""
    import numpy as np

    _, fill_value, _ = _dtype_and_fill(v2)
    named = _names_and_attributes(v2, attributes)
    metadata = ArrayMetadata.create(
        tuple(v2["shape"]),
        tuple(chunks_of(v2)),
        np.dtype(v2["dtype"]).newbyteorder("="),
        dims=tuple(named["dimension_names"]) if "dimension_names" in named else None,
        attributes=named["attributes"],
    )
    return ArrayMetadata({**metadata.document, "fill_value": fill_value})


def chunks_of(v2: Document) -> list[int]:
    """The chunk shape. Zero, which old writers put for an empty dimension, is 1: such an array has no chunk anyway."""
    return [chunk or (0 if size else 1) for size, chunk in zip(v2["shape"], v2["chunks"], strict=True)]


def key_v2(index: tuple[int, ...], v2: Document) -> str:
    """Key of a chunk of a v2 array, relative to the array."""
    return str(v2.get("dimension_separator") or ".").join(map(str, index)) if index else "0"


def _dtype_and_fill(v2: Document) -> tuple[Any, Any, int]:
    """(v3 data type, v3 fill value, bytes of an item). A null fill value becomes zero, as zarr-python reads it."""
    from zarr.dtype import data_type_registry

    name = v2["dtype"]
    if not isinstance(name, str):
        raise Inexpressible(f"structured dtype {name}")
    ids = [codec.get("id") for codec in [*(v2.get("filters") or []), v2.get("compressor") or {}]]
    object_codec = next(
        (codec for codec in ids if codec in ("vlen-utf8", "vlen-bytes", "vlen-array", "pickle", "json2", "msgpack2")), None
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # zarr warns of a type that v3 does not specify
            dtype = data_type_registry.match_json({"name": name, "object_codec_id": object_codec}, zarr_format=2)
            data_type = dtype.to_json(zarr_format=3)
            given = v2.get("fill_value")
            no_fill = given is None or (data_type == "string" and not isinstance(given, str))
            scalar: Any = dtype.default_scalar() if no_fill else dtype.from_json_scalar(given, zarr_format=2)
            item = dtype.to_native_dtype().itemsize if data_type != "string" else 1
            fill_value = dtype.to_json_scalar(scalar, zarr_format=3)
            return data_type, json.loads(json.dumps(fill_value)), item  # zarr gives tuples, a document has lists
    except (ValueError, TypeError, KeyError, Warning) as error:
        raise Inexpressible(f"dtype {name}" + (f" with codec {object_codec}" if object_codec else "")) from error


def _compressor(v2: Document | None, itemsize: int) -> list[Document]:
    if v2 is None:
        return []
    match v2.get("id"):
        case "zstd":
            configuration: Document = {"level": v2.get("level", 0), "checksum": bool(v2.get("checksum", False))}
            return [{"name": "zstd", "configuration": configuration}]
        case "gzip":
            return [{"name": "gzip", "configuration": {"level": v2.get("level", 1)}}]
        case "blosc":
            # -1 is numcodecs' AUTOSHUFFLE. The frame's own header rules decoding; these rule what is written later.
            auto = "bitshuffle" if itemsize == 1 else "shuffle"
            configuration = {
                "typesize": itemsize,
                "cname": v2.get("cname", "lz4"),
                "clevel": v2.get("clevel", 5),
                "shuffle": _SHUFFLES.get(v2.get("shuffle", 1), auto),
                "blocksize": v2.get("blocksize", 0),
            }
            return [{"name": "blosc", "configuration": configuration}]
        case other:
            raise Inexpressible(f"compressor {other}")


def _names_and_attributes(v2: Document, attributes: Document) -> Document:
    """`attributes`, with xarray's dimension names moved to where v3 has them."""
    names = attributes.get(_DIMENSIONS)
    valid = (
        isinstance(names, list)
        and len(names) == len(v2["shape"])
        and all(name is None or isinstance(name, str) for name in names)
    )
    if not valid:
        return {"attributes": attributes}
    rest = {key: value for key, value in attributes.items() if key != _DIMENSIONS}
    return {"attributes": rest, "dimension_names": names} if names else {"attributes": rest}
