"""What `gpuflow plan` says of a pipeline that ends in statistics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from gpuflow.cli.common import nodes_to_look_at, show
from gpuflow.pipelines.statistics import StatisticsPipeline


def plan_statistics(
    pipeline: StatisticsPipeline, scheduler: str | None, nodes: int | None, root: Path | None, as_json: bool
) -> None:
    """Which are kept with the source, and what has to be read for the others. Only metadata is read."""
    from gpuflow.display.plan import time_text
    from gpuflow.execution.devices import choose_device
    from gpuflow.execution.expected import expected_statistics
    from gpuflow.execution.statistics import look_up
    from gpuflow.execution.summary import look, passes_of, questions, what_is_missing

    with nodes_to_look_at(scheduler, nodes, root) as where:
        device = choose_device(where, pipeline).told
        found, plan = look(where, pipeline)
        plan, _ = look_up(found, plan)
        arrays: dict[str, dict[str, Any]] = {}
        asked = []
        for question in questions(found, pipeline, plan):
            missing = what_is_missing(found, pipeline, plan, question)
            chunks = sum(plan.source.array(path).grid.size for path in question.flow.paths)
            kinds = [one.kind for one in question.requests((0.0, 1.0))]
            arrays[question.array.path] = {"asked": kinds, "missing": missing, "chunks": chunks if missing else 0}
            asked += [(question.flow, request) for request in passes_of(question, missing)]
        time = expected_statistics(where, found, plan, asked).to_dict()
    table = Table(title=f"{plan.source.name} -> statistics", title_justify="left", box=None, header_style="bold")
    for name in ("array", "statistics", "to compute", "chunks to read"):
        table.add_column(name)
    for path, array in arrays.items():
        left = ", ".join(array["missing"]) or "nothing: all are kept with the source"
        table.add_row(path, ", ".join(array["asked"]), left, str(array["chunks"]))
    shown = Group(table, Text(f"time: {time_text(time)}  on {device}"))
    show(shown, {"source": plan.source.name, "device": device, "arrays": arrays, "time": time}, as_json)
