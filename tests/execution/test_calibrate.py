"""Calibrating the nodes of a cluster from Python."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import gpuflow
from gpuflow.cluster.connection import Connection
from gpuflow.datasets.catalog import Nodes, NodesOnDisk
from gpuflow.datasets.survey import Kept, survey
from gpuflow.errors import StoreError
from gpuflow.storage import measure
from gpuflow.storage.calibration import Calibration

SMALL: dict[str, Any] = {"_PROBE_NBYTES": 2**20, "_LARGEST_NBYTES": 2**21, "_FIELD_SHAPE": (16, 32, 32)}


def set_amounts(amounts: dict[str, Any]) -> dict[str, Any]:
    """On a worker: measure with other amounts; what they were."""
    before = {name: getattr(measure, name) for name in amounts}
    for name, value in amounts.items():
        setattr(measure, name, value)
    return before


def staged(root: str) -> list[str]:
    """Files below the root's staging folder, among them spares of chunks that other tests replaced."""
    return [str(Path(at) / name) for at, _, names in os.walk(Path(root) / "staging") for name in names if name != "lock"]


def kept_by(nodes: Nodes) -> Kept:
    return survey(nodes, [], bool).calibrations


def test_every_node_keeps_its_figures(three_nodes: Connection) -> None:
    roots = [worker["root"] for worker in three_nodes.info()["workers"].values()]
    there = {name for root in roots for name in staged(root)}
    before = next(iter(three_nodes.client.run(set_amounts, SMALL).values()))
    try:
        found = gpuflow.calibrate(connection=three_nodes)
    finally:
        three_nodes.client.run(set_amounts, before)
    kept = kept_by(three_nodes)
    assert list(found) == list(three_nodes.nodes()) == sorted(kept)
    for node, one in kept.items():
        assert isinstance(one, Calibration)
        assert one.to_dict() == found[node]
        threads = sum(worker["threads"] for worker in three_nodes.info()["workers"].values() if worker["node"] == node)
        assert one.threads == threads
    assert {name for root in roots for name in staged(root)} <= there
    assert kept_by(NodesOnDisk(tuple(Path(root) for root in roots))) == kept


def test_no_room(three_nodes: Connection) -> None:
    before = next(iter(three_nodes.client.run(set_amounts, {"_PROBE_NBYTES": 2**50}).values()))
    try:
        with pytest.raises(StoreError, match="measuring needs"):
            gpuflow.calibrate(connection=three_nodes)
    finally:
        three_nodes.client.run(set_amounts, before)
