"""From a part of an array to the units that it is read in: inner chunks where the array is sharded, else whole stored objects.

Pure. A unit is (stored object, number within it); a use is what one row of one sample takes of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import product
from math import prod

from gpuflow.storage.metadata import ArrayMetadata

Place = tuple[int | slice, ...]


@dataclass(frozen=True, slots=True)
class Column:
    """The units that lie behind one another along the first axis, and what is taken of each row of them.

    object_number, unit_number: within a row of objects, and within an object's row of units. source: of a unit's row; target: of a
    sample's row. is_whole: whether a row is taken whole, and nothing of it lies outside the array."""

    object_number: int
    unit_number: int
    source: tuple[slice, ...]
    target: tuple[slice, ...]
    is_whole: bool


class Units:
    """The units of one array."""

    def __init__(self, metadata: ArrayMetadata, unit: tuple[int, ...]) -> None:
        self.shape, self.unit, self.object = metadata.shape, unit, metadata.grid.chunks
        self._counts = metadata.grid.counts
        self.columns = lru_cache(maxsize=64)(self._columns)

    @cached_property
    def per_object(self) -> tuple[int, ...]:
        """Units of an object along each axis."""
        return tuple(size // part for size, part in zip(self.object, self.unit, strict=True))

    @cached_property
    def object_columns(self) -> int:
        """Objects in a row of them."""
        return prod(self._counts[1:])

    def find(self, row: int, column: Column) -> tuple[int, int, int]:
        """(object, unit within it, row within the unit) where row `row` of a column lies."""
        slab, within = divmod(row, self.unit[0])
        number, slab = divmod(slab, self.per_object[0])
        unit = slab * self._unit_columns + column.unit_number
        return number * self.object_columns + column.object_number, unit, within

    @cached_property
    def _unit_columns(self) -> int:
        return prod(self.per_object[1:])

    def whole(self) -> Sequence[Column]:
        """Those of rows that are taken whole."""
        return self.columns(tuple((0, size) for size in self.shape[1:]))

    def _columns(self, taken: tuple[tuple[int, int], ...]) -> list[Column]:
        """Those of rows of which `taken`, (start, stop) of every axis but the first, is wanted."""
        axes = [list(self._along(axis, start, stop)) for axis, (start, stop) in enumerate(taken, start=1)]
        found = []
        for cells in product(*axes):
            object_number = unit_number = 0
            for axis, (number, within, _, _, _) in enumerate(cells, start=1):
                object_number = object_number * self._counts[axis] + number
                unit_number = unit_number * self.per_object[axis] + within
            source, target = tuple(cell[2] for cell in cells), tuple(cell[3] for cell in cells)
            found.append(Column(object_number, unit_number, source, target, all(cell[4] for cell in cells)))
        return found

    def _along(self, axis: int, start: int, stop: int) -> Iterator[tuple[int, int, slice, slice, bool]]:
        """(object, unit within it, what of it, where to, whether all of it) along one axis."""
        size = self.unit[axis]
        for number in range(start // size, -(-stop // size)):
            low, high = max(start, number * size), min(stop, (number + 1) * size)
            source, target = slice(low - number * size, high - number * size), slice(low - start, high - start)
            yield *divmod(number, self.per_object[axis]), source, target, high - low == size
