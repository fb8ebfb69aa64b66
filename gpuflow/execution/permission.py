"""Whether the workers allow what a plan asks of them."""

from __future__ import annotations

from gpuflow.cluster.connection import Connection
from gpuflow.errors import ClusterError
from gpuflow.pipelines.plan import Plan
from gpuflow.steps.exec import ALLOW


def check_permission(connection: Connection, plan: Plan) -> None:
    """ClusterError when a step runs programs and there are workers that may not."""
    kinds = sorted({step.kind for array in plan.arrays for step in array.steps if step.runs_programs})
    if not kinds:
        return
    refusing = sorted({worker["node"] for worker in connection.seen()["workers"].values() if not worker["allows_exec"]})
    if refusing:
        raise ClusterError(f"`{kinds[0]}` runs programs, which workers of node {', '.join(refusing)} do not allow", ALLOW)
