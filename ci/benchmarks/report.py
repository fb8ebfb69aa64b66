"""What every benchmark prints and writes: a table of rates by job and side, ratios, and checks against stated bounds.

Sides of a job run in turn, round by round, so that a noisy minute hits them all; the figures are medians over the rounds."""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

_RELATIONS: dict[str, Callable[[float, float], bool]] = {">=": operator.ge, "<=": operator.le}


@dataclass(frozen=True)
class Check:
    """`value` has to be in `relation` (>= or <=) to `bound`."""

    name: str
    value: float
    relation: str
    bound: float

    @property
    def holds(self) -> bool:
        return _RELATIONS[self.relation](self.value, self.bound)

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "value": self.value, "bound": f"{self.relation} {self.bound:g}", "holds": self.holds}


@dataclass
class Report:
    """samples: job -> side -> one figure a round, in `unit`."""

    unit: str
    samples: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    ratios: dict[str, float] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, job: str, side: str, value: float) -> None:
        self.samples.setdefault(job, {}).setdefault(side, []).append(value)

    def median(self, job: str, side: str) -> float:
        return median(self.samples[job][side])

    def ratio(self, job: str, side: str, other: str) -> float:
        """Median over the rounds of the ratio within each round."""
        pairs = zip(self.samples[job][side], self.samples[job][other], strict=True)
        value = self.ratios[f"{job}: {side} / {other}"] = median(mine / theirs for mine, theirs in pairs)
        return value

    def check(self, name: str, value: float, relation: str, bound: float) -> None:
        self.checks.append(Check(name, value, relation, bound))

    def to_dict(self) -> dict[str, Any]:
        """`{job: {side: median}, spread: {job: {side: [least, most]}}, ratios: {...}, checks: [...]}`."""
        sides = [(job, side, values) for job, sides in self.samples.items() for side, values in sides.items()]
        medians: dict[str, dict[str, float]] = {job: {} for job in self.samples}
        spread: dict[str, dict[str, list[float]]] = {job: {} for job in self.samples}
        for job, side, values in sides:
            medians[job][side], spread[job][side] = median(values), [min(values), max(values)]
        checks = [check.to_dict() for check in self.checks]
        return {"unit": self.unit, **medians, "spread": spread, "ratios": self.ratios, "checks": checks, "notes": self.notes}

    def show(self) -> None:
        sides = sorted({side for job in self.samples.values() for side in job}, key=self._first_seen)
        table = Table("job", *sides, title=f"{self.unit}: median [least .. most]", title_justify="left")
        for job, values in self.samples.items():
            table.add_row(job, *(_cell(values.get(side)) for side in sides))
        console = Console(soft_wrap=True, width=None if Console().is_terminal else 160)
        console.print(table)
        for note in self.notes:
            console.print(note)
        for check in self.checks:
            style, word = ("green", "holds") if check.holds else ("red", "DOES NOT HOLD")
            console.print(f"{check.name}: {check.value:.3g} {check.relation} {check.bound:g} [{style}]{word}[/]", highlight=False)

    def _first_seen(self, side: str) -> int:
        order = [name for job in self.samples.values() for name in job]
        return order.index(side)


def _cell(values: list[float] | None) -> str:
    if values and len(values) == 1:
        return f"{values[0]:,.6g}"
    return f"{median(values):.3g} [{min(values):.3g} .. {max(values):.3g}]" if values else ""


def interleave(report: Report, job: str, sides: Mapping[str, Callable[[], float]], rounds: int, *, again: bool = False) -> None:
    """Every side once a round, `rounds` rounds, after one round that does not count. A side returns its figure.

    again: run each twice in a row, and count the second: after a side that takes seconds the kernel has no free pages at hand, and what
    comes first would pay for that."""
    for number in range(rounds + 1):
        for side, run in sides.items():
            value = run()
            if again:
                value = run()
            if number:
                report.add(job, side, value)


def finish(report: Report, path: Path | None) -> int:
    """Print, write, and the exit status."""
    report.show()
    if path is not None:
        path.write_text(json.dumps(report.to_dict(), indent=2) + "\n")
    return 0 if all(check.holds for check in report.checks) else 1
