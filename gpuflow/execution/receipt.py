"""What a run read, wrote, shipped and waited for: counted where it happened, never derived from the plan."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gpuflow.errors import StoreError
from gpuflow.execution.bound import Bound
from gpuflow.execution.submit import Outcome
from gpuflow.storage.disk import write_durably


@dataclass(frozen=True)
class Receipt:
    """status: done, failed or interrupted. outcome: what the tasks counted, all passes together. sent: chunk bytes that left a worker.

    bound: what took most of the threads' time. saved_seconds: see saved.py; None also where nothing could have been shipped.

    chunks of the main pass: `total` of the output, of which `planned_skips` were never submitted."""

    run_id: str
    pipeline: str
    fingerprint: str
    target: str
    routing: str
    total: int
    planned_skips: int
    wall_seconds: float
    statistics_chunks: int
    outcome: Outcome
    sent: int
    nodes: tuple[str, ...]
    bound: Bound | None = None
    saved_seconds: float | None = None
    notes: tuple[str, ...] = field(default=())
    results: Mapping[str, Any] | None = None
    """By array: the statistics that were asked for."""

    @property
    def status(self) -> str:
        if self.outcome.interrupted:
            return "interrupted"
        return "failed" if self.outcome.tally.failures else "done"

    def to_dict(self) -> dict[str, Any]:
        """As `--report` writes it. bytes are encoded bytes; seconds other than wall are thread-seconds; wait: thread-seconds without
        work while chunks waited for their holder; reasons: chunks by why their task went where it went; healed: damaged chunks that
        were made good on the way; dropped: replicas that were given up. The tiers vram and ram: chunks that were in a device's memory or
        the host's, decoded, and the bytes that were not read for it."""
        tally = self.outcome.tally
        return {
            "run_id": self.run_id,
            "status": self.status,
            "pipeline": self.pipeline,
            "fingerprint": self.fingerprint,
            "dataset": self.target,
            "chunks": {
                "total": self.total,
                "done": tally.done - self.statistics_chunks,
                "skipped": self.planned_skips + tally.skipped,
                "failed": len(tally.failures),
            },
            "statistics": {
                "chunks": self.statistics_chunks,
                **({"arrays": dict(self.results)} if self.results is not None else {}),
            },
            "dropped": tally.dropped,
            "healed": [asdict(each) for each in tally.healed],
            "bytes": {"read": tally.read, "written": tally.written, "shipped": tally.shipped, "sent": self.sent},
            "locality": {
                "local_chunks": tally.local_chunks + tally.ram_chunks,
                "remote_chunks": tally.remote_chunks,
                "reasons": dict(sorted(self.outcome.reasons.items())),
                "tiers": {
                    "vram": {"chunks": tally.vram_chunks, "bytes": tally.vram},
                    "ram": {"chunks": tally.ram_chunks - tally.vram_chunks, "bytes": tally.ram - tally.vram},
                    "disk": {"chunks": tally.local_chunks, "bytes": tally.read - tally.shipped},
                    "peer": {"chunks": tally.remote_chunks, "bytes": tally.shipped},
                },
                "shipped_bytes": dict(sorted(tally.shipped_why.items())),
                "kept_bytes": tally.kept,
                "saved_seconds": None if self.saved_seconds is None else round(self.saved_seconds, 6),
            },
            "seconds": {
                "wall": round(self.wall_seconds, 6),
                **{stage: round(seconds, 6) for stage, seconds in tally.seconds.items()},
                "wait": round(self.outcome.wait_seconds, 6),
            },
            "bound_by": self.bound.to_dict() if self.bound else None,
            "nodes": {node: {"chunks": int(tally.by_node.get(node, 0))} for node in sorted({*self.nodes, *tally.by_node})},
            "routing": self.routing,
            "notes": list(self.notes),
            "failures": [failure.to_dict() for failure in tally.failures],
        }


def write_report(receipt: Receipt, path: str | os.PathLike[str]) -> None:
    """Write the receipt as JSON. StoreError when the file cannot be written."""
    try:
        write_durably(Path(path).absolute(), (json.dumps(receipt.to_dict(), indent=2) + "\n").encode())
    except OSError as error:
        raise StoreError(str(path), f"the report cannot be written ({error.strerror})", "choose another file") from error
