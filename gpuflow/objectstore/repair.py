"""Damaged and missing chunks found and made good: from a copy, else by the pipeline that made them, else from the origin."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from gpuflow.cluster.connection import Connection
from gpuflow.datasets import catalog
from gpuflow.datasets.survey import Survey, survey
from gpuflow.errors import CannotRepair, GpuflowError
from gpuflow.execution.copies import copy_anew
from gpuflow.execution.lane import COPIED
from gpuflow.execution.passes import Run
from gpuflow.execution.run import look, plan_all_chunks, prepare, run_pipeline
from gpuflow.execution.scrub import Chunks, verify
from gpuflow.execution.statistics import look_up
from gpuflow.execution.submit import Progress, Silent
from gpuflow.execution.tally import Failure
from gpuflow.objectstore.ingest import ingest_source
from gpuflow.objectstore.regrow import fetch_again
from gpuflow.objectstore.sources import open_source
from gpuflow.pipelines.history import split_address
from gpuflow.pipelines.load import from_dict
from gpuflow.storage.record import DatasetRecord


@dataclass(frozen=True, slots=True)
class Finding:
    """A replica that is damaged, or a chunk that no node has (node ""). repaired: how it was made good; "" when it was not."""

    chunk: str
    array: str
    index: int
    node: str
    error: str
    repaired: str = ""


@dataclass(frozen=True)
class ScrubReport:
    """Of one dataset. checked, nbytes: replicas that were read, and their encoded bytes."""

    dataset: str
    checked: int
    nbytes: int
    seconds: float
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()
    interrupted: bool = False

    @property
    def sound(self) -> bool:
        """Whether nothing is left to repair."""
        return not self.interrupted and all(finding.repaired for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Plain data. bytes are encoded bytes."""
        return {
            "dataset": self.dataset,
            "sound": self.sound,
            "checked": self.checked,
            "bytes": self.nbytes,
            "seconds": round(self.seconds, 6),
            "interrupted": self.interrupted,
            "findings": [asdict(finding) for finding in self.findings],
            "notes": list(self.notes),
        }


def scrub_dataset(
    connection: Connection, name: str, *, rate: float | None = None, repair: bool = True, progress: Progress | None = None
) -> ScrubReport:
    """Verify every replica of a dataset, and repair what is damaged. rate: bytes/s that each node reads at most. NotFound without it."""
    began = time.monotonic()
    found = _look(connection, name)
    record = catalog.find_among(catalog.live(found.records), name)
    run = Run(connection, record, progress or Silent())
    everything = {path: np.arange(metadata.grid.size) for path, metadata in record.metadata.items()}
    findings = _check(run, found, everything, rate)
    tally, notes = run.outcome.tally, list[str]()
    if repair and findings and not run.outcome.interrupted:
        findings, notes = _repair(connection, record, findings)
    return ScrubReport(
        name,
        tally.done + len(tally.failures),
        tally.read,
        time.monotonic() - began,
        tuple(sorted(findings, key=lambda finding: (finding.array, finding.index))),
        tuple(notes),
        run.outcome.interrupted,
    )


def heal(connection: Connection, record: DatasetRecord, failures: Sequence[Failure]) -> tuple[list[Finding], list[str]]:
    """Make good those chunks of a dataset that a run found damaged: what is wrong with them and how it was repaired, and why it was not."""
    numbers: dict[str, set[int]] = {}
    for name in {failure.damaged for failure in failures if failure.damaged.startswith(f"{record.name}/")}:
        path, number = split_address(record, name.removeprefix(f"{record.name}/"))
        assert path is not None, name
        assert number is not None, name
        numbers.setdefault(path, set()).add(number)
    chunks = {path: np.array(sorted(found), np.int64) for path, found in numbers.items()}
    findings = _check(Run(connection, record), _look(connection, record.name), chunks)
    return _repair(connection, record, findings) if findings else ([], [])


def _repair(connection: Connection, record: DatasetRecord, findings: list[Finding]) -> tuple[list[Finding], list[str]]:
    """The findings, those that were repaired marked so; and why others were not."""
    notes: list[str] = []
    for how, redo in ((COPIED, _copy), _AGAIN.get(record.origin.get("kind", ""), ("", _cannot))):
        left = [finding for finding in findings if not finding.repaired]
        if not left:
            break
        try:
            redo(connection, record, left)
        except (GpuflowError, ArithmeticError) as error:
            notes.append(str(error))
        still = _check(Run(connection, record), _look(connection, record.name), _chunks_of(left))
        findings = _mark(findings, still, how)
    return findings, notes


