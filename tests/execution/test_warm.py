"""The RAM tier in a run: what a worker has decoded is not read again, while its node's chunk is the one that it was made from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from distributed import Worker

import gpuflow
from gpuflow.cluster.connection import Connection, connect
from gpuflow.errors import ConfigError
from gpuflow.execution.run import run_pipeline
from gpuflow.execution.summary import run_statistics
from gpuflow.objectstore.ingest import remove_dataset
from gpuflow.pipelines.load import any_from_dict, from_dict
from tests.cluster.processes import until
from tests.helpers import read_embedded

CHUNKS, SHAPE = 24, (1, 128, 64)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root: Path = tmp_path_factory.mktemp("warm")
    return root


@pytest.fixture(scope="module")
def one_worker(root: Path) -> Iterator[Connection]:
    """What it has decoded is in the memory of whoever gets the task: nothing is read twice."""
    with connect(nodes=1, workers=1, root=root / "one") as connection:
        yield connection


@pytest.fixture(scope="module")
def two_workers(root: Path) -> Iterator[Connection]:
    """Of one node, each with a thread and memory of its own. Which of them does a chunk is the router's choice: it may take some from a
    worker that is late."""
    with connect(nodes=1, workers=2, root=root / "two") as connection:
        yield connection


@pytest.fixture(scope="module")
def values() -> Any:
    return np.random.default_rng(5).normal(280, 10, (CHUNKS, *SHAPE[1:])).round(1).astype("float32")


def make(connection: Connection, folder: Path, name: str, values: Any, inner: Any = None) -> str:
    path = folder / f"{name}.zarr"
    group = zarr.create_group(path, overwrite=True)
    whole = (1, *values.shape[1:])
    kind = {"chunks": whole} if inner is None else {"chunks": inner, "shards": whole}
    array = group.create_array("x", shape=values.shape, dtype=values.dtype, dimension_names=["t", "y", "x"], **kind)
    array[...] = values
    gpuflow.ingest(path, name, connection=connection)
    return name


def statistics(connection: Connection, name: str, where: float, cache: Any = "16MiB") -> dict[str, Any]:
    """Mean and so on of the values above `where`, which nobody has asked for before: a pass over everything."""
    asked = {"source": name, "statistics": {"where": f"x > {where}"}, "run": {"cache": cache}}
    receipt = run_statistics(connection, any_from_dict(asked))
    assert receipt.status == "done", receipt.outcome.tally.failures
    return receipt.to_dict()


def doubled(connection: Connection, name: str, cache: Any = "16MiB", output: Any = None) -> dict[str, Any]:
    output = output or f"{name}-doubled"
    receipt = run_pipeline(
        connection, from_dict({"source": name, "steps": [{"map": "x * 2"}], "output": output, "run": {"cache": cache}})
    )
    assert receipt.status == "done", receipt.outcome.tally.failures
    return receipt.to_dict()


def tiers(receipt: dict[str, Any]) -> tuple[int, int, int]:
    found = receipt["locality"]["tiers"]
    return tuple(found[tier]["chunks"] for tier in ("ram", "disk", "peer"))  # type: ignore[return-value]


def test_the_second_pass_reads_nothing(one_worker: Connection, root: Path, tmp_path: Path, values: Any) -> None:
    name = make(one_worker, tmp_path, "again", values)
    assert tiers(statistics(one_worker, name, 1)) == (0, CHUNKS, 0)
    second = statistics(one_worker, name, 2)
    assert tiers(second) == (CHUNKS, 0, 0)
    assert second["bytes"]["read"] == 0
    assert second["locality"]["tiers"]["ram"]["bytes"] > 0
    assert second["statistics"]["arrays"]["x"]["mean"] == pytest.approx(values.mean(dtype="float64"))
    third = doubled(one_worker, name)
    assert (tiers(third), third["bytes"]["read"]) == ((CHUNKS, 0, 0), 0)
    np.testing.assert_array_equal(read_embedded(root / "one", "again-doubled", "x"), values * 2)


def test_two_workers_take_each_chunk_once_and_begin_with_what_they_have(
    two_workers: Connection, root: Path, tmp_path: Path, values: Any
) -> None:
    """How much of the rest is left to the worker that has it: see tests/cluster/test_residence.py."""
    name = make(two_workers, tmp_path, "shared", values)
    assert tiers(statistics(two_workers, name, 1)) == (0, CHUNKS, 0)
    for again in (lambda: statistics(two_workers, name, 2), lambda: doubled(two_workers, name)):
        receipt = again()
        ram, disk, peer = tiers(receipt)
        assert (ram + disk, peer) == (CHUNKS, 0)
        assert ram > 0
        assert (receipt["bytes"]["read"] > 0) == (disk > 0)
    np.testing.assert_array_equal(read_embedded(root / "two", f"{name}-doubled", "x"), values * 2)


def test_without_a_cache_everything_is_read_again(two_workers: Connection, tmp_path: Path, values: Any) -> None:
    name = make(two_workers, tmp_path, "off", values)
    statistics(two_workers, name, 1)
    assert tiers(statistics(two_workers, name, 2, "off")) == (0, CHUNKS, 0)


def test_auto_takes_what_is_there_and_keeps_what_it_reads_again(
    one_worker: Connection, root: Path, tmp_path: Path, values: Any
) -> None:
    name = make(one_worker, tmp_path, "auto", values)
    doubled(one_worker, name, "auto")
    assert tiers(statistics(one_worker, name, 1, "auto")) == (0, CHUNKS, 0), "one pass over it keeps nothing"
    spec = {"source": name, "steps": [{"standardize": {}}], "output": "auto-normal"}
    receipt = run_pipeline(one_worker, from_dict(spec)).to_dict()
    assert tiers(receipt) == (CHUNKS, CHUNKS, 0), "statistics, then the map"
    assert tiers(statistics(one_worker, name, 2, "auto")) == (CHUNKS, 0, 0)
    normal = (values - values.mean(dtype="float64")) / values.std(dtype="float64")
    np.testing.assert_allclose(read_embedded(root / "one", "auto-normal", "x"), normal, atol=1e-4)


def test_another_generation_is_read(one_worker: Connection, root: Path, tmp_path: Path, values: Any) -> None:
    name = make(one_worker, tmp_path, "changed", values)
    assert tiers(statistics(one_worker, name, 1)) == (0, CHUNKS, 0)
    assert tiers(doubled(one_worker, name, output={"in_place": True})) == (CHUNKS, 0, 0)
    after = statistics(one_worker, name, 2)
    assert tiers(after) == (0, CHUNKS, 0)
    assert after["statistics"]["arrays"]["x"]["mean"] == pytest.approx(2 * values.mean(dtype="float64"))
    np.testing.assert_array_equal(read_embedded(root / "one", name, "x"), values * 2)
    assert tiers(statistics(one_worker, name, 3)) == (CHUNKS, 0, 0)


def test_a_dataset_that_was_made_again_under_its_name_is_read(two_workers: Connection, tmp_path: Path, values: Any) -> None:
    """Also where the stored bytes are the same ones, decoded otherwise."""
    name = make(two_workers, tmp_path, "reborn", np.zeros_like(values))
    statistics(two_workers, name, 1)
    remove_dataset(two_workers, name)
    assert not [chunk for chunks in held(two_workers, name) for chunk in chunks]
    make(two_workers, tmp_path, "reborn", values)
    again = statistics(two_workers, name, 1)
    assert tiers(again) == (0, CHUNKS, 0)
    assert again["statistics"]["arrays"]["x"]["mean"] == pytest.approx(values.mean(dtype="float64"))


def test_damage_on_the_disk_is_not_seen_by_who_finds_the_chunk_in_memory(
    one_worker: Connection, root: Path, tmp_path: Path, values: Any
) -> None:
    """The values are those that were committed: they were verified when they were decoded. Who reads the file finds the damage."""
    name = make(one_worker, tmp_path, "damaged", values)
    statistics(one_worker, name, 1)
    (file,) = (root / "one").glob(f"**/datasets/{name}/x/c/3/0/0")
    data = bytearray(file.read_bytes())
    data[9] ^= 1
    file.write_bytes(data)
    assert statistics(one_worker, name, 2)["statistics"]["arrays"]["x"]["mean"] == pytest.approx(values.mean(dtype="float64"))
    asked = {"source": name, "statistics": {"where": "x > 3"}, "run": {"cache": "off"}}
    (failure,) = run_statistics(one_worker, any_from_dict(asked)).to_dict()["failures"]
    assert failure["chunk"] == f"{name}/x/c/3/0/0"


def test_of_a_cache_for_half_of_it_half_is_taken(one_worker: Connection, tmp_path: Path, values: Any) -> None:
    name = make(one_worker, tmp_path, "half", np.repeat(values, 16, axis=1))
    found = [tiers(statistics(one_worker, name, where, "6MiB"))[0] for where in range(1, 6)]  # twelve chunks of 512 KiB
    assert found[0] == 0
    assert all(10 <= hits <= 12 for hits in found[1:]), found


def test_a_cache_smaller_than_a_chunk_keeps_nothing(two_workers: Connection, tmp_path: Path, values: Any) -> None:
    name = make(two_workers, tmp_path, "large", np.repeat(values[:4], 64, axis=1))
    assert [tiers(statistics(two_workers, name, where, "1MiB")) for where in (1, 2)] == [(0, 4, 0)] * 2


def test_runs_side_by_side_agree(two_workers: Connection, root: Path, tmp_path: Path, values: Any) -> None:
    from concurrent.futures import ThreadPoolExecutor

    name = make(two_workers, tmp_path, "both", values)
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(doubled, two_workers, name, "16MiB", "both-a")
        second = pool.submit(doubled, two_workers, name, "8MiB", "both-b")
        third = pool.submit(statistics, two_workers, name, 1, "auto")
        counts = [sum(tiers(each.result())) for each in (first, second, third)]
    assert counts == [CHUNKS] * 3
    for output in ("both-a", "both-b"):
        np.testing.assert_array_equal(read_embedded(root / "two", output, "x"), values * 2)


@pytest.mark.parametrize("inner", [None, (1, 32, 64)])
def test_parts_of_chunks_are_taken_too(two_workers: Connection, root: Path, tmp_path: Path, values: Any, inner: Any) -> None:
    """What is computed from several chunks; on the worker that has them, which need not be the one that gets the task."""
    name = make(two_workers, tmp_path, f"parts{len(inner or ())}", values, inner)
    statistics(two_workers, name, 1)
    steps = [{"crop": {"to": {"t": [2, 20], "y": [5, 120]}}}]
    spec = {"source": name, "steps": steps, "output": f"{name}-cropped", "run": {"cache": "16MiB"}}
    receipt = run_pipeline(two_workers, from_dict(spec)).to_dict()
    assert tiers(receipt)[0] > 0
    np.testing.assert_array_equal(read_embedded(root / "two", f"{name}-cropped", "x"), values[2:20, 5:120])


def test_a_plan_says_what_is_kept(two_workers: Connection, tmp_path: Path, values: Any) -> None:
    name = make(two_workers, tmp_path, "planned", values)

    def memory(cache: Any, steps: Any) -> dict[str, int]:
        spec = from_dict({"source": name, "steps": steps, "output": "planned-out", "run": {"cache": cache}})
        found = gpuflow.plan(spec, connection=two_workers).details["memory"]
        return dict(found)

    clip, standardize = [{"clip": [0, 1]}], [{"standardize": {}}]
    without = memory("off", clip)
    assert "cache_nbytes" not in without
    assert memory("auto", clip) == without
    kept = memory("64MiB", clip)
    assert (kept["cache_nbytes"], kept["need_nbytes"]) == (2**26, without["need_nbytes"] + 2**26)
    assert memory("auto", standardize)["cache_nbytes"] == values.nbytes


def test_more_than_a_worker_has_is_refused(two_workers: Connection, tmp_path: Path, values: Any) -> None:
    name = make(two_workers, tmp_path, "refused", values)
    with pytest.raises(ConfigError, match=r"run.cache: .* of decoded chunks do not fit: the plan leaves"):
        doubled(two_workers, name, "900GiB")


def test_the_scheduler_knows_what_is_where(two_workers: Connection, tmp_path: Path, values: Any) -> None:
    name = make(two_workers, tmp_path, "known", values)
    statistics(two_workers, name, 1)
    there = held(two_workers, name)
    assert sorted(chunk for chunks in there for chunk in chunks) == list(range(CHUNKS))
    assert len(there) == 2, "both have some"
    with gpuflow.open(name, connection=two_workers) as dataset:
        (node,) = two_workers.nodes()
        assert dataset.tiers() == {"ram": {node: CHUNKS}, "disk": {node: CHUNKS}}
    two_workers.client.run(_forget, name)
    until(lambda: not any(held(two_workers, name)), "what both tell of it")  # each by itself: a sync asks one worker of a node


def held(connection: Connection, name: str) -> list[list[int]]:
    return [chunks for _, chunks in connection.resident(name, "x").values()]


def _forget(dataset: str, dask_worker: Worker) -> None:
    dask_worker.gpuflow.ram.forget(dataset)
