"""Whether the chunks of a dataset are all of one state, or some before and some after an in-place pipeline that is under way or died."""

from __future__ import annotations

from gpuflow.datasets.catalog import Nodes
from gpuflow.storage import leases
from gpuflow.storage.record import DatasetRecord


def changed_by(nodes: Nodes, record: DatasetRecord) -> str:
    """Which run changes the dataset, in words; "" when none does. A run that died half way is only seen by those who run it again."""
    runs = {run for run in nodes.each_node(leases.changer, record.name).values() if run is not None}
    if not runs:
        return ""
    kept = [tag for tag, entry in record.snapshots.items() if len(entry["transforms"]) == len(record.transforms) - 1]
    if not kept:
        return f"is being changed in place by run {min(runs)}; open it when that has ended"
    return (
        f"is being changed in place by run {min(runs)}; gpuflow.open({record.name!r}, snapshot={kept[0]!r}) is what it was, and "
        f"`gpuflow rollback {record.name} {kept[0]}` would bring that back"
    )
