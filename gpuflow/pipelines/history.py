"""The history of a dataset, of an array or of one chunk, as far as record and manifests keep it. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuflow.datasets.catalog import ChunkTable
from gpuflow.errors import NotFound
from gpuflow.pipelines.fingerprint import recipes
from gpuflow.pipelines.plan import made_in_place
from gpuflow.storage.manifest import UNKNOWN
from gpuflow.storage.record import DatasetRecord

MISSING, UNCLEAR, AS_MADE = "missing", "of unknown history", "as made"


def split_address(record: DatasetRecord, rest: str) -> tuple[str | None, int | None]:
    """(array, number of the chunk) that `rest` names, what follows the dataset's name; None for what it does not name.

    A chunk is given by its number or by its Zarr key. NotFound for an array or a chunk that the dataset has not."""
    if not rest:
        return None, None
    fitting = [path for path in record.arrays if rest == path or rest.startswith(f"{path}/")]
    if not fitting:
        raise NotFound("array", f"{record.name}/{rest}", sorted(record.arrays))
    array = max(fitting, key=len)
    chunk = rest[len(array) + 1 :]
    return array, _chunk_number(record, array, chunk) if chunk else None


def _chunk_number(record: DatasetRecord, array: str, text: str) -> int:
    metadata = record.array(array)
    grid = metadata.grid
    number = int(text) if text.isdecimal() else -1
    if number < 0:
        index = [int(part) for part in text.replace("/", ".").split(".") if part.isdecimal()]
        if len(index) == len(grid.counts) and all(part < count for part, count in zip(index, grid.counts, strict=True)):
            number = grid.ravel(tuple(index)) if metadata.key(grid.ravel(tuple(index))) == text else -1
    if not 0 <= number < grid.size:
        hint = (
            f"it has {grid.size}: give a number from 0, or a key such as {metadata.key(grid.size - 1)}"
            if grid.size
            else "it has none"
        )
        raise NotFound("chunk", f"{record.name}/{array}/{text}", hint=hint)
    return number


def stages(record: DatasetRecord, array: str, rows: NDArray[Any]) -> list[str]:
    """How far each chunk of an array has come. rows: (chunks,) REPLICA_DTYPE, the newest of each.

    AS_MADE, or the number of the in-place pipeline that made it: `in-place pipeline 1`. A chunk that an earlier one made, or none, waits
    for those after it."""
    found = np.full(len(rows), AS_MADE, dtype=object)
    found[rows["recipe"] == np.void(UNKNOWN)] = UNCLEAR
    for level, transform in enumerate(record.transforms):
        made_by = made_in_place(record, array, level + 1) if array in transform["steps"] and len(rows) else None
        if made_by is not None:
            found[rows["recipe"] == recipes(made_by, rows["inputs"])] = f"in-place pipeline {level + 1}"
    found[rows["generation"] == 0] = MISSING
    return list(found)


def dataset_history(record: DatasetRecord, tables: Mapping[str, ChunkTable]) -> dict[str, Any]:
    """A dataset's history as plain data. chunks: how many of each array have come how far."""
    return {
        "dataset": record.name,
        "version": record.version,
        "state": record.state,
        "created": record.created,
        "origin": dict(record.origin),
        "transforms": [
            {
                "number": number + 1,
                "begun": transform.get("begun", ""),
                "fingerprint": transform["fingerprint"],
                "declared": transform["declared"],
                "steps": dict(transform["steps"]),
            }
            for number, transform in enumerate(record.transforms)
        ],
        "snapshots": [
            {"tag": tag, "created": entry["created"], "in_place": len(entry["transforms"])}
            for tag, entry in sorted(record.snapshots.items(), key=lambda item: str(item[1]["created"]))
        ],
        "arrays": {path: array_history(record, path, table) for path, table in tables.items()},
    }


def array_history(record: DatasetRecord, array: str, table: ChunkTable) -> dict[str, Any]:
    """Of an array: chunks by how far they have come, by generation, and bytes."""
    rows = table.rows
    return {
        "chunks": len(rows),
        "nbytes": int(rows["nbytes"].sum()),
        "stages": dict(sorted(Counter(stages(record, array, rows)).items())),
        "generations": {
            int(value): int(count) for value, count in zip(*np.unique(rows["generation"], return_counts=True), strict=True)
        },
    }


def chunk_history(
    record: DatasetRecord, array: str, chunk: int, table: ChunkTable, kept: Mapping[str, ChunkTable], stale: Mapping[str, int]
) -> dict[str, Any]:
    """Of one chunk. kept: the array in each snapshot; stale: nodes that have an older generation of it, and which."""
    row = table.rows[chunk]
    return {
        "chunk": record.chunk_name(array, chunk),
        "number": chunk,
        "generation": int(row["generation"]),
        "stage": stages(record, array, table.rows[chunk : chunk + 1])[0],
        "nbytes": int(row["nbytes"]),
        "digest": row["digest"].tobytes().hex(),
        "recipe": row["recipe"].tobytes().hex(),
        "inputs": row["inputs"].tobytes().hex(),
        "holders": sorted(table.holder_sets[chunk]),
        "older": dict(sorted(stale.items())),
        "snapshots": {
            tag: {"generation": int(there.rows["generation"][chunk]), "digest": there.rows["digest"][chunk].tobytes().hex()}
            for tag, there in kept.items()
        },
    }


def stale_generations(generations: Mapping[str, Sequence[int]], newest: int) -> dict[str, int]:
    """By node, the generation of a replica that is older than `newest`. generations: what each node has of the chunk: one or none."""
    return {node: found[0] for node, found in generations.items() if found and found[0] < newest}
