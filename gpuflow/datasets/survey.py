"""What a run has to know before it is planned, in one question to each node: records, calibrations, and what lies where."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpuflow.datasets.catalog import ChunkTable, Known, Nodes, merge, newest_of
from gpuflow.storage.calibration import Calibration, kept_or_reason
from gpuflow.storage.manifest import REPLICA_DTYPE
from gpuflow.storage.node import NodeStore
from gpuflow.storage.record import DatasetRecord

Kept = Mapping[str, Calibration | str | None]
"""By node: its calibration, what is wrong with its file, or None when it has none."""


class _Answer(NamedTuple):
    records: list[DatasetRecord]
    replicas: dict[tuple[str, str], NDArray[Any]]
    calibration: Calibration | str | None


@dataclass(frozen=True)
class Survey:
    """records: of every name, removed ones too; calibrations: of every node."""

    records: Known
    calibrations: Kept
    _selects: Callable[[str], bool]
    _replicas: Mapping[str, Mapping[tuple[str, str], NDArray[Any]]]
    _tables: dict[tuple[str, str, int], ChunkTable] = field(default_factory=dict)
    coordinates: dict[str, NDArray[Any]] = field(default_factory=dict)
    """Values of arrays of the first dataset that was asked for, where labels have to be found among them."""

    @property
    def nodes(self) -> tuple[str, ...]:
        """Those that were asked."""
        return tuple(sorted(self.calibrations))

    def table(self, dataset: str, array: str, count: int) -> ChunkTable:
        """What the nodes hold of an array of `count` chunks, one of those that were asked for."""
        assert self._selects(array), array
        key = dataset, array, count
        if key not in self._tables:
            none = np.empty(0, REPLICA_DTYPE)
            self._tables[key] = merge({node: held.get(key[:2], none) for node, held in self._replicas.items()}, count)
        return self._tables[key]

    def held(self, dataset: str, array: str) -> dict[str, NDArray[Any]]:
        """What each node has of an array, REPLICA_DTYPE; whatever generation."""
        none = np.empty(0, REPLICA_DTYPE)
        return {node: held.get((dataset, array), none) for node, held in self._replicas.items()}


def survey(nodes: Nodes, datasets: Sequence[str], selects: Callable[[str], bool]) -> Survey:
    """Ask. selects: which arrays of `datasets`, as far as these are there, tables are wanted of."""
    answers = nodes.each_node(_look, list(datasets), selects)
    return Survey(
        newest_of([answer.records for answer in answers.values()]),
        {node: answer.calibration for node, answer in answers.items()},
        selects,
        {node: answer.replicas for node, answer in answers.items()},
    )


def survey_part(nodes: Nodes, wanted: Mapping[tuple[str, str], NDArray[np.int64]]) -> Survey:
    """Ask for some chunks alone: `wanted`, by dataset and array. Tables have no others."""
    answers = nodes.each_node(_look_at, dict(wanted))
    return Survey(
        newest_of([answer.records for answer in answers.values()]),
        {node: answer.calibration for node, answer in answers.items()},
        _every,
        {node: answer.replicas for node, answer in answers.items()},
    )


def _every(path: str) -> bool:
    return True


def _look_at(store: NodeStore, wanted: Mapping[tuple[str, str], NDArray[np.int64]]) -> _Answer:
    replicas = {}
    for (dataset, path), chunks in wanted.items():
        found = store.manifest.replicas_of(dataset, path, chunks.tolist())
        rows = [(one.chunk, one.generation, one.nbytes, one.digest, one.recipe, one.inputs) for one in found.values()]
        replicas[dataset, path] = np.array(rows, REPLICA_DTYPE)
    return _Answer(store.manifest.records(), replicas, kept_or_reason(store.root))


def _look(store: NodeStore, datasets: Sequence[str], selects: Callable[[str], bool]) -> _Answer:
    records = store.manifest.records()
    wanted = [(record.name, path) for record in records if record.name in datasets for path in record.arrays if selects(path)]
    replicas = {(dataset, path): store.manifest.replicas(dataset, path) for dataset, path in wanted}
    return _Answer(records, replicas, kept_or_reason(store.root))
