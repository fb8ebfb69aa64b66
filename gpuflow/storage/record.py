"""A dataset's record: everything known of it but its chunks.

Small, versioned, kept by every node; of two records of one name the higher version wins."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

from gpuflow.errors import NotFound
from gpuflow.storage.metadata import ArrayMetadata

_AGAIN = ("options", "pipeline")

STRIDE = 2**16
"""So many generations lie between those of a chunk that was made once and those of what takes its place unseen: a node that is away, and
has the former, must not pass for a holder of the latter when it is back."""


@dataclass(frozen=True)
class DatasetRecord:
    """`arrays` and `groups` map a path in the hierarchy to the content of its `zarr.json` / its attributes.

    state: "writing" until every chunk is committed, then "ready"; "removed" is a tombstone.
    origin: what it was made from, in words that are compared for equality (an ingest's identity, a pipeline's fingerprint), and how to do
    it again ("options" of the ingest, the "pipeline").
    transforms: the in-place pipelines applied so far, oldest first, each {"declared", "fingerprint", "steps", "begun"}; the steps carry
    their resolved parameters, so that a resumed run applies the very same numbers.
    statistics: results that a later pipeline may reuse, by the digest of what they were computed from.
    snapshots: by tag: see datasets/snapshots.py.
    replicas: on how many nodes each chunk lies when a run has ended, "min"; up to "max", nodes to which it is shipped keep it.
    objects: what else lies in the hierarchy, by key: small, in base64.
    growth: what the dataset is becoming while its arrays grow, see growth.py; of no account to those who read it.
    fits: what steps took from the source to make this dataset, by array and number of the step: see pipelines/refit.py.
    grown: arrays of a pipeline's output that have grown since it was begun: they are stored as was fit for them then.
    floor: a generation that chunks are above which are made where none is known: see execution/again.py; a multiple of STRIDE."""

    name: str
    version: int = 1
    state: str = "writing"
    arrays: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    groups: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    origin: Mapping[str, Any] = field(default_factory=dict)
    transforms: tuple[Mapping[str, Any], ...] = ()
    statistics: Mapping[str, Any] = field(default_factory=dict)
    snapshots: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    replicas: Mapping[str, int] = field(default_factory=lambda: {"min": 1, "max": 1})
    created: str = ""
    objects: Mapping[str, str] = field(default_factory=dict)
    growth: Mapping[str, Any] = field(default_factory=dict)
    fits: Mapping[str, Any] = field(default_factory=dict)
    grown: tuple[str, ...] = ()
    floor: int = 0

    @cached_property
    def metadata(self) -> dict[str, ArrayMetadata]:
        """Parsed `zarr.json` by array path."""
        return {path: ArrayMetadata(document) for path, document in self.arrays.items()}

    @cached_property
    def becoming(self) -> dict[str, ArrayMetadata]:
        """The same as it will be once the arrays have grown: for those who write."""
        grown = self.growth.get("arrays", {})
        return {path: ArrayMetadata(grown[path]) if path in grown else metadata for path, metadata in self.metadata.items()}

    def array(self, path: str) -> ArrayMetadata:
        """NotFound when the dataset has no such array."""
        if path not in self.arrays:
            raise NotFound("array", f"{self.name}/{path}", sorted(self.arrays))
        return self.metadata[path]

    def chunk_name(self, array: str, linear: int) -> str:
        """How a chunk is called in messages: `photos/image/c.0.1`, the path of its file below `datasets/`."""
        metadata = self.array(array)
        return f"{self.name}/{array}/{(metadata if linear < metadata.grid.size else self.becoming[array]).key(linear)}"

    def part_name(self, array: str, linear: int) -> str:
        """The same for what a run works on, which may be what steps make of an array, cut otherwise than that."""
        if linear < max(self.array(array).grid.size, self.becoming[array].grid.size):
            return self.chunk_name(array, linear)
        return f"{self.name}/{array}, part {linear} after the steps"

    def documents(self) -> dict[str, bytes]:
        """All of the hierarchy but its chunks, by key: as it is laid on disk."""
        found = {join(path, "zarr.json"): metadata.to_json() for path, metadata in self.metadata.items()}
        for path, attributes in self.groups.items():
            document = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
            found[join(path, "zarr.json")] = json.dumps(document, indent=2).encode()
        return found | {key: base64.b64decode(text) for key, text in self.objects.items()}

    def is_made_like(self, origin: Mapping[str, Any]) -> bool:
        """Whether `origin` is of the same source and the same work; how to do it again may be said in other words."""

        def essence(one: Mapping[str, Any]) -> dict[str, Any]:
            return {name: value for name, value in one.items() if name not in _AGAIN}

        return essence(self.origin) == essence(origin)

    def keeping(self, policy: Mapping[str, int] | None) -> DatasetRecord:
        """With `policy` for its replicas; itself when it has that already, or for None."""
        if policy is None or dict(policy) == dict(self.replicas):
            return self
        return self.next(replicas=dict(policy))

    def next(self, **changes: Any) -> DatasetRecord:
        """The following version, with `changes`."""
        return replace(self, version=self.version + 1, **changes)

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> DatasetRecord:
        fields = json.loads(text)
        tuples = {name: tuple(fields[name]) for name in ("transforms", "grown") if name in fields}
        return cls(**{**fields, **tuples})


def is_first(generation: int) -> bool:
    """Whether a chunk is at the first generation that anybody knew of."""
    return generation % STRIDE == 1


def join(path: str, name: str) -> str:
    """Key of `name` at a path of the hierarchy, whose root is ""."""
    return f"{path}/{name}" if path else name
