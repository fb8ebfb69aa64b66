"""A dataset as a card: its arrays, where their chunks lie and which are in memory, what is known of them; or a snapshot of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Set
from types import MappingProxyType
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
_WIDE, _CELLS = 560, (16, 12, 8)  # pixels of a grid, unless its cells are the smallest; of a cell

InMemory = Mapping[str, Mapping[int, Set[str]]]
"""By array and chunk: the nodes in whose workers' memory it is, decoded. Chunks that are in none are left out."""
_NOTHING: InMemory = MappingProxyType({})


def dataset_card(
    record: DatasetRecord,
    summaries: Mapping[str, ArraySummary],
    here: Collection[str] = (),
    in_memory: InMemory = _NOTHING,
    statistics: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
    snapshot: str | None = None,
) -> str:
    """HTML. here: nodes whose stores this process reads itself, without the network. statistics: of arrays, as `Dataset.stats` gives them.
    snapshot: tag of the one that record and summaries are of."""
    nodes = sorted({node for summary in summaries.values() for node in summary.by_node})
    colours = colours_of(nodes)
    named = {node: f"{node} (here)" if node in here else node for node in nodes}
    paths = _by_size(record)
    stored = sum(summary.nbytes for summary in summaries.values())
    state, kept = (record.state, "stored") if snapshot is None else (_taken(record, snapshot), "kept")
    where = f"{format_nbytes(stored)} {kept} on {counted(len(nodes), 'node')}"
    parts = [
        line(f"{state}; {counted(len(paths), 'array')}, {where}; {_origin(record)}"),
        table([_row(path, record.array(path), summaries[path]) for path in paths[:_LISTED]], _HEAD),
    ]
    if len(paths) > _LISTED:
        parts.append(line(f"and {len(paths) - _LISTED} more arrays"))
    if statistics:
        parts.append(table([_statistics(path, found) for path, found in sorted(statistics.items())], _STATISTICS))
    held = {node: float(sum(summary.by_node.get(node, 0) for summary in summaries.values())) for node in nodes}
    if len(nodes) > 1:
        parts.append(bar(held, colours))
    missing = any(not holders for summary in summaries.values() for row in summary.cells for holders in row)
    keys = {named[node]: colours[node] for node in nodes} | ({_NOWHERE: MISSING} if missing else {})
    parts.append(legend(keys, "decoded in a worker's memory, too" if any(in_memory.values()) else ""))
    parts += [
        _drawn(path, record.array(path), summaries[path], colours, in_memory.get(path, {}), is_open=not number)
        for number, path in enumerate(paths[:_DRAWN])
    ]
    if record.transforms:
        parts.append(
            folded(
                f"changed in place {counted(len(record.transforms), 'time')}", table(_transforms(record), ("", "begun", "steps"))
            )
        )
    title = f"gpuflow dataset {record.name}" if snapshot is None else f"gpuflow dataset {record.name}, snapshot {snapshot}"
    return card(title, *parts)


def drawn_arrays(record: DatasetRecord) -> list[str]:
    """Those whose chunks a card shows."""
    return _by_size(record)[:_DRAWN]


def _by_size(record: DatasetRecord) -> list[str]:
    return sorted(record.arrays, key=lambda path: (-record.array(path).grid.size, path))


def _taken(record: DatasetRecord, snapshot: str) -> str:
    """When, and of what."""
    before = len(record.transforms)
    state = f"after {counted(before, 'in-place pipeline')}" if before else "before any in-place pipeline"
    return f"taken {record.snapshots[snapshot]['created']} of {record.name} {state}"


_HEAD = ("array", "shape", "dimensions", "dtype", "chunks", "number", "stored", "smaller", "codecs")
_STATISTICS = ("statistics of", "values", "mean", "std", "min", "max")


def _statistics(path: str, found: Mapping[str, Any]) -> list[str]:
    numbers = (found[name] for name in ("mean", "std", "min", "max"))
    return [path, str(found["count"]), *("" if number is None else f"{number:.6g}" for number in numbers)]


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


def _drawn(
    path: str,
    metadata: ArrayMetadata,
    summary: ArraySummary,
    colours: Mapping[str, str],
    in_memory: Mapping[int, Set[str]],
    *,
    is_open: bool,
) -> str:
    """The chunk grid: each chunk in the colour of a node that has it, in memory if one has; with a dot when it is in a worker's memory."""
    rows = [list(zip(*row, strict=True)) for row in zip(summary.chunks, summary.cells, strict=True)]
    cells = [[_soonest(nodes, in_memory.get(chunk, frozenset())) for chunk, nodes in row] for row in rows]
    dotted = [[chunk in in_memory for chunk, _ in row] for row in rows]
    columns = max(map(len, cells), default=1)
    cell = next((pixels for pixels in _CELLS if pixels * columns <= _WIDE), _CELLS[-1])
    picture = grid(cells, {**colours, _NOWHERE: MISSING}, cell, dotted)
    which = "each chunk" if max(summary.every, default=1) == 1 else f"one in {' x '.join(map(str, summary.every))} chunks"
    along = ", ".join(dim or "-" for dim in metadata.dims) or "no axis"
    warm = f"; {sum(map(sum, dotted)):,} of these {sum(map(len, cells)):,} in a worker's memory" if in_memory else ""
    notes = [line(f"{which}, along {along}{warm}")]
    if metadata.attributes:
        notes.append(table([(str(key), str(value)[:200]) for key, value in list(metadata.attributes.items())[:20]]))
    if is_open:
        return name(path) + picture + "".join(notes)
    return folded(path, picture + "".join(notes))


def _soonest(holders: Set[str], in_memory: Set[str]) -> str:
    return min(holders & in_memory or holders, default=_NOWHERE)


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