def _look(connection: Connection, name: str) -> Survey:
    connection.ask("gf_sync")
    return survey(connection, [name], lambda path: True)


def _check(run: Run, found: Survey, chunks: dict[str, Chunks], rate: float | None = None) -> list[Finding]:
    """What is wrong with the replicas of `chunks`, by array."""
    record = run.source
    tables = {path: found.table(record.name, path, record.array(path).grid.size) for path in chunks}
    for path, table in tables.items():
        if record.state == "ready":
            run.record_lost(path, chunks[path][~table.present[chunks[path]]].tolist(), table.nodes)
    verify(run, tables, chunks, rate)
    return [
        Finding(failure.chunk, path, failure.index, failure.node, failure.error)
        for failure in run.outcome.tally.failures
        for path in tables
        if _is_of(record, path, failure)
    ]


def _is_of(record: DatasetRecord, path: str, failure: Failure) -> bool:
    """Whether it is about a chunk of that array."""
    return failure.index < record.array(path).grid.size and record.chunk_name(path, failure.index) == failure.chunk


def _chunks_of(findings: Iterable[Finding]) -> dict[str, Chunks]:
    by_array: dict[str, set[int]] = {}
    for finding in findings:
        by_array.setdefault(finding.array, set()).add(finding.index)
    return {path: np.array(sorted(chunks)) for path, chunks in by_array.items()}


def _mark(findings: list[Finding], left: list[Finding], how: str) -> list[Finding]:
    """The findings, those that are not among what is left as repaired."""
    bad = {(finding.array, finding.index) for finding in left}
    return [each if each.repaired or (each.array, each.index) in bad else replace(each, repaired=how) for each in findings]


def _copy(connection: Connection, record: DatasetRecord, findings: list[Finding]) -> None:
    """From peers that have them whole."""
    damaged: dict[str, dict[str, list[int]]] = {}
    for finding in findings:
        if finding.node:
            damaged.setdefault(finding.array, {}).setdefault(finding.node, []).append(finding.index)
    copy_anew(Run(connection, record), damaged)


def _recompute(connection: Connection, record: DatasetRecord, findings: list[Finding]) -> None:
    """By the pipeline that made the dataset, if it would do these chunks and no others."""
    spec = from_dict(_again(record, "pipeline"))
    found = look(connection, spec)
    prepared, begun = prepare(found, spec)
    plan, missing = look_up(found, prepared, begun=begun)
    wanted = {(finding.array, finding.index) for finding in findings}
    chunks = plan_all_chunks(found, plan)
    pending = {(part.array.path, chunk) for part in chunks for chunk in part.pending}
    if missing or not pending <= wanted or any(part.unmade for part in chunks):
        raise CannotRepair(record.name, f"its source {spec.source.dataset!r} has changed since, or has lost chunks too")
    run_pipeline(connection, spec)


def _fetch_again(connection: Connection, record: DatasetRecord, findings: list[Finding]) -> None:
    """From where it was ingested, if that is as it was."""
    if "along" in record.origin:
        _again(record, "options")
        fetch_again(connection, record, {path: chunks.tolist() for path, chunks in _chunks_of(findings).items()})
        return
    source = open_source(record.origin["location"], **_again(record, "options"))
    if source.identity() != record.origin["identity"]:
        raise CannotRepair(record.name, f"{source.location} has changed since it was ingested")
    ingest_source(connection, source, record.name)


def _cannot(connection: Connection, record: DatasetRecord, findings: list[Finding]) -> None:
    raise CannotRepair(record.name, "how it was made is not known: its record was rebuilt from files")


def _again(record: DatasetRecord, what: str) -> Any:
    if record.transforms:
        raise CannotRepair(record.name, "it was changed in place since it was made, and no node has a sound copy")
    if what not in record.origin:
        raise CannotRepair(record.name, "it was made by a gpuflow that did not keep how")
    return record.origin[what]


_AGAIN = {"pipeline": ("recomputed", _recompute), "ingest": ("fetched again", _fetch_again)}
