"""`gpuflow calibrate`."""

from __future__ import annotations

from gpuflow.cli.common import AsJson, Nodes_, Root, Scheduler, cluster, show


def calibrate(nodes: Nodes_ = None, scheduler: Scheduler = None, root: Root = None, as_json: AsJson = False) -> None:
    """Measure each node's limits: disk, memory, codecs, fsync.

    About ten seconds a machine, best while nothing else runs there. The figures are kept with the node; `compressor: auto`, the
    plan's `time` and the receipt's `bound_by` use them."""
    from gpuflow.display.calibration import calibration_view
    from gpuflow.execution.calibrate import calibrate_nodes, calibration_data

    with cluster(scheduler, nodes, None, None, root) as connection:
        found = calibrate_nodes(connection)
    show(calibration_view(found), calibration_data(found), as_json)
