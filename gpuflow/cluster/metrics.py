"""`gpuflow_*` among the metrics that Dask's scheduler serves for Prometheus at `/metrics`.

As Dask's own they need `prometheus_client`; without it Dask's page says so, and there is nothing to do here. A process has one registry:
with several schedulers in it, as in tests, the last one is shown."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from weakref import ref

from gpuflow import __version__
from gpuflow.cluster.figures import WatchFigures
from gpuflow.cluster.observed import Observed

if TYPE_CHECKING:
    from gpuflow.cluster.scheduler_plugin import GpuflowPlugin

_MOST_NODES = 1000
"""Nodes that have figures of their own, those that come first: a label of Prometheus is a series for ever."""


class _Collector:
    """What Prometheus asks when somebody asks it."""

    def __init__(self) -> None:
        self.plugin: Any = lambda: None

    def collect(self) -> Iterator[Any]:
        """Metric families; none without a scheduler."""
        plugin = self.plugin()
        if plugin is not None:
            yield from _families(plugin)


_collector: _Collector | None = None


def install(plugin: GpuflowPlugin) -> bool:
    """Have the metrics of `plugin` shown. Whether `prometheus_client` is installed."""
    global _collector
    if find_spec("prometheus_client") is None:
        return False
    import prometheus_client

    if _collector is None:
        _collector = _Collector()
        prometheus_client.REGISTRY.register(_collector)
    _collector.plugin = ref(plugin)
    return True


def _families(plugin: GpuflowPlugin) -> Iterator[Any]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily

    observed, figures = Observed.of(plugin), plugin.figures

    def gauge(name: str, about: str, value: float) -> Any:
        return GaugeMetricFamily(f"gpuflow_{name}", about, value=value)

    def counter(name: str, about: str, value: float) -> Any:
        return CounterMetricFamily(f"gpuflow_{name}", about, value=value)

    yield InfoMetricFamily("gpuflow", "Version and routing mode", value={"version": __version__, "routing": plugin.routing})
    yield gauge("broken", "1 when the scheduler plugin has stopped working", float(bool(plugin.broken)))
    yield gauge("nodes", "Nodes that have a worker", len(observed.nodes))
    yield gauge("workers", "Workers of nodes", sum(node.workers for node in observed.nodes))
    yield gauge("runs", "Runs that have tasks", sum(run.ended is None for run in figures.runs.values()))
    yield gauge("tasks_parked", "Chunk tasks that wait for a worker", plugin.router.waiting)
    yield gauge("chunks_away", "Chunks that no live node has", observed.away)
    yield counter("chunks_done", "Chunks of tasks that have ended", figures.done)
    yield counter("chunks_local", "Chunks of tasks that ended on a node that had them", figures.local["chunks"])
    yield counter("local_bytes", "Encoded bytes of chunks that tasks read on a node that had them", figures.local["nbytes"])
    yield counter("chunks_shipped", "Chunks that went from node to node", figures.shipped["chunks"])
    yield counter("shipped_bytes", "Bytes of chunks that went from node to node", figures.shipped["nbytes"])
    yield counter("transfer_seconds", "Seconds that threads waited for chunks of other nodes", plugin.transferred[2])
    yield gauge("devices", "CUDA devices that have a worker", sum(len(node.devices) for node in observed.nodes))
    chunks = GaugeMetricFamily("gpuflow_chunks", "Chunks whose newest generation a node has", labels=["node", "copies"])
    queued = GaugeMetricFamily("gpuflow_node_tasks", "Chunk tasks of a node", labels=["node", "state"])
    for node in observed.nodes[:_MOST_NODES]:
        chunks.add_metric([node.name, "only"], node.held.alone)
        chunks.add_metric([node.name, "several"], node.held.copied)
        queued.add_metric([node.name, "parked"], node.parked)
        queued.add_metric([node.name, "running"], node.running)
    yield chunks
    yield queued
    yield from _watches(plugin.figures.watches.values())


def _watches(watches: Iterable[WatchFigures]) -> Iterator[Any]:
    """A series for each pipeline that is or was watched, by the dataset that it writes."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    label, now = ["pipeline"], time.monotonic()
    up = GaugeMetricFamily("gpuflow_watch_up", "1 when the pipeline has a watcher", labels=label)
    stuck = GaugeMetricFamily("gpuflow_watch_problem", "1 when something holds the pipeline up", labels=label)
    left = GaugeMetricFamily("gpuflow_watch_chunks_left", "Chunks of the source that are due", labels=label)
    given_up = GaugeMetricFamily("gpuflow_watch_chunks_given_up", "Chunks that failed too often", labels=label)
    runs = CounterMetricFamily("gpuflow_watch_runs", "Runs of the watched pipeline", labels=label)
    done = CounterMetricFamily("gpuflow_watch_chunks_done", "Chunks that these runs made", labels=label)
    for watch in watches:
        name = [watch.name]
        up.add_metric(name, float(watch.is_watched(now)))
        stuck.add_metric(name, float(bool(watch.problem)))
        left.add_metric(name, watch.left)
        given_up.add_metric(name, watch.given_up)
        runs.add_metric(name, watch.runs)
        done.add_metric(name, watch.chunks)
    yield from (up, stuck, left, given_up, runs, done)
