"""Datasets as tables: which there are, what is in one and where its chunks lie."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from gpuflow.datasets.catalog import ChunkTable
from gpuflow.storage.chains import chain_names
from gpuflow.storage.record import DatasetRecord
from gpuflow.units import format_nbytes


def dataset_row(record: DatasetRecord, tables: Mapping[str, ChunkTable]) -> dict[str, Any]:
    """A dataset in a line, as plain data. nbytes: encoded bytes of one copy."""
    return {
        "name": record.name,
        "state": record.state,
        "arrays": len(record.arrays),
        "chunks": sum(metadata.grid.size for metadata in record.metadata.values()),
        "present": sum(int(table.present.sum()) for table in tables.values()),
        "nbytes": sum(int(table.rows["nbytes"].sum()) for table in tables.values()),
        "nodes": sorted({node for table in tables.values() for node, count in table.chunks_by_node().items() if count}),
        "created": record.created,
        "origin": record.origin.get("location") or record.origin.get("source", ""),
    }


def datasets_view(rows: list[dict[str, Any]]) -> RenderableType:
    """Rows of `dataset_row` for `Console.print`."""
    if not rows:
        return Text("no datasets; make one with `gpuflow ingest SOURCE NAME`")
    table = Table(box=None, header_style="bold")
    for column in ("name", "state", "arrays", "chunks", "stored", "nodes", "made from"):
        table.add_column(column)
    for row in rows:
        present = str(row["chunks"]) if row["present"] == row["chunks"] else f"{row['present']} of {row['chunks']}"
        nodes = f"{len(row['nodes'])}"
        origin = escape(str(row["origin"]))
        table.add_row(row["name"], row["state"], str(row["arrays"]), present, format_nbytes(row["nbytes"]), nodes, origin)
    return table


def dataset_details(
    record: DatasetRecord, tables: Mapping[str, ChunkTable], in_memory: Mapping[str, Mapping[str, int]] = MappingProxyType({})
) -> dict[str, Any]:
    """A dataset array by array, as plain data. in_memory: by array and node, how many chunks are decoded in its workers' memory."""
    arrays = {}
    for path, metadata in record.metadata.items():
        table = tables[path]
        arrays[path] = {
            "shape": list(metadata.shape),
            "dtype": str(metadata.document["data_type"]),
            "chunks": list(metadata.grid.chunks),
            "dims": list(metadata.dims),
            "codecs": [chain_names([codec]) for codec in metadata.document["codecs"]],
            "nbytes": int(table.rows["nbytes"].sum()),
            "chunk_count": metadata.grid.size,
            "missing": [int(chunk) for chunk in range(metadata.grid.size) if not table.present[chunk]],
            "chunks_by_node": {node: count for node, count in table.chunks_by_node().items() if count},
            **({"in_memory_by_node": dict(in_memory[path])} if in_memory.get(path) else {}),
            "attributes": dict(metadata.attributes),
        }
    return {**dataset_row(record, tables), "arrays": arrays, "in_place": len(record.transforms)}


def details_view(details: Mapping[str, Any]) -> RenderableType:
    """`dataset_details` for `Console.print`."""
    head = Text(
        f"{details['name']}  {details['state']}, {format_nbytes(details['nbytes'])}, made from {details['origin']}", style="bold"
    )
    arrays = Table(box=None, header_style="bold")
    for column in ("array", "shape", "dtype", "chunks", "dims", "codecs", "stored"):
        arrays.add_column(column)
    for path, array in details["arrays"].items():
        dims = ", ".join(name or "-" for name in array["dims"])
        arrays.add_row(
            escape(path),
            " x ".join(map(str, array["shape"])) or "scalar",
            array["dtype"],
            " x ".join(map(str, array["chunks"])) or "scalar",
            escape(dims),
            ", ".join(array["codecs"]),
            format_nbytes(array["nbytes"]),
        )
    return Group(head, arrays, Text(), _placement_view(details["arrays"]))


def _placement_view(arrays: Mapping[str, Any]) -> RenderableType:
    """Number of chunks of each array on each node."""
    nodes = sorted({node for array in arrays.values() for node in array["chunks_by_node"]})
    table = Table(box=None, header_style="bold")
    for column in ("chunks of", *nodes, "missing"):
        table.add_column(column, justify="left" if column == "chunks of" else "right")
    for path, array in arrays.items():
        counts = (str(array["chunks_by_node"].get(node, 0)) for node in nodes)
        table.add_row(escape(path), *counts, str(len(array["missing"])))
        if in_memory := array.get("in_memory_by_node"):
            table.add_row("  of these in memory", *(str(in_memory.get(node, 0)) for node in nodes), "")
    return table
