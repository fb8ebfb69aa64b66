"""A snapshot is read as it was, also in the middle of an in-place run."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import gpuflow
from gpuflow.cluster.connection import Connection
from gpuflow.datasets import snapshots
from gpuflow.datasets.kept import KeptLocator
from gpuflow.errors import ChunkCorrupt, ChunkLost, ConfigError, NameTaken, NotFound, StaleChunk
from gpuflow.palette import IN_MEMORY
from gpuflow.storage.node import NodeStore
from gpuflow.storage.snapshots import folder_of
from gpuflow.units import format_nbytes
from tests.cluster.processes import until
from tests.explore.conftest import VALUES
from tests.explore.test_cards import checked

_GATED = """
import os, time

calls = []

def gated(xp, block, gate):
    calls.append(block.std() > 0)  # else it is only tried
    while sum(calls) > 1 and not os.path.exists(gate):
        time.sleep(0.01)
    return block + 1
"""
"""Each worker changes its first chunk, and then waits."""


def test_it_is_read_while_a_run_changes_the_dataset(four_nodes: Connection, source: Path, root: Path, tmp_path: Path) -> None:
    gpuflow.ingest(source, "moved", connection=four_nodes, arrays=["t2m"])
    view = gpuflow.open("moved", connection=four_nodes)
    assert view["t2m"][0, 0, 0] == VALUES[0, 0, 0]
    gate = tmp_path / "gate"
    (tmp_path / "steps.py").write_text(_GATED)
    (tmp_path / "p.yaml").write_text(
        f"source: moved\nsteps:\n  - apply: {{function: steps:gated, gate: {gate}, returns: float32}}\n"
        "output: {in_place: true, snapshot: before}\n"
    )
    run = threading.Thread(target=lambda: gpuflow.run(tmp_path / "p.yaml", connection=four_nodes))
    run.start()
    try:
        until(
            lambda: (four_nodes.ask("gf_sync"), view.whereabouts().generations.max())[1] > 1, "the first chunks that are changed"
        )
        assert view.whereabouts().generations.min() == 1, "and the others are not"
        advice = r"is being changed in place by run \w+; gpuflow.open\('moved', snapshot='before'\) is what it was"
        with pytest.raises(NameTaken, match=advice):
            gpuflow.open("moved", connection=four_nodes)
        stale = 0
        for chunk in range(24):  # of a view from before: as it was, or an error that names it
            try:
                assert np.array_equal(view.chunk(chunk), VALUES[view.record.array("t2m").grid.region(chunk)])
            except StaleChunk:
                stale += 1
        assert 0 < stale < 24
        for where in ({"connection": four_nodes}, {"root": root}):
            with gpuflow.open("moved", snapshot="before", **where) as kept:
                _is_as_it_was(kept)
        engine: dict[str, Any] = {"engine": "gpuflow", "connection": four_nodes, "snapshot": "before"}
        with xr.open_dataset("gpuflow://moved", **engine) as opened:
            assert np.array_equal(opened.t2m.values, VALUES)
        assert run.is_alive()
    finally:
        gate.touch()
        run.join()
    view.close()
    with gpuflow.open("moved", connection=four_nodes) as after, gpuflow.open("moved", root=root, snapshot="before") as kept:
        assert np.array_equal(after.to_dask().compute(), VALUES + 1)
        _is_as_it_was(kept)
        assert np.array_equal(kept.to_dask()[5:9].compute(), VALUES[5:9])
        assert (len(after.record.transforms), len(kept.record.transforms)) == (1, 0)


def _is_as_it_was(kept: gpuflow.explore.dataset.Dataset) -> None:
    assert np.array_equal(kept["t2m"][...], VALUES)
    assert kept.stats()["mean"] == pytest.approx(VALUES.astype("float64").mean())
    assert kept.history()["arrays"]["t2m"]["stages"] == {"as made": 24}
    assert sum(kept.placement().values()) == 24
    text = checked(kept._repr_html_())
    entry = kept.record.snapshots["before"]
    assert (
        f"taken {entry['created']} of moved before any in-place pipeline; 1 array, {format_nbytes(entry['nbytes'])} kept" in text
    )
    assert "gpuflow dataset moved, snapshot before" in text
    assert "changed in place" not in text
    assert "snapshot 'before'" in repr(kept)


@pytest.fixture(scope="module")
def shot(four_nodes: Connection, source: Path) -> Connection:
    """The cluster, with dataset `shot`, its snapshot `s`, and chunks that were changed since."""
    gpuflow.ingest(source, "shot", connection=four_nodes, arrays=["t2m"])
    snapshots.take_snapshot(four_nodes, "shot", "s")
    gpuflow.run(gpuflow.Pipeline("shot").map("x * 0").in_place(), connection=four_nodes)
    return four_nodes


def test_a_snapshots_card_is_of_the_snapshot(shot: Connection, root: Path) -> None:
    for where in ({"connection": shot}, {"root": root}):
        with gpuflow.open("shot", snapshot="s", **where) as kept, gpuflow.open("shot", **where) as now:
            then, current = kept._repr_html_(), now._repr_html_()
            entry = kept.record.snapshots["s"]
            assert f"{format_nbytes(entry['nbytes'])} kept on" in checked(then)
            assert format_nbytes(entry["nbytes"]) not in checked(current), "zeros are smaller"
            assert ("changed in place" in then, "changed in place 1 time" in current) == (False, True)
            drawn = [path.count("M") for path in re.findall(r'<path fill="#\w+" d="([^"]*)"', then.split("</svg>")[1])]
            assert sorted(drawn) == sorted(entry["nodes"].values())
            assert IN_MEMORY not in then.split("</style>")[1], "what is in memory is of the dataset as it is"


def test_tasks_read_it_from_other_nodes_too(shot: Connection) -> None:
    worker = next(iter(shot.info()["workers"]))
    with gpuflow.open("shot", connection=shot, snapshot="s") as kept:
        whole = shot.client.submit(np.asarray, kept["t2m"], workers=[worker]).result()
    assert np.array_equal(whole, VALUES)


def test_what_cannot_be_had_of_it_is_an_error(shot: Connection, root: Path) -> None:
    with pytest.raises(NotFound, match="no snapshot 't'; there is: s"):
        gpuflow.open("shot", connection=shot, snapshot="t")
    with pytest.raises(ConfigError, match="a snapshot can only be read"):
        gpuflow.open("shot", connection=shot, snapshot="s", mode="r+")
    with gpuflow.open("shot", root=root, snapshot="s") as kept:
        with pytest.raises(ValueError, match="read-only"):
            kept["t2m"][0] = 1
        locator = kept.store.locator
        assert isinstance(locator, KeptLocator)
        (holder,) = kept.whereabouts().holders_of(5)
        store = locator.inner.stores[holder]
        file = _file(store, kept, 5)
        content = file.read_bytes()
        file.unlink()  # the link alone: the commit that made it anew is another file
        with pytest.raises(ChunkCorrupt, match=r"of snapshot 's' on node .* its file is missing"):
            kept.chunk(5)
        file.write_bytes(content[:-3] + b"bad")
        with pytest.raises(ChunkCorrupt, match="its digest is not the one that was kept"):
            kept.chunk(5)
        file.write_bytes(content)
        assert np.array_equal(kept.chunk(5), VALUES[8:12, 12:24])
        alone = KeptLocator(locator.inner, locator.what, [node for node in locator.nodes if node != holder])
        with pytest.raises(ChunkLost, match="shot/t2m/c/2/1/0 of snapshot 's'"):
            alone.fetch("shot", "t2m", 5, 1)
        snapshots.delete_snapshot(shot, "shot", "s")
        with pytest.raises(ChunkLost, match="no live replica of chunk shot/t2m/c/3/0/0"):
            kept.chunk(6)
        with pytest.raises(NotFound, match="no snapshot 's'"):
            locator.record("shot")


def _file(store: NodeStore, kept: gpuflow.explore.dataset.Dataset, chunk: int) -> Path:
    return folder_of(store, "shot", "s") / "t2m" / kept.record.array("t2m").key(chunk)
