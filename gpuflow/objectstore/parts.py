"""Of which sources a dataset was put together, one behind the other along one dimension.

Pure. The record's origin says it. A chunk's recipe is of the rows of the sources that it holds: who appends again skips what is there, and
what is damaged is fetched from the source that it came from."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpuflow.grid import Grid
from gpuflow.pipelines.fingerprint import fingerprint, recipe
from gpuflow.storage.disk import digest


@dataclass(frozen=True, slots=True)
class Part:
    """Rows `start` to `stop` of a dataset, and where they came from: `location`, `identity` and `options` of a source."""

    location: str
    identity: str
    options: Mapping[str, Any]
    start: int
    stop: int


def parts_of(origin: Mapping[str, Any], length: int) -> tuple[Part, ...]:
    """Of a dataset that is now `length` long."""
    first = origin["along"]["length"] if "along" in origin else length
    found = [Part(origin["location"], origin["identity"], origin.get("options", {}), 0, first)]
    for entry in origin.get("appended", ()):
        start = found[-1].stop
        options = entry.get("options", origin.get("options", {}))
        found.append(Part(entry["location"], entry["identity"], options, start, start + entry["length"]))
    return tuple(found)


def extended(origin: Mapping[str, Any], axis: str | int, length: int, added: Sequence[Part]) -> dict[str, Any]:
    """The origin of a dataset, `length` long so far, once `added` is in. Options are only said where they are others."""
    entries = [{"location": part.location, "identity": part.identity, "length": part.stop - part.start} for part in added]
    for entry, part in zip(entries, added, strict=True):
        if dict(part.options) != dict(origin.get("options", {})):
            entry["options"] = dict(part.options)
    along = origin.get("along", {"axis": axis, "length": length})
    return {**origin, "along": along, "appended": [*origin.get("appended", ()), *entries]}


class Recipes:
    """What the chunks of one array, growing along `axis`, are made of. parts: all of them, in order."""

    def __init__(self, array: str, grid: Grid, axis: int, parts: Sequence[Part]) -> None:
        self._array, self._grid, self._axis, self._parts = array, grid, axis, parts
        self._starts = [part.start for part in parts]

    def of(self, chunk: int) -> tuple[bytes, bytes]:
        """(recipe, digest of what it is made from). Of a chunk that the first source alone made, the ones that its ingest gave it."""
        rows = self._grid.region(chunk)[self._axis]
        inside = parts_within(self._parts, self._starts, rows.start, rows.stop)
        inputs = digest(f"{self._array}:{chunk}".encode())
        if len(inside) == 1 and inside[0] is self._parts[0]:
            return recipe(fingerprint({"ingest": self._parts[0].identity}), inputs), inputs
        pieces = [
            [part.identity, max(rows.start, part.start) - part.start, min(rows.stop, part.stop) - part.start] for part in inside
        ]
        return recipe(fingerprint({"ingest": pieces}), inputs), inputs


def parts_within(parts: Sequence[Part], starts: Sequence[int], start: int, stop: int) -> Sequence[Part]:
    """Those that have any of the rows from `start` to `stop`. starts: of all parts, ascending."""
    first = max(0, bisect_right(starts, start) - 1)
    return [part for part in parts[first : bisect_left(starts, stop)] if part.stop > start]
