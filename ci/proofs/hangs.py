"""What a cluster that does not go on was doing: the stacks of its processes, the scheduler's view of its tasks, and their logs, kept."""

from __future__ import annotations

import shutil
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

from distributed import Client, Scheduler

from ci.proofs.cluster import Processes
from gpuflow.cluster.scheduler_plugin import GpuflowPlugin

_ANSWER_SECONDS = 10.0
_WRITE_SECONDS = 1.0  # in which a process has written its stacks to its log


def keep(processes: Processes) -> Path:
    """A folder with all that is to be known."""
    kept = Path(tempfile.mkdtemp(prefix="gpuflow-hang-"))
    processes.signal(signal.SIGUSR1)  # to which each answers with the stacks of its threads: see cluster.py
    time.sleep(_WRITE_SECONDS)
    (kept / "state.txt").write_text(_state(processes.address))
    for log in processes.logs():
        shutil.copy(log, kept)
    return kept


def _state(address: str) -> str:
    try:
        with Client(address, timeout=_ANSWER_SECONDS, set_as_default=False) as client:
            return str(client.run_on_scheduler(_of_scheduler))
    except Exception as error:  # noqa: BLE001 - that the scheduler does not answer is what is to be known
        return f"the scheduler says nothing: {error!r}\n"


def _of_scheduler(dask_scheduler: Scheduler) -> str:
    plugin = dask_scheduler.plugins["gpuflow"]
    assert isinstance(plugin, GpuflowPlugin)
    parts: dict[str, Any] = {
        "workers": {
            address: (state.status, sorted(map(str, state.processing))) for address, state in dask_scheduler.workers.items()
        },
        "clients": {name: sorted(str(task.key) for task in state.wants_what) for name, state in dask_scheduler.clients.items()},
        "tasks": {str(key): (task.state, task.worker_restrictions) for key, task in dask_scheduler.tasks.items()},
        "members": plugin.members.nodes,
        "refused": plugin.members.refused,
        "broken": plugin.broken,
        "groups": {str(key): group.chunks for key, group in plugin.groups.items()},
        "stranded": plugin._stranded(),
        "waiting": plugin.router.waiting,
        "timer": (plugin._timer, plugin._soon, plugin._idle_since),
    }
    return "".join(f"{name}: {value}\n" for name, value in parts.items())
