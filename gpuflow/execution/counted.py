"""From a run's plan and counts to what bounded it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gpuflow.datasets.survey import Kept
from gpuflow.execution.auto import all_codecs
from gpuflow.execution.bound import Bound, Work, what_bounded
from gpuflow.execution.passes import Run
from gpuflow.pipelines.plan import ChunkPlan, Plan
from gpuflow.storage.calibration import Calibration
from gpuflow.storage.metadata import COMPRESSORS, ArrayMetadata, checked


def bound_of(run: Run, plan: Plan, chunks: Sequence[ChunkPlan], kept: Kept, wall_seconds: float) -> Bound | None:
    """What bounded `run`, whose main pass was `chunks`. kept: the nodes' calibrations."""
    outcome, workers = run.outcome, run.connection.seen()["workers"].values()
    work = Work(
        wall_seconds=wall_seconds,
        threads=sum(worker["threads"] for worker in workers),
        seconds=outcome.tally.seconds,
        wait_seconds=outcome.wait_seconds,
        read_nbytes=outcome.tally.read - outcome.tally.shipped,
        written_nbytes=outcome.tally.written,
        shipped_nbytes=outcome.tally.shipped,
        decoded_nbytes=_decoded_nbytes(run, plan, chunks),
        source_codec=_codec(array.source for array in plan.arrays if not array.carried),
        target_codec=_codec(array.target for array in plan.arrays if not array.carried),
        durable=plan.spec.run.durability == "durable",
    )
    return what_bounded(work, [one if isinstance(one, Calibration) else None for one in kept.values()])


def _decoded_nbytes(run: Run, plan: Plan, chunks: Sequence[ChunkPlan]) -> int:
    """Of the chunks that were computed in the main pass, and of those that statistics were taken over, which are as large; but for those
    that were in memory."""
    computed = [(len(part.pending), part.array.target.chunk_nbytes) for part in chunks if not part.array.carried]
    total = sum(count * nbytes for count, nbytes in computed)
    number = sum(count for count, _ in computed)
    sizes = [array.source.chunk_nbytes for array in plan.arrays if not array.carried]
    mean = total / number if number else sum(sizes) / max(1, len(sizes))
    tally = run.outcome.tally
    read = tally.local_chunks + tally.remote_chunks
    return int((total + run.statistics_chunks * mean) * read / max(1, read + tally.ram_chunks))


_PLAIN = ("bytes", "transpose", "crc32c", "sharding_indexed")
_ALIKE = ("zstd", "gzip")
"""Compressors that are decoded as fast whatever level they were encoded with."""


def compressor_of(metadata: ArrayMetadata, *, written: bool = False) -> str | None:
    """The compressor among those that are calibrated whose rates hold for reading, or writing, an array; None where it has none, and an
    empty text for another one."""
    codecs = all_codecs(metadata.document["codecs"])
    names = {str(codec["name"]) for codec in codecs} - {*_PLAIN}
    if not names:
        return None
    if not written and len(names) == 1 and (alike := names & {*_ALIKE}):
        return alike.pop()
    measured = {name: chain[0] for name, chain in COMPRESSORS.items() if chain}
    return _measured_name(codecs, measured) or "" if len(names) == 1 else ""


def _codec(arrays: Iterable[ArrayMetadata]) -> str | None:
    """The one compressor that all arrays are stored with, in the settings that a calibration measures."""
    measured = {name: codecs[0] for name, codecs in COMPRESSORS.items() if codecs}
    found = {_measured_name(array.document["codecs"], measured) for array in arrays}
    return found.pop() if len(found) == 1 else None


def _measured_name(codecs: Sequence[Mapping[str, Any]], measured: Mapping[str, Mapping[str, Any]]) -> str | None:
    forms = ((name, (settings, checked(settings))) for name, settings in measured.items())
    return next((name for name, same in forms for codec in all_codecs(codecs) if codec in same), None)
