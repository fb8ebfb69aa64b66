"""Which arrays go on: `select` keeps those it names, `drop` leaves them out."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Any, ClassVar

from pydantic import Field, PlainValidator

from gpuflow.steps.base import Operation
from gpuflow.steps.parameters import patterns


class Pick(Operation, frozen=True):
    """`arrays`: names, or fnmatch patterns."""

    shorthand: ClassVar[tuple[str, ...]] = ("arrays",)

    arrays: Annotated[
        tuple[str, ...],
        PlainValidator(patterns, json_schema_input_type=str | list[str]),
        Field(description="Names of arrays, or fnmatch patterns."),
    ]

    @abstractmethod
    def keeps(self, path: str) -> bool:
        """Whether the array called `path` goes on."""

    def names(self, path: str) -> bool:
        """Whether one of the patterns fits `path`."""
        return any(fnmatchcase(path, pattern) for pattern in self.arrays)

    def unmatched(self, paths: Sequence[str]) -> list[str]:
        """Patterns that fit none of `paths`."""
        return [pattern for pattern in self.arrays if not any(fnmatchcase(path, pattern) for path in paths)]


class Select(Pick, frozen=True):
    """The arrays that go on."""

    kind: ClassVar[str] = "select"
    about: ClassVar[str] = "The arrays that go on."
    examples: ClassVar[tuple[Any, ...]] = (["t2m", "u*"],)

    def keeps(self, path: str) -> bool:
        return self.names(path)


class Drop(Pick, frozen=True):
    """The arrays that do not."""

    kind: ClassVar[str] = "drop"
    about: ClassVar[str] = "The arrays that are left out."
    examples: ClassVar[tuple[Any, ...]] = ("quality",)

    def keeps(self, path: str) -> bool:
        return not self.names(path)
