"""The output of a pipeline whose source has grown: it grows too, and keeps what it has.

Pure. How its arrays are cut and stored stays as it was begun, so that the chunks that are there stay valid."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from gpuflow.datasets.growth import have_grown, is_grown
from gpuflow.errors import NameTaken
from gpuflow.pipelines.plan import ArrayPlan, Plan
from gpuflow.storage.metadata import ArrayMetadata
from gpuflow.storage.record import DatasetRecord


def as_begun(plan: Plan, there: DatasetRecord) -> Plan:
    """The plan, with its arrays stored as those of `there` are, which the same pipeline has made."""
    return replace(plan, arrays=tuple(_as_begun(array, there) for array in plan.arrays))


def _as_begun(array: ArrayPlan, there: DatasetRecord) -> ArrayPlan:
    known = there.arrays.get(array.path)
    if known is None or array.carried:
        return array
    keyed = {**array.target.document, "chunk_key_encoding": known["chunk_key_encoding"]}
    array = replace(array, target=ArrayMetadata(keyed))
    stored = {**keyed, "chunk_grid": known["chunk_grid"], "codecs": known["codecs"]}
    if not is_grown(known, stored) or (stored["shape"] == known["shape"] and array.path not in there.grown):
        return array  # which is refused where another form is wanted than there is
    return replace(array, target=ArrayMetadata(stored))


def grown_output(there: DatasetRecord, wanted: DatasetRecord) -> DatasetRecord | None:
    """The record of an output that is to become `wanted`; itself when it is that. None when it cannot: chunks would be others then.

    NameTaken when it has snapshots, which are of its arrays as they are."""
    if there.arrays == wanted.arrays:
        return there.next(growth={}) if there.growth else there
    if not have_grown(there.arrays, wanted.arrays):
        return None
    if there.snapshots:
        raise NameTaken(
            there.name, "has snapshots, which are of its arrays as they are, and its source has grown; delete them first"
        )
    longer = {path: document for path, document in wanted.arrays.items() if document != there.arrays[path]}
    if there.state != "ready":
        return there.next(arrays=wanted.arrays, growth={}, grown=_with(there.grown, longer))
    growth = {"arrays": longer}
    return there if dict(there.growth) == growth else there.next(growth=growth)


def ended(record: DatasetRecord, known: DatasetRecord) -> DatasetRecord | None:
    """What follows `known`, the newest record of an output, when the run is through that announced `record`; None when nothing does."""
    if record.growth:
        if known.growth != record.growth:
            return None  # its source has grown again, and another run sees to that
        longer = record.growth["arrays"]
        return known.next(arrays={**known.arrays, **longer}, growth={}, state="ready", grown=_with(known.grown, longer))
    return known.next(state="ready") if known.state != "ready" else None


def _with(grown: tuple[str, ...], more: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({*grown, *more}))
