"""How long a run will take: decided from round figures, without a cluster."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gpuflow.execution.bound import OVERHEAD
from gpuflow.execution.estimate import PASS_SECONDS, RUN_SECONDS, Estimate, Load, Place, estimate
from tests.storage.calibrations import calibration

GB = 1e9


def place(name: str, threads: int = 2, cores: int = 8, memory: int = 2**36, machine: str = "", **figures: Any) -> Place:
    return Place(threads, cores, memory, machine or name, f"disk of {machine or name}", calibration(threads=threads, **figures))


PLACES = {"n0": place("n0"), "n1": place("n1")}


def load(gigabytes: float, **changes: Any) -> Load:
    """float32 to float32, raw."""
    nbytes = gigabytes * GB
    figures = {"chunks": 100.0, "files": 100.0, "read_nbytes": nbytes, "written_nbytes": nbytes, "copied_nbytes": nbytes}
    return Load(**{**figures, **changes})


def of(loads: dict[str, Load], places: dict[str, Place] = PLACES, **how: Any) -> Estimate:
    return estimate([("map", loads)], places, **how)


def seconds(found: Estimate) -> float:
    assert found.seconds is not None
    return found.seconds - RUN_SECONDS


def cached(found: Estimate) -> float:
    assert found.cached_seconds is not None
    return found.cached_seconds - RUN_SECONDS


def test_the_disk_bounds_what_is_raw() -> None:
    found = of({"n0": load(1)})
    assert found.stage == "disk write"
    assert found.node == "n0"
    assert 1 / 3 + 1 <= seconds(found) < 1.5, "read at 3 GB/s and written at 1; threads have less to do, beside it"
    assert 1 <= cached(found) < 1.2
    assert of({"n0": load(1)}, durable=False).stage == "disk read", "what is written is not waited for"
    little = {"n0": replace(PLACES["n0"], memory_nbytes=2**30)}
    assert of({"n0": load(1)}, little, durable=False).stage == "disk write", "more than the kernel keeps for later"
    assert of({"n0": load(1)}, little).cached_seconds is None, "nor may the page cache have it all"


def test_codecs_bound_what_they_are_slower_for() -> None:
    found = of({"n0": load(1, read_nbytes=GB / 3, written_nbytes=GB / 3, decoded={"zstd": GB}, encoded={"zstd": GB})})
    assert found.stage == "codec encode"
    assert 1 / 1.6 / 2 + 1 / 0.8 / 2 <= seconds(found) < 1.5, "two threads decode at 1.6 GB/s and encode at 0.8"
    assert not found.not_counted
    other = of({"n0": load(1, decoded={"lz4": GB})})
    assert other.not_counted == ("codec lz4, which is not calibrated",)
    assert other.to_dict()["at_least"]


def test_twice_the_bytes_take_twice_as_long() -> None:
    for figures in ({}, {"decoded": {"zstd": 5 * GB}}, {"summed_nbytes": 90 * GB}, {"encoded": {"gzip": GB}}):
        once = load(1, **figures)
        assert seconds(of({"n0": once + once})) == pytest.approx(2 * seconds(of({"n0": once})), rel=0.05), figures
        assert seconds(of({"n0": once, "n1": once})) == seconds(of({"n0": once})), "another machine's is beside it"
    assert seconds(of({"n0": load(3), "n1": load(1)})) == seconds(of({"n0": load(3)})), "the slowest node decides"


def test_nodes_of_one_machine_share_its_disk_and_cores() -> None:
    shared = {name: place(name, machine="m") for name in ("n0", "n1")}
    both = {"n0": load(1), "n1": load(1)}
    assert seconds(of(both, shared)) == pytest.approx(2 * seconds(of({"n0": load(1)})), rel=0.15)
    few = {name: place(name, machine="m", cores=2) for name in ("n0", "n1")}
    busy = {name: load(0, encoded={"zstd": GB}) for name in both}
    assert seconds(of(busy, few)) == pytest.approx(2 * seconds(of(busy, shared)), rel=0.05), "four threads on two cores"
    one = {"n0": load(0, encoded={"zstd": GB}, chunks=1.0)}
    assert seconds(of(one)) > 1.2, "one chunk is done by one thread"


def test_small_chunks_cost_their_commits() -> None:
    many = of({"n0": load(0.01, chunks=10_000.0, files=10_000.0)})
    assert seconds(many) >= 10_000 * 2.5e-4 / 2, "an fsync and a file each, by two threads"
    assert many.stage == "disk write"
    assert seconds(many) > 2 * seconds(of({"n0": load(0.01, chunks=10_000.0, files=10_000.0)}, durable=False))


def test_statistics_come_first() -> None:
    first, then = {"n0": load(1, files=0.0, written_nbytes=0.0, summed_nbytes=GB)}, {"n0": load(1)}
    found = estimate([("moments of t", first), ("map", then)], PLACES)
    assert [one.title for one in found.passes] == ["moments of t", "map"]
    assert found.seconds == pytest.approx(sum(one.seconds for one in found.passes) + RUN_SECONDS + PASS_SECONDS)
    assert seconds(found) > seconds(of(then)) + 0.3
    assert found.stage == "disk write"


def test_the_network_where_its_rate_is_known() -> None:
    shipping = {"n0": load(0.1, shipped_nbytes=4 * GB)}
    assert of(shipping, network_gb_s=0.5).stage == "network"
    assert seconds(of(shipping, network_gb_s=0.5)) >= 4
    assert seconds(of(shipping)) < 0.5, "that it is not counted is said by who knows of it"


def test_a_node_that_serves_others_counts_too() -> None:
    serving = {"n0": load(0.1), "n1": Load(read_nbytes=30 * GB)}
    assert of(serving).node == "n1"
    assert of(serving).stage == "disk read"


def test_unknown_without_figures() -> None:
    work = {"n0": load(1), "n1": load(1)}
    without = {**PLACES, "n1": replace(PLACES["n1"], calibration=None)}
    assert of(work, without).to_dict() == {
        "seconds": None,
        "unknown": "run `gpuflow calibrate` (1 of 2 nodes are not calibrated)",
    }
    damaged = {**PLACES, "n1": replace(PLACES["n1"], calibration="it is no JSON")}
    assert of(work, damaged).unknown == "run `gpuflow calibrate` (n1: its calibration.json is damaged)"
    assert of({"n0": load(1)}, without).seconds is not None, "a node that has nothing to do need not be"


def test_nothing_to_do() -> None:
    found = of({})
    assert (found.seconds, found.stage, found.unknown) == (RUN_SECONDS, OVERHEAD, "")
