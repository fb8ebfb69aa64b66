"""What bounded a run: the stage that took most of its threads' time, and how near it came to what the hardware can do.

Pure: from what the tasks counted and what the nodes measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpuflow.storage.calibration import Calibration

STAGES = {
    "read": "disk read",
    "decode": "codec decode",
    "compute": "steps",
    "encode": "codec encode",
    "commit": "disk write",
    "transfer": "network",
}
"""What the stages of a tally are called in a receipt."""
WAITING = "waiting for holders"
OVERHEAD = "overhead"
"""Threads were idle although no chunk waited: planning, scheduling, compiling, the last task of a pass."""


@dataclass(frozen=True, slots=True)
class Work:
    """A run's counts. seconds: thread-seconds by the stages of a tally; wait_seconds: thread-seconds without work while chunks waited.

    read_nbytes: read where they lie, encoded; decoded_nbytes: what was decoded or computed; codecs: names of the compressors of source
    and target among those that are calibrated, None for others or several; durable: whether commits were fsynced."""

    wall_seconds: float
    threads: int
    seconds: Mapping[str, float]
    wait_seconds: float = 0.0
    read_nbytes: int = 0
    written_nbytes: int = 0
    shipped_nbytes: int = 0
    decoded_nbytes: int = 0
    source_codec: str | None = None
    target_codec: str | None = None
    durable: bool = True


@dataclass(frozen=True, slots=True)
class Bound:
    """share: of the threads' time, 0 to 1. rate, limit: in `unit`; None where there is no such rate, or it was not measured.

    blocked_seconds: thread-seconds by stage, with waiting and overhead."""

    stage: str
    share: float
    blocked_seconds: Mapping[str, float]
    rate: float | None = None
    limit: float | None = None
    unit: str = ""
    note: str = ""

    @property
    def of_limit(self) -> float | None:
        """The share of the measured limit that was reached."""
        return self.rate / self.limit if self.rate is not None and self.limit else None

    def to_dict(self) -> dict[str, Any]:
        """As it stands in a receipt."""
        return {
            "stage": self.stage,
            "share": round(self.share, 4),
            "rate": _rounded(self.rate),
            "limit": _rounded(self.limit),
            "of_limit": _rounded(self.of_limit),
            "unit": self.unit,
            "note": self.note,
            "blocked_seconds": {stage: round(seconds, 6) for stage, seconds in self.blocked_seconds.items()},
        }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def what_bounded(work: Work, calibrations: Sequence[Calibration | None]) -> Bound | None:
    """The stage that took most of the threads' time. calibrations: of the nodes that worked, None for one that has none.

    None when nothing was done."""
    blocked = {name: work.seconds.get(stage, 0.0) for stage, name in STAGES.items()}
    if not any(blocked.values()):
        return None
    blocked[WAITING] = work.wait_seconds
    whole = max(work.wall_seconds * work.threads, sum(blocked.values()))
    blocked[OVERHEAD] = whole - sum(blocked.values())
    stage = max(blocked, key=lambda name: blocked[name])
    rate, unit = _rate(work, stage, blocked[stage])
    known = [one for one in calibrations if one is not None]
    limit, note = None, ""
    if rate is not None and stage != "network":
        if known and len(known) == len(calibrations):
            limit = _limit(work, stage, rate, known)
        else:
            note = "the limit is not known: run `gpuflow calibrate`"
    return Bound(stage, blocked[stage] / whole, blocked, rate, limit, unit, note)


def _rate(work: Work, stage: str, seconds: float) -> tuple[float | None, str]:
    """What was reached: over the run's whole time where threads share a device, over the stage's own where each has a core."""
    shared = {"disk read": work.read_nbytes, "disk write": work.written_nbytes, "network": work.shipped_nbytes}
    if stage in shared:
        return shared[stage] / work.wall_seconds / 1e9, "GB/s"
    if stage in ("codec decode", "codec encode", "steps"):
        return work.decoded_nbytes / seconds / 1e9, "GB/s a thread"
    return None, ""


def _limit(work: Work, stage: str, rate: float, nodes: Sequence[Calibration]) -> float | None:
    """What the hardware can do: of all nodes' disks together, of one core of the slowest node. steps: the rate of a memory copy."""
    if stage == "disk read":
        disk = sum(node.threads_read_gb_s for node in nodes)
        return disk if rate <= disk else sum(node.threads * node.cache_read_gb_s for node in nodes)
    if stage == "disk write":
        return sum(node.threads_write_gb_s for node in nodes) if work.durable else None
    if stage == "steps":
        return min(node.copy_gb_s for node in nodes)
    name = work.source_codec if stage == "codec decode" else work.target_codec
    if name is None or any(name not in node.codecs for node in nodes):
        return None
    rates = [node.codecs[name] for node in nodes]
    return min(one.decode_gb_s if stage == "codec decode" else one.encode_gb_s for one in rates)
