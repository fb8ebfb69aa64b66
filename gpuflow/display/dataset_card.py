"""A dataset as a card: its arrays, where their chunks lie, what is known of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from gpuflow.datasets.summary import ArraySummary
from gpuflow.display.card import bar, card, folded, grid, legend, line, name, table
from gpuflow.palette import MISSING, colours_of
from gpuflow.storage.chains import chain_names
from gpuflow.storage.metadata import ArrayMetadata
from gpuflow.storage.record import DatasetRecord
from gpuflow.units import counted, format_nbytes

_DRAWN = 6  # arrays, those with the most chunks: a card is for a look
_LISTED = 60
_NOWHERE = "on no node"


def dataset_card(record: DatasetRecord, summaries: Mapping[str, ArraySummary], here: Collection[str] = ()) -> str:
    """HTML. here: nodes whose stores this process reads itself, without the network."""
    nodes = sorted({node for summary in summaries.values() for node in summary.by_node})
    colours = colours_of(nodes)
    named = {node: f"{node} (here)" if node in here else node for node in nodes}
    paths = sorted(record.arrays, key=lambda path: (-record.array(path).grid.size, path))
    stored = sum(summary.nbytes for summary in summaries.values())
    where = f"{format_nbytes(stored)} stored on {counted(len(nodes), 'node')}"
    parts = [
        line(f"{record.state}; {counted(len(paths), 'array')}, {where}; {_origin(record)}"),
        table([_row(path, record.array(path), summaries[path]) for path in paths[:_LISTED]], _HEAD),
    ]
    if len(paths) > _LISTED:
        parts.append(line(f"and {len(paths) - _LISTED} more arrays"))
    held = {node: float(sum(summary.by_node.get(node, 0) for summary in summaries.values())) for node in nodes}
    if len(nodes) > 1:
        parts.append(bar(held, colours))
    missing = any(not holders for summary in summaries.values() for row in summary.cells for holders in row)
    parts.append(legend({named[node]: colours[node] for node in nodes} | ({_NOWHERE: MISSING} if missing else {})))
    parts += [
        _drawn(path, record.array(path), summaries[path], colours, is_open=not number)
        for number, path in enumerate(paths[:_DRAWN])
    ]
    if record.transforms:
        parts.append(
            folded(
                f"changed in place {counted(len(record.transforms), 'time')}", table(_transforms(record), ("", "begun", "steps"))
            )
        )
    return card(f"gpuflow dataset {record.name}", *parts)


_HEAD = ("array", "shape", "dimensions", "dtype", "chunks", "number", "stored", "smaller", "codecs")


def _row(path: str, metadata: ArrayMetadata, summary: ArraySummary) -> list[str]:
    copies = summary.copies / metadata.grid.size if metadata.grid.size else 0.0
    decoded = metadata.chunk_nbytes * summary.copies
    return [
        path,
        " x ".join(map(str, metadata.shape)) or "scalar",
        ", ".join(dim or "-" for dim in metadata.dims),
        str(metadata.document["data_type"]),
        " x ".join(map(str, metadata.grid.chunks)),
        str(metadata.grid.size) + (f", {copies:.3g} copies" if copies > 1 else ""),
        format_nbytes(summary.nbytes),
        f"{decoded / summary.nbytes:.2f} times" if decoded and summary.nbytes else "",
        chain_names(metadata.document["codecs"]),
    ]


def _drawn(path: str, metadata: ArrayMetadata, summary: ArraySummary, colours: Mapping[str, str], *, is_open: bool) -> str:
    """The chunk grid: each chunk in the colour of a node that has it."""
    cells = [[min(nodes) if nodes else _NOWHERE for nodes in row] for row in summary.cells]
    picture = grid(cells, {**colours, _NOWHERE: MISSING})
    which = "each chunk" if max(summary.every, default=1) == 1 else f"one in {' x '.join(map(str, summary.every))} chunks"
    notes = [line(f"{which}, along {', '.join(dim or '-' for dim in metadata.dims) or 'no axis'}")]
    if metadata.attributes:
        notes.append(table([(str(key), str(value)[:200]) for key, value in list(metadata.attributes.items())[:20]]))
    if is_open:
        return name(path) + picture + "".join(notes)
    return folded(path, picture + "".join(notes))


def _origin(record: DatasetRecord) -> str:
    origin = record.origin
    made_from = origin.get("location") or (f"pipeline over {origin['source']}" if "source" in origin else origin.get("kind", "?"))
    return f"made from {made_from}" + (f", {record.created}" if record.created else "")


def _transforms(record: DatasetRecord) -> list[tuple[str, ...]]:
    return [
        (f"{number}.", str(transform.get("begun", "")), _steps(transform["steps"]))
        for number, transform in enumerate(record.transforms, 1)
    ]


def _steps(steps: Mapping[str, Any]) -> str:
    return (
        "; ".join(f"{path}: {', '.join(next(iter(step)) for step in done)}" for path, done in steps.items()) or "written by hand"
    )
