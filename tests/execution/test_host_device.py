"""The passage of chunks over a device, with real workers and threads: the device is a part of the host's memory (`HostDevice`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from distributed import Worker

import gpuflow
from gpuflow.cluster.connection import Connection, connect
from gpuflow.execution.run import run_pipeline
from gpuflow.execution.summary import run_statistics
from gpuflow.pipelines.load import any_from_dict, from_dict
from gpuflow.storage.calibration import CodecRates, keep
from tests.backends.host_device import HostDevice
from tests.helpers import read_embedded
from tests.storage.calibrations import calibration

SHAPE = (30, 70, 64)
STORED: dict[str, Any] = {"shards": [4, 64, 64], "chunks": [2, 32, 64]}
CHUNK_NBYTES = 4 * 64 * 64 * 4
SLOW = CodecRates(1e-3, 1e-3, 2.0)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root: Path = tmp_path_factory.mktemp("device")
    return root


@pytest.fixture(scope="module")
def cluster(root: Path) -> Iterator[Connection]:
    """One node with one worker of all threads."""
    with connect(nodes=1, workers=1, root=root) as connection:
        yield connection


@pytest.fixture(scope="module")
def values(cluster: Connection, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Of two datasets: shards as gpuflow writes them, which the device decodes, and plain chunks, which the CPU does."""
    values = np.random.default_rng(5).normal(280, 10, SHAPE).round(1).astype("float32")
    path = tmp_path_factory.mktemp("source") / "plain"
    zarr.create_array(path, shape=SHAPE, dtype="float32", chunks=(4, 64, 64))[...] = values
    gpuflow.ingest(path, "plain", connection=cluster)
    assert run(cluster, "plain", [{"map": "x * 1"}], {"dataset": "zstd", **STORED})["status"] == "done"
    rates = {"zstd": SLOW, "lz4": SLOW, "gzip": SLOW}
    fast = {"zstd": 5.0, "lz4": 5.0}
    direct = {"copied": 1.0, "direct": 2.0}
    keep(root, calibration(codecs=rates, device_decode_gb_s=fast, device_encode_gb_s=fast, device_read_gb_s=direct))
    return values


def give(nbytes: int, kept_nbytes: int, broken: tuple[str, ...], dask_worker: Worker) -> None:
    dask_worker.gpuflow.use(HostDevice(nbytes, broken), kept_nbytes)


def counts(dask_worker: Worker) -> dict[str, int]:
    return dict(dask_worker.gpuflow.accelerator.counts)


def most(dask_worker: Worker) -> int:
    return int(dask_worker.gpuflow.flight.most)


def equip(connection: Connection, *, nbytes: int = 2**40, kept_nbytes: int = 0, broken: tuple[str, ...] = ()) -> None:
    connection.client.run(give, nbytes, kept_nbytes, broken)


def counted(connection: Connection) -> Counter[str]:
    (found,) = connection.client.run(counts).values()
    return Counter(found)


def run(connection: Connection, source: str, steps: list[Any], output: Any, **options: Any) -> dict[str, Any]:
    asked = {"source": source, "steps": steps, "output": output, "run": options}
    return run_pipeline(connection, from_dict(asked), stack=True).to_dict()


SCALED = [{"standardize": {"mean": 280.0, "std": 10.0}}, {"clip": [-1, 1]}]


def scaled(values: Any) -> Any:
    return np.clip((values - np.float32(280)) / np.float32(10), -1, 1)


@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3")
@pytest.mark.parametrize(("source", "codec"), [("zstd", "zstd"), ("zstd", "lz4"), ("plain", "zstd"), ("zstd", "none")])
def test_the_same_as_on_the_cpu(cluster: Connection, root: Path, values: Any, source: str, codec: str) -> None:
    equip(cluster)
    name = f"{source}-{codec}"
    receipt = run(cluster, source, SCALED, {"dataset": name, "compressor": codec, **STORED})
    assert receipt["status"] == "done", receipt["failures"]
    np.testing.assert_array_equal(read_embedded(root, name, "data"), scaled(values))
    chunks, done = receipt["chunks"]["total"], counted(cluster)
    assert done["decode"] == (chunks if source == "zstd" else 0)
    assert done["read_file"] == (chunks if source == "zstd" else 0)
    assert done["encode"] == (chunks if codec != "none" else 0)
    assert done["upload"] == (chunks if source == "plain" else 0)
    assert done["peak"] > 1


