"""How long a plan says its run will take, on a real cluster whose nodes measured themselves with little."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import gpuflow
from gpuflow.cluster.connection import Connection, connect
from gpuflow.pipelines.load import from_dict
from gpuflow.storage.calibration import FILE_NAME
from tests.cli.commands import command
from tests.execution.test_calibrate import SMALL, set_amounts

UNKNOWN = "time: unknown: run `gpuflow calibrate` (2 of 2 nodes are not calibrated)"
STEPS = [{"standardize": {"mean": 8.0, "std": 2.0}}, {"cast": "float16"}]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Connection, Path]]:
    """Two nodes, and `once` and `twice`: 16 and 32 raw chunks; `packed`, zstd."""
    folder = tmp_path_factory.mktemp("expected")
    values = np.arange(32 * 64 * 64, dtype="float32").reshape(32, 64, 64) // 64
    with connect(nodes=2, workers=1, root=folder / "root") as connection:
        for name, count, codec in (("once", 16, None), ("twice", 32, None), ("packed", 16, zarr.codecs.ZstdCodec(level=3))):
            zarr.create_array(folder / name, data=values[:count], chunks=(1, 64, 64), compressors=codec)
            gpuflow.ingest(folder / name, name, connection=connection)
        yield connection, folder / "root"


@pytest.fixture(scope="module")
def calibrated(cluster: tuple[Connection, Path]) -> tuple[Connection, Path]:
    connection, root = cluster
    shown = repr(gpuflow.plan(spec("once"), connection=connection))
    assert UNKNOWN in shown, "nothing is guessed"
    before = next(iter(connection.client.run(set_amounts, SMALL).values()))
    try:
        gpuflow.calibrate(connection=connection)
    finally:
        connection.client.run(set_amounts, before)
    return connection, root


def spec(source: str, steps: list[Any] = STEPS, **output: Any) -> Any:
    return from_dict({"source": source, "steps": steps, "output": {"dataset": f"{source}-out", **output}})


def time_of(connection: Connection, pipeline: Any) -> dict[str, Any]:
    planned = gpuflow.plan(pipeline, connection=connection)
    found: dict[str, Any] = planned.details["time"]
    return found


def test_figures_grow_with_the_bytes(calibrated: tuple[Connection, Path]) -> None:
    connection, _ = calibrated
    once, twice = (time_of(connection, spec(name, compressor="none")) for name in ("once", "twice"))
    assert not once["at_least"]
    assert once["stage"]
    assert once["node"] in connection.nodes()
    ((before,), (after,)) = once["passes"], twice["passes"]
    assert after["seconds"] == pytest.approx(2 * before["seconds"], rel=0.5)
    assert once["cached_seconds"] <= once["seconds"] < twice["seconds"]
    assert time_of(connection, spec("packed"))["seconds"] is not None


def test_what_is_done_is_not_counted(calibrated: tuple[Connection, Path]) -> None:
    connection, _ = calibrated
    pipeline = spec("once")
    assert time_of(connection, pipeline)["passes"]
    gpuflow.run(pipeline, connection=connection)
    done = time_of(connection, pipeline)
    assert (done["passes"], done["stage"]) == ([], "overhead")


def test_statistics_are_a_pass_of_their_own(calibrated: tuple[Connection, Path]) -> None:
    connection, _ = calibrated
    found = time_of(connection, spec("twice", [{"standardize": {}}], dataset="with-statistics"))
    assert [one["title"] for one in found["passes"]] == ["moments of data", "map"]
    gpuflow.run(spec("twice", [{"standardize": {}}], dataset="with-statistics"), connection=connection)
    kept = time_of(connection, spec("twice", [{"standardize": {}}, {"clip": [-1, 1]}], dataset="other"))
    assert [one["title"] for one in kept["passes"]] == ["map"], "kept with the source"


def test_what_nobody_knows_is_named(calibrated: tuple[Connection, Path]) -> None:
    connection, _ = calibrated
    own = time_of(connection, spec("once", [{"exec": {"command": ["cat"]}}, {"clip": [0, 1]}], dataset="own"))
    assert own["not_counted"] == ["what exec computes"]
    assert own["at_least"]
    in_place = from_dict({"source": "packed", "steps": [{"clip": [0, 5]}], "output": {"in_place": True}})
    found = time_of(connection, in_place)["not_counted"]
    assert found == ["what zstd takes longer than with the settings that are calibrated"], "level 3, and 1 is measured"
    shown = repr(gpuflow.plan(spec("once", [{"median": {"size": {"0": 3}}}], dataset="median"), connection=connection))
    assert "time: at least " in shown
    assert "not counted: what median computes" in shown


def test_shipping_is_counted_once_it_was_measured(calibrated: tuple[Connection, Path]) -> None:
    connection, _ = calibrated
    turned = spec("once", [], dataset="turned", shards=[16, 16, 16], compressor="none")
    (unknown,) = time_of(connection, turned)["not_counted"]
    assert unknown.startswith("the network: ")
    assert unknown.endswith(" to ship, and no transfer was measured yet")
    gpuflow.run(turned, connection=connection)
    assert connection.info()["transferred"][1] > 0
    again = spec("once", [], dataset="again", shards=[16, 16, 16], compressor="none")
    assert time_of(connection, again)["not_counted"] == []


def test_as_a_user_sees_it(calibrated: tuple[Connection, Path], tmp_path: Path) -> None:
    """Without a cluster: from the store roots on the disk, and as a card."""
    _, root = calibrated
    file = tmp_path / "p.yaml"
    file.write_text("source: twice\nsteps: [clip: [0, 5]]\noutput: shown\n")
    assert "time: about " in command("plan", file, root=root)
    found = json.loads(command("plan", file, "--json", root=root))["time"]
    assert found["seconds"] > 0
    assert [one["title"] for one in found["passes"]] == ["map"]
    assert "time: about " in gpuflow.plan(str(file), root=root)._repr_html_()
    file.write_text("source: packed\nstatistics: {histogram: 4}\n")
    found = json.loads(command("plan", file, "--json", root=root))["time"]
    assert [one["title"] for one in found["passes"]] == ["moments of data", "histogram of data"]
    assert found["not_counted"] == ["taking histogram"]
    assert "time: at least " in command("plan", file, root=root)
    text = (root / FILE_NAME).read_text()
    try:
        (root / FILE_NAME).write_text("{}")
        assert "its calibration.json is damaged" in command("plan", file, root=root)
    finally:
        (root / FILE_NAME).write_text(text)
