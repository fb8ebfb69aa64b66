"""One thing that happened to a dataset, and how far a follower has come. Pure."""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, NamedTuple

from gpuflow.errors import ConfigError, Problem

CREATED, UPDATED, REMOVED, PUBLISHED = "created", "updated", "removed", "published"


class Event(NamedTuple):
    """sequence: of the commit, counted by `node`, which need not be the only one that has the chunk. chunk: its number in C order;
    None for an event of a whole dataset, or of an array of it, whose generation is then the version of the dataset's record.

    kind: created | updated, a chunk at its first generation or at a later one; removed, a dataset or an array; published: all chunks of
    what its record says are there. digest, recipe: hexadecimal. run: that made it, "" where none did or it is not known any more.
    time: seconds since the epoch by the node's clock, to 50 ms; None when not known. Two events are of the same thing when `identity`
    is the same."""

    sequence: int
    node: str
    dataset: str
    array: str
    chunk: int | None
    generation: int
    digest: str
    nbytes: int
    recipe: str
    run: str
    time: float | None
    kind: str

    @property
    def identity(self) -> tuple[str, str, int | None, int]:
        """(dataset, array, chunk, generation)."""
        return self.dataset, self.array, self.chunk, self.generation

    def to_dict(self) -> dict[str, Any]:
        """Plain data; the time in ISO 8601, UTC."""
        moment = None if self.time is None else datetime.fromtimestamp(self.time, UTC).isoformat(timespec="milliseconds")
        return {**self._asdict(), "time": moment}


@dataclass(frozen=True)
class Cursor:
    """Up to which sequence number each node's events are known. As text it is opaque, and good for as long as one of its nodes lives."""

    nodes: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))

    def __str__(self) -> str:
        data = json.dumps(dict(sorted(self.nodes.items())), separators=(",", ":")).encode()
        return base64.urlsafe_b64encode(zlib.crc32(data).to_bytes(4, "big") + data).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """The inverse of `str`. ConfigError when it is no cursor, or was cut short."""
        try:
            raw = base64.b64decode(text.strip() + "=" * (-len(text.strip()) % 4), altchars=b"-_", validate=True)
            check, data = raw[:4], raw[4:]
            nodes = json.loads(data)
            if zlib.crc32(data).to_bytes(4, "big") != check or not all(isinstance(number, int) for number in nodes.values()):
                raise ValueError("its check does not hold")
            return cls(nodes)
        except (ValueError, binascii.Error, AttributeError, TypeError) as error:
            shown = text if len(text) <= 40 else f"{text[:40]}..."
            hint = "give the whole text that `gpuflow events` ended with, `now`, or none"
            raise ConfigError([Problem(f"{shown!r} is no cursor", "since", hint=hint)]) from error
