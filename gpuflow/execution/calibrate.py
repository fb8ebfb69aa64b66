"""Calibrations of a cluster's nodes, measured on their workers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from gpuflow.cluster.connection import Connection
from gpuflow.cluster.worker_plugin import on_store
from gpuflow.storage.calibration import Calibration
from gpuflow.storage.measure import calibrate
from gpuflow.storage.node import NodeStore

REMEDY = "run `gpuflow calibrate`"


def calibrate_nodes(connection: Connection) -> dict[str, Calibration]:
    """Measure every node, each with as many threads as its workers have, by one that has a device where there is one, and keep the figures
    with it.

    Nodes of one machine are measured one after the other: they share its disk. StoreError when a root has no room."""
    nodes = connection.nodes()
    workers = connection.info()["workers"]
    threads = {address: worker["threads"] for address, worker in workers.items()}
    turns: dict[int, list[str]] = defaultdict(list)
    seen: dict[str | None, int] = defaultdict(int)
    for node, addresses in nodes.items():
        machine = urlsplit(addresses[0]).hostname
        turns[seen[machine]].append(node)
        seen[machine] += 1
    found: dict[str, Calibration] = {}
    for turn in turns.values():
        chosen = {min(nodes[node], key=lambda address: workers[address]["device"] == "cpu"): node for node in turn}
        writers = {node: sum(threads[address] for address in nodes[node]) for node in turn}
        answers = connection.client.run(on_store, _calibrate, writers, workers=list(chosen))
        found |= {chosen[address]: answer for address, answer in answers.items()}
    return dict(sorted(found.items()))


def _calibrate(store: NodeStore, writers: Mapping[str, int]) -> Calibration:
    return calibrate(store, writers[store.node_id])


def calibration_data(found: Mapping[str, Calibration]) -> dict[str, Any]:
    """Calibrations as plain data, by node."""
    return {node: calibration.to_dict() for node, calibration in found.items()}
