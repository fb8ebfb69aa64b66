"""Chunks of a dataset that was put together from several sources, fetched again, each from those that it came from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from gpuflow.cluster.connection import Connection
from gpuflow.datasets.growth import axes_of
from gpuflow.errors import CannotRepair, GpuflowError
from gpuflow.execution.passes import Run
from gpuflow.objectstore.coordinates import coordinates_of, identity_of, source_values
from gpuflow.objectstore.fit import length_of
from gpuflow.objectstore.growing import Piece, slim
from gpuflow.objectstore.grown import make_chunks, wanted_recipes
from gpuflow.objectstore.ingest import ingest_again
from gpuflow.objectstore.parts import Part, parts_of, parts_within
from gpuflow.objectstore.sources import open_source
from gpuflow.storage.record import DatasetRecord


def fetch_again(connection: Connection, record: DatasetRecord, damaged: Mapping[str, Iterable[int]]) -> None:
    """Make `damaged` chunks, by array, anew. CannotRepair, naming the sources, when some have changed or are gone; what can be made of
    the others is made all the same. Arrays that have not grown are those of the first source."""
    axis, axes = axes_of(record.name, record.metadata, record.origin["along"]["axis"])
    parts = parts_of(record.origin, length_of(record, axes))
    starts, wanted, lost = [part.start for part in parts], dict[str, list[int]](), list[str]()
    coordinates, opened = coordinates_of(record, axis, axes), dict[int, Piece | None]()

    def is_there(part: Part) -> bool:
        if part.start not in opened:
            opened[part.start] = _opened(part, coordinates, lost)
        return opened[part.start] is not None

    for path in damaged.keys() & axes.keys():
        grid = record.array(path).grid
        for chunk in damaged[path]:
            rows = grid.region(chunk)[axes[path]]
            if all(is_there(part) for part in parts_within(parts, starts, rows.start, rows.stop)):
                wanted.setdefault(path, []).append(chunk)
    others = sorted(damaged.keys() - axes.keys())
    if others and is_there(parts[0]) and (first := opened[0]) is not None and first.source is not None:
        ingest_again(connection, first.source, record, others)
    pieces = tuple(piece for _, piece in sorted(opened.items()) if piece is not None)
    if wanted:
        make_chunks(Run(connection, record), axes, pieces, wanted_recipes(record, axes, parts, wanted))
    if lost:
        raise CannotRepair(record.name, "; ".join(lost))


def _opened(part: Part, coordinates: list[str], lost: list[str]) -> Piece | None:
    """The source of a part, if it is as it was; else None, and why joins `lost`."""
    try:
        source = open_source(part.location, **part.options)
        arrays = source.layout().arrays
        piece = Piece(source, part.start, part.stop, slim(arrays, arrays))
        values = {name: source_values(piece, name) for name in coordinates}
        if part.identity not in (source.identity(), identity_of(source, values)):
            lost.append(f"{part.location} has changed since it was ingested")
            return None
    except GpuflowError as error:
        lost.append(str(error))
        return None
    return piece
