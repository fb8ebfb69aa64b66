"""What bounded a run: from counts alone, then on a real cluster whose disk, codec or step was made slow."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from rich.console import Console

from gpuflow.cluster.connection import Connection, connect
from gpuflow.display.receipt import receipt_view
from gpuflow.execution import counted
from gpuflow.execution.bound import OVERHEAD, STAGES, WAITING, Bound, Work, what_bounded
from gpuflow.execution.run import run_pipeline
from gpuflow.execution.tally import STAGES as TALLIED
from gpuflow.objectstore.ingest import ingest_source
from gpuflow.objectstore.sources import open_source
from gpuflow.pipelines.load import from_dict
from gpuflow.storage.calibration import Calibration, keep
from gpuflow.storage.measure import representative_field
from gpuflow.storage.metadata import ArrayMetadata
from tests.storage.calibrations import calibration

GB = 10**9


def bound(calibrations: tuple[Calibration | None, ...] = (calibration(),), **counts: Any) -> Bound:
    found = what_bounded(Work(**{"wall_seconds": 10.0, "threads": 2, **counts}), calibrations)
    assert found is not None
    return found


# -- from counts -----------------------------------------------------------------------------------------------------------------


def test_every_stage_has_a_name() -> None:
    assert set(STAGES) == set(TALLIED)


@pytest.mark.parametrize("stage", TALLIED)
def test_the_largest_stage(stage: str) -> None:
    found = bound(seconds={"read": 1.0, "commit": 1.0, stage: 15.0})
    assert (found.stage, found.share) == (STAGES[stage], 15 / 20)
    assert sum(found.blocked_seconds.values()) == pytest.approx(20.0)


def test_waiting_and_overhead() -> None:
    assert bound(seconds={"read": 1.0}, wait_seconds=12.0).stage == WAITING
    found = bound(seconds={"read": 5.0}, wait_seconds=1.0)
    assert (found.stage, found.share, found.blocked_seconds[OVERHEAD]) == (OVERHEAD, 0.7, 14.0)
    assert found.to_dict()["of_limit"] is None


def test_more_seconds_than_threads_is_no_negative_overhead() -> None:
    found = bound(seconds={"decode": 30.0})
    assert (found.share, found.blocked_seconds[OVERHEAD]) == (1.0, 0.0)


def test_nothing_done() -> None:
    assert what_bounded(Work(wall_seconds=1.0, threads=2, seconds={}), [calibration()]) is None


@pytest.mark.parametrize(
    ("stage", "counts", "expected"),
    [
        ("commit", {"written_nbytes": 8 * GB}, (0.8, 1.0, "GB/s")),
        ("commit", {"written_nbytes": 8 * GB, "durable": False}, (0.8, None, "GB/s")),
        ("read", {"read_nbytes": 15 * GB}, (1.5, 3.0, "GB/s")),
        ("read", {"read_nbytes": 50 * GB}, (5.0, 20.0, "GB/s")),  # more than the disk gives: it came from the page cache
        ("decode", {"decoded_nbytes": 12 * GB, "source_codec": "zstd"}, (0.8, 1.6, "GB/s a thread")),
        ("encode", {"decoded_nbytes": 6 * GB, "target_codec": "zstd"}, (0.4, 0.8, "GB/s a thread")),
        ("encode", {"decoded_nbytes": 6 * GB}, (0.4, None, "GB/s a thread")),
        ("compute", {"decoded_nbytes": 45 * GB}, (3.0, 12.0, "GB/s a thread")),
        ("transfer", {"shipped_nbytes": 10 * GB}, (1.0, None, "GB/s")),
    ],
)
def test_the_share_of_the_limit(stage: str, counts: dict[str, Any], expected: tuple[float, float | None, str]) -> None:
    found = bound(seconds={stage: 15.0}, **counts)
    assert (found.rate, found.limit, found.unit) == expected
    assert found.of_limit == (expected[0] / expected[1] if expected[1] else None)


def test_several_nodes_and_none_calibrated() -> None:
    counts: dict[str, Any] = {"seconds": {"commit": 15.0}, "written_nbytes": 8 * GB}
    assert bound((calibration(1.0), calibration(0.6)), **counts).limit == 1.6
    for known in ((None,), (calibration(), None)):
        found = bound(known, **counts)
        assert (found.of_limit, found.limit) == (None, None)
        assert "gpuflow calibrate" in found.note


# -- staged on a real cluster ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connection]:
    """One calibrated node, and `field`: 16 chunks of 2 MiB."""
    folder = tmp_path_factory.mktemp("bound")
    field = np.concatenate([representative_field()] * 4)
    zarr.create_array(folder / "field.zarr", data=field, chunks=(32, 128, 128), compressors=zarr.codecs.ZstdCodec(level=1))
    with connect(nodes=1, root=folder / "root") as connection:
        ingest_source(connection, open_source(folder / "field.zarr"), "field")
        keep(folder / "root", calibration())
        yield connection


def receipt_of(connection: Connection, name: str, *steps: str, compressor: str = "none") -> Any:
    """The second of two runs, when kernels are compiled; its data is new."""
    for number in range(2):
        output = {"dataset": f"{name}{number}", "compressor": compressor}
        spec = from_dict({"source": "field", "steps": [{"map": step} for step in steps], "output": output})
        receipt = run_pipeline(connection, spec)
        assert receipt.status == "done"
    return receipt.to_dict()


def line_of(receipt: Any) -> str:
    text = StringIO()
    Console(width=200, file=text).print(receipt_view(receipt))
    return next(line.strip() for line in text.getvalue().splitlines() if "bound by" in line)


WRITERS = ("write", "pwrite", "writev", "pwritev")


def throttle(bytes_per_second: float | None) -> None:
    """On a worker: what is written takes as long as on a slow disk; None for as fast as it is."""

    def slowed(write: Any) -> Any:
        def slow(*arguments: Any) -> int:
            written = write(*arguments)
            time.sleep(written / bytes_per_second)
            return int(written)

        return slow

    for name in WRITERS:
        plain = getattr(os, f"plain_{name}", getattr(os, name))
        setattr(os, f"plain_{name}", plain)
        setattr(os, name, slowed(plain) if bytes_per_second else plain)


def test_a_slow_disk(one_node: Connection) -> None:
    receipt_of(one_node, "quick", "x + 1")
    one_node.client.run(throttle, 10e6)
    try:
        receipt = receipt_of(one_node, "disk", "x + 1")
    finally:
        one_node.client.run(throttle, None)
    found = receipt["bound_by"]
    assert found["stage"] == "disk write"
    assert found["share"] > 0.5
    assert 0 < found["of_limit"] < 0.05
    assert found["limit"] == 1.0
    assert "disk write" in line_of(receipt)


def test_a_slow_codec(one_node: Connection) -> None:
    receipt = receipt_of(one_node, "codec", "x + 1", compressor="gzip")
    found = receipt["bound_by"]
    assert found["stage"] == "codec encode"
    assert (found["limit"], found["unit"]) == (0.03, "GB/s a thread")
    assert found["of_limit"] == pytest.approx(found["rate"] / 0.03, rel=0.01)


def test_a_slow_step(one_node: Connection) -> None:
    expression = "x"
    for _ in range(20):
        expression = f"sin(cos(exp(tanh({expression}))))"
    receipt = receipt_of(one_node, "step", expression)
    assert receipt["bound_by"]["stage"] == "steps"
    assert receipt["bound_by"]["share"] > 0.4


def test_nothing_to_do_is_bound_by_nothing(one_node: Connection) -> None:
    spec = from_dict({"source": "field", "steps": [{"map": "x - 1"}], "output": "nothing"})
    run_pipeline(one_node, spec)
    receipt = run_pipeline(one_node, spec).to_dict()
    assert receipt["bound_by"] is None
    assert receipt_view(receipt)


def test_without_a_calibration_it_names_the_remedy(one_node: Connection) -> None:
    root = Path(next(iter(one_node.info()["workers"].values()))["root"])
    (root / "calibration.json").write_text("{")
    try:
        receipt = receipt_of(one_node, "unknown", "x + 1", compressor="gzip")
    finally:
        keep(root, calibration())
    assert receipt["bound_by"]["of_limit"] is None
    assert "gpuflow calibrate" in line_of(receipt)


def test_the_codec_of_inner_chunks_is_the_one_that_is_calibrated() -> None:
    dtype = np.dtype("float32")
    whole, cut = (ArrayMetadata.create((8, 64), (8, 64), dtype, inner_chunks=inner) for inner in (None, (1, 64)))
    assert counted._codec([whole]) == counted._codec([cut]) == counted._codec([whole, cut]) == "zstd"
    assert counted._codec([cut, ArrayMetadata.create((8, 64), (8, 64), dtype, compressor="gzip")]) is None
