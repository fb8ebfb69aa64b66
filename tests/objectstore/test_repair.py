"""Damage of every kind is found, and made good where that can be done."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr

from gpuflow.cluster.connection import Connection
from gpuflow.datasets import catalog
from gpuflow.execution.run import run_pipeline
from gpuflow.objectstore.ingest import ingest_source
from gpuflow.objectstore.repair import scrub_dataset
from gpuflow.objectstore.sources import open_source
from gpuflow.pipelines.load import from_dict
from tests.helpers import read_back


def roots_of(connection: Connection) -> list[Path]:
    return [Path(root) for root in sorted({worker["root"] for worker in connection.info()["workers"].values()})]


def file_of(connection: Connection, chunk: str) -> Path:
    (path,) = [root / "datasets" / chunk for root in roots_of(connection) if (root / "datasets" / chunk).exists()]
    return path


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def ingested(connection: Connection, path: Path, name: str) -> None:
    assert ingest_source(connection, open_source(path), name).status == "done"


@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink])
def test_fetched_again_from_the_origin(three_nodes: Connection, field_zarr: Path, damage: Callable[[Path], None]) -> None:
    name = f"scrub-{damage.__name__}"
    ingested(three_nodes, field_zarr, name)
    clean = scrub_dataset(three_nodes, name)
    assert clean.sound
    assert (clean.checked, clean.findings) == (24, ())
    assert clean.nbytes == sum(file_of(three_nodes, f"{name}/{key}").stat().st_size for key in keys())
    damage(file_of(three_nodes, f"{name}/t2m/c/3/1/0"))
    seen = scrub_dataset(three_nodes, name, repair=False)
    assert not seen.sound
    assert [(each.chunk, each.repaired) for each in seen.findings] == [(f"{name}/t2m/c/3/1/0", "")]
    mended = scrub_dataset(three_nodes, name)
    assert mended.sound
    assert [(each.array, each.repaired) for each in mended.findings] == [("t2m", "fetched again")]
    assert mended.findings[0].node in three_nodes.nodes()
    assert scrub_dataset(three_nodes, name).findings == ()
    np.testing.assert_array_equal(read_back(roots_of(three_nodes), name, "t2m"), zarr.open_group(field_zarr)["t2m"][:])  # type: ignore[index]


def keys() -> list[str]:
    return [f"t2m/c/{i}/{j}/0" for i in range(10) for j in range(2)] + [f"time/c/{i}" for i in range(4)]


def test_recomputed_by_the_pipeline(three_nodes: Connection, field_zarr: Path) -> None:
    ingested(three_nodes, field_zarr, "scrub-in")
    run_pipeline(three_nodes, from_dict({"source": "scrub-in", "steps": [{"standardize": {}}], "output": "scrub-out"}))
    before = read_back(roots_of(three_nodes), "scrub-out", "t2m")
    for chunk in ("t2m/c.0.0.0", "t2m/c.9.1.0", "time/c/1"):
        file_of(three_nodes, f"scrub-out/{chunk}").unlink()
    report = scrub_dataset(three_nodes, "scrub-out")
    assert report.sound
    assert sorted(each.chunk for each in report.findings) == [
        "scrub-out/t2m/c.0.0.0",
        "scrub-out/t2m/c.9.1.0",
        "scrub-out/time/c/1",
    ]
    assert {each.repaired for each in report.findings} == {"recomputed"}
    np.testing.assert_array_equal(read_back(roots_of(three_nodes), "scrub-out", "t2m"), before)


def test_what_cannot_be_repaired_is_listed_with_the_reason(three_nodes: Connection, field_zarr: Path) -> None:
    ingested(three_nodes, field_zarr, "scrub-moved")
    steps = {"steps": [{"map": "x + 1"}], "output": "scrub-made"}
    run_pipeline(three_nodes, from_dict({"source": {"dataset": "scrub-moved", "arrays": ["t2m"]}, **steps}))
    flip(file_of(three_nodes, "scrub-moved/t2m/c/2/0/0"))
    zarr.open_group(field_zarr)["t2m"].attrs["units"] = "degC"
    report = scrub_dataset(three_nodes, "scrub-moved")
    assert not report.sound
    assert [(each.chunk, each.repaired) for each in report.findings] == [("scrub-moved/t2m/c/2/0/0", "")]
    assert report.notes == (f"dataset 'scrub-moved' cannot be repaired: {field_zarr} has changed since it was ingested",)
    file_of(three_nodes, "scrub-made/t2m/c.2.0.0").unlink()
    report = scrub_dataset(three_nodes, "scrub-made")
    assert [each.repaired for each in report.findings] == [""]
    assert report.to_dict()["sound"] is False


def test_changed_in_place_has_no_origin_any_more(three_nodes: Connection, field_zarr: Path) -> None:
    ingested(three_nodes, field_zarr, "scrub-changed")
    run_pipeline(three_nodes, from_dict({"source": "scrub-changed", "steps": [{"map": "x * 2"}], "output": {"in_place": True}}))
    flip(file_of(three_nodes, "scrub-changed/t2m/c/2/0/0"))
    report = scrub_dataset(three_nodes, "scrub-changed")
    assert not report.sound
    assert "it was changed in place since it was made" in report.notes[0]


def test_no_faster_than_asked(three_nodes: Connection, tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "a.zarr", data=np.random.default_rng(0).random((30, 100_000)), chunks=(1, 100_000))
    ingested(three_nodes, tmp_path / "a.zarr", "scrub-slow")
    began = time.monotonic()
    report = scrub_dataset(three_nodes, "scrub-slow", rate=10e6)
    assert time.monotonic() - began > 0.9 * report.nbytes / 3 / 10e6


def test_a_record_that_tells_no_origin(three_nodes: Connection, field_zarr: Path) -> None:
    """As after `gpuflow doctor --rebuild`."""
    ingested(three_nodes, field_zarr, "scrub-rebuilt")
    catalog.publish(three_nodes, catalog.find(three_nodes, "scrub-rebuilt").next(origin={}))
    flip(file_of(three_nodes, "scrub-rebuilt/t2m/c/2/0/0"))
    report = scrub_dataset(three_nodes, "scrub-rebuilt")
    assert [each.repaired for each in report.findings] == [""]
    assert "how it was made is not known" in report.notes[0]
