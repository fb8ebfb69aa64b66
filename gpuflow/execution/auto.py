"""What `compressor: auto` comes to, by the nodes' calibrations and by how well the data compresses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gpuflow.datasets.sizes import StoredSizes, stored_sizes
from gpuflow.datasets.survey import Survey
from gpuflow.execution.calibrate import REMEDY
from gpuflow.pipelines.compressor import Choice, choose_compressor
from gpuflow.pipelines.spec import PipelineSpec
from gpuflow.storage.calibration import Calibration
from gpuflow.storage.metadata import COMPRESSORS
from gpuflow.storage.record import DatasetRecord


def compressor_for(found: Survey, spec: PipelineSpec, source: DatasetRecord, output: DatasetRecord | None) -> Choice | None:
    """What `auto` comes to; None where the pipeline names a compressor. output: the dataset of that name, if there is one: what it was
    begun with is kept, whatever was measured since."""
    if spec.output.compressor != "auto":
        return None
    if output is not None and output.origin.get("compressor") in COMPRESSORS:
        return Choice(str(output.origin["compressor"]), f"chosen when {output.name!r} was begun")
    kept = found.calibrations
    selected = {path: metadata.grid.size for path, metadata in source.metadata.items() if spec.source.selects(path)}
    sizes = {path: stored_sizes(found.table(source.name, path, count)) for path, count in selected.items()}
    known = {node: one if isinstance(one, Calibration) else None for node, one in kept.items()}
    choice = choose_compressor(known, _ratios(source, sizes))
    damaged = [f"calibration.json of {node} is damaged ({one}); {REMEDY}" for node, one in kept.items() if isinstance(one, str)]
    return Choice(choice.name, "; ".join([choice.why, *damaged]))


def _ratios(source: DatasetRecord, sizes: Mapping[str, StoredSizes]) -> dict[str, float]:
    """Decoded over stored bytes, by the compressor that the arrays are stored with."""
    totals: dict[str, tuple[int, int]] = {}
    for path, size in sizes.items():
        metadata = source.array(path)
        stored_with = {codec["name"] for codec in all_codecs(metadata.document["codecs"])}
        for name in (name for name, codecs in COMPRESSORS.items() if codecs and codecs[0]["name"] in stored_with):
            decoded, stored = totals.get(name, (0, 0))
            totals[name] = decoded + size.count * metadata.chunk_nbytes, stored + size.total_nbytes
    return {name: decoded / stored for name, (decoded, stored) in totals.items() if decoded and stored}


def all_codecs(codecs: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Of a chain, and of the chain of inner chunks where there are shards."""
    inner = [codec for outer in codecs for codec in (outer.get("configuration") or {}).get("codecs", ())]
    return [*codecs, *(all_codecs(inner) if inner else ())]