def test_a_device_that_is_not_faster_is_left_alone(
    cluster: Connection, root: Path, values: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (root / "calibration.json").read_bytes()
    try:
        keep(root, calibration(device_decode_gb_s={"zstd": 0.1}, device_encode_gb_s={"zstd": 0.1}))
        equip(cluster)
        assert run(cluster, "zstd", SCALED, "slow-device")["status"] == "done"
    finally:
        (root / "calibration.json").write_bytes(before)
    np.testing.assert_array_equal(read_embedded(root, "slow-device", "data"), scaled(values))
    done = counted(cluster)
    assert not done["decode"] + done["encode"] + done["read_file"]
    assert done["upload"]


def test_codecs_that_break_are_the_cpus_after_all(cluster: Connection, root: Path, values: Any) -> None:
    equip(cluster, broken=("decode", "encode", "read_file"))
    assert run(cluster, "zstd", SCALED, "broken-device")["status"] == "done"
    np.testing.assert_array_equal(read_embedded(root, "broken-device", "data"), scaled(values))


def test_a_full_device_has_fewer_chunks_at_once(cluster: Connection, root: Path, values: Any) -> None:
    equip(cluster, nbytes=3 * CHUNK_NBYTES // 2)
    receipt = run(cluster, "zstd", SCALED, "full-device")
    assert receipt["status"] == "done", receipt["failures"]
    np.testing.assert_array_equal(read_embedded(root, "full-device", "data"), scaled(values))
    (now,) = cluster.client.run(most).values()
    assert now == 1
    assert counted(cluster)["released"] >= 1


def test_a_chunk_larger_than_the_device(cluster: Connection, values: Any) -> None:
    equip(cluster, nbytes=CHUNK_NBYTES // 2)
    receipt = run(cluster, "zstd", SCALED, "tiny-device")
    assert receipt["status"] == "failed"
    assert receipt["chunks"]["done"] == 0
    assert "the device is full" in receipt["failures"][0]["error"]


def test_in_place_and_statistics(cluster: Connection, root: Path, values: Any) -> None:
    equip(cluster)
    run(cluster, "zstd", [{"map": "x + 0"}], "changed")
    assert run(cluster, "changed", [{"map": "x - 280"}], {"in_place": True})["status"] == "done"
    np.testing.assert_array_equal(read_embedded(root, "changed", "data"), values - np.float32(280))
    asked = {"source": "changed", "statistics": {}}
    found = run_statistics(cluster, any_from_dict(asked)).to_dict()
    assert found["status"] == "done"
    assert counted(cluster)["decode"] > 0


def test_a_damaged_file_is_found_by_who_reads_it_directly(cluster: Connection, root: Path, values: Any) -> None:
    equip(cluster)
    assert run(cluster, "zstd", [{"map": "x + 0"}], "damaged")["status"] == "done"
    file = root / "datasets/damaged/data/c.1.0.0"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    receipt = run(cluster, "damaged", SCALED, "from-damaged")
    (failure,) = receipt["failures"]
    assert failure["chunk"] == "damaged/data/c.1.0.0"
    assert receipt["chunks"]["done"] == receipt["chunks"]["total"] - 1


def test_the_second_pass_comes_from_the_device(cluster: Connection, values: Any) -> None:
    equip(cluster, kept_nbytes=2**26)
    tiers = []
    for where in (200, 201):
        asked = {"source": "zstd", "statistics": {"where": f"x > {where}"}, "run": {"cache": "64MiB"}}
        receipt = run_statistics(cluster, any_from_dict(asked))
        assert receipt.status == "done", receipt.outcome.tally.failures
        tiers.append(receipt.to_dict()["locality"]["tiers"])
    assert tiers[0]["disk"]["chunks"] > 0
    assert tiers[1]["disk"] == {"chunks": 0, "bytes": 0}
    chunks = counted(cluster)["decode"]
    assert chunks == tiers[0]["disk"]["chunks"]
