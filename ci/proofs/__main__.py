"""`python -m ci.proofs`: the proof that no fault loses, tears or applies anything twice. Its parts are modules here."""

from __future__ import annotations

import argparse
import logging
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from ci.benchmarks.report import Report, finish
from ci.benchmarks.scratch import folder
from ci.proofs import corruption, crashes, failures
from ci.proofs.commit_paths import commit_paths
from ci.proofs.following import Following
from ci.proofs.kills import ROOT_AWAY, ROOT_LOST, Counts, Killing

_SHOWN = 5  # of what is wrong
_MOST_STATES = 100  # of one point in time, where what a power failure leaves is not promised


def main() -> int:
    parser = argparse.ArgumentParser(prog="ci/faults", description="Inject faults, print what came of them, and the checks.")
    parser.add_argument(
        "--kills", type=int, default=50, help="kill -9 so often (default 50; 1000 take about 40 minutes on two cores)"
    )
    parser.add_argument("--roots", type=int, default=5, help="take a node's root away so often, in three ways (default 5)")
    parser.add_argument("--flips", type=int, default=2000, help="bits of the manifest to flip (default 2000)")
    parser.add_argument("--seed", type=int, default=1, help="of what is drawn by chance (default 1)")
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=PARTS,
        default=list(PARTS),
        help="crashes, kills, corruption, failing calls, roots, watching",
    )
    parser.add_argument("--folder", type=Path, default=None, help="where the stores are made (default: a temporary folder)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)  # recoveries say what they do, a thousand times
    report = Report("cases")
    report.notes.append(f"seed {arguments.seed}")
    for part in arguments.parts:
        with folder(arguments.folder) as place:
            PARTS[part](report, arguments, place)
    return finish(report, arguments.json)


def _add(report: Report, job: str, cases: int, wrong: list[str]) -> None:
    report.add(job, "cases", cases)
    report.add(job, "wrong", len(wrong))
    report.notes += [f"{job}: {text}" for text in wrong[:_SHOWN]]


def _total(report: Report, part: str, side: str) -> int:
    return int(sum(report.median(job, side) for job in report.samples if job.startswith(f"{part}. ")))


def _crashes(report: Report, arguments: argparse.Namespace, place: Path) -> None:
    kinds: Counter[str] = Counter()
    for name, counts in crashes.prove(place, most=_MOST_STATES).items():
        _add(report, f"a. crash states, {name}", sum(counts.states.values()), counts.wrong)
        kinds.update(counts.states)
    report.notes.append("a. states after: " + ", ".join(f"{kind} {count:,}" for kind, count in kinds.items()))
    report.check("a. different crash states recovered from", _total(report, "a", "cases"), ">=", 1000)
    report.check("a. of them not as they may be", _total(report, "a", "wrong"), "<=", 0)


def _kills(report: Report, arguments: argparse.Namespace, place: Path) -> None:
    for replicas, kills in ((1, arguments.kills - arguments.kills // 2), (2, arguments.kills // 2)):
        killing = Killing(place / f"replicas {replicas}", arguments.seed, replicas)
        _add_kills(report, "b. kill -9", killing.run(kills), kills, replicas)


def _roots(report: Report, arguments: argparse.Namespace, place: Path) -> None:
    for what, replicas in ((ROOT_AWAY, 1), (ROOT_AWAY, 2), (ROOT_LOST, 2)):
        killing = Killing(place / f"{what} {replicas}", arguments.seed, replicas)
        counts = killing.run(arguments.roots, [what])
        _add_kills(report, "e.", counts, arguments.roots, replicas)
        report.check(f"e. with {replicas} replicas: made where a root had been", counts.made, "<=", 0)


def _add_kills(report: Report, job: str, counts: Counts, wanted: int, replicas: int) -> None:
    with_replicas = f"{replicas} replica{'s' * (replicas > 1)}"
    for what, number in counts.killed.items():
        name = f"{job} {what}, {with_replicas}"
        report.add(name, "cases", number)
        for seconds in counts.seconds.get(what, ()):
            report.add(name, "seconds until a run ended", seconds)
    part, what_was_done = job[:2], "kills" if job.startswith("b") else " and ".join(counts.killed)
    report.notes.append(
        f"{part} {with_replicas}: {counts.runs} runs in place ended, {counts.checked:,} replicas compared with NumPy"
    )
    report.notes += [f"{part} {with_replicas}: it hung; see {kept}" for kept in counts.kept]
    report.notes += [f"{part} {with_replicas}: {text}" for text in counts.wrong_ones[:_SHOWN]]
    report.check(f"{part} {with_replicas}: {what_was_done}", sum(counts.killed.values()), ">=", wanted)
    for what, count in counts.wrongs().items():
        report.check(f"{part} {with_replicas}: {what}", count, "<=", 0)


def _corruption(report: Report, arguments: argparse.Namespace, place: Path) -> None:
    for kind, counts in corruption.chunks(place / "chunks").items():
        _add(report, f"c. chunk {kind}", counts.made, counts.wrong)
    report.check("c. changes of chunks not found when read, or that harmed others", _total(report, "c", "wrong"), "<=", 0)
    counts = corruption.manifest(place / "manifest", arguments.flips, arguments.seed)
    _add(report, "c. manifest changed", counts.made, counts.wrong)
    report.notes.append(f"c. manifest: {counts.found:,} changes found, {counts.harmless:,} in what nothing is kept in")
    report.check("c. changes of the manifest that nobody notices", len(counts.wrong), "<=", 0)
    counts = corruption.documents(place / "documents")
    _add(report, "c. zarr.json changed", counts.made, counts.wrong)
    report.notes.append(f"c. zarr.json: {counts.found:,} changes found, {counts.harmless:,} after which it says the same")
    report.check("c. changes of zarr.json that the doctor does not find", len(counts.wrong), "<=", 0)


def _failures(report: Report, arguments: argparse.Namespace, place: Path) -> None:
    cases: Counter[str] = Counter()
    wrong: dict[str, list[str]] = {}

    def count(path: str, kind: str, calls: int, found: list[str]) -> None:
        cases[kind] += calls
        wrong.setdefault(kind, []).extend(f"{path}: {text}" for text in found)

    failures.each(count, commit_paths(), place)
    for kind, number in cases.items():
        _add(report, f"d. calls that failed, {kind}", number, wrong[kind])
    report.check("d. failures after which old and new were gone, or nothing worked", _total(report, "d", "wrong"), "<=", 0)


def _following(report: Report, arguments: argparse.Namespace, place: Path) -> None:
    counts = Following(place, arguments.seed).run(arguments.kills)
    for what, number in counts.killed.items():
        report.add(f"f. {what} killed while pipelines follow", "cases", number)
    report.notes.append(f"f. {counts.changes:,} changes; all done {counts.seconds:.1f} s after the last of them")
    report.check("f. kills while pipelines follow a stream of changes", sum(counts.killed.values()), ">=", arguments.kills)
    for what, count in counts.wrongs().items():
        report.check(f"f. {what}", count, "<=", 0)


PARTS: dict[str, Callable[[Report, argparse.Namespace, Path], None]] = {
    "a": _crashes,
    "b": _kills,
    "c": _corruption,
    "d": _failures,
    "e": _roots,
    "f": _following,
}

if __name__ == "__main__":
    sys.exit(main())
