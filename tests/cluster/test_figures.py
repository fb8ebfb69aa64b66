"""What is counted for who looks: bounded, true, and of the second that it happened in."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from gpuflow.cluster.dashboard_text import headline, runs_table, watches_table
from gpuflow.cluster.figures import SECONDS, WATCH_SECONDS, Figures, Held, WatchFigures, census
from gpuflow.cluster.inventory import Inventory
from gpuflow.cluster.observed import NodeFigures, Observed

from .in_process import group


def test_tasks_are_counted_by_run_and_by_second() -> None:
    figures = Figures()
    for chunk in range(4):
        figures.entered(group(chunk), 100.0)
    figures.finished(group(0), 101.2, local=True)
    figures.finished(group(1), 101.9, local=True)
    figures.received(1, 700, 102.0)
    figures.finished(group(2), 103.5, local=False)
    run = figures.runs["r"]
    assert (run.array, run.chunks, run.done, run.local, run.ended) == (("d", "x"), 4, 3, 2, None)
    assert run.seconds(110.0) == 10.0
    seconds, local, shipped = figures.history(105.0)
    assert (seconds[0], seconds[-1], len(seconds)) == (-SECONDS, -1, SECONDS)
    assert {seconds[i]: value for i, value in enumerate(local) if value} == {-4: 2000.0}
    assert {seconds[i]: value for i, value in enumerate(shipped) if value} == {-3: 700.0}
    assert not any(figures.history(105.0 + 2 * SECONDS)[1])
    figures.ended("r", 104.0)
    assert run.seconds(110.0) == 4.0
    figures.entered(group(9), 120.0)  # its next pass
    assert run.ended is None
    assert dict(figures.local) == {"chunks": 2, "nbytes": 2000}
    assert dict(figures.shipped) == {"chunks": 1, "nbytes": 700}


def test_what_was_computed_from_several_chunks_counts_no_bytes_as_read_where_they_lie() -> None:
    figures = Figures()
    figures.finished(replace(group(0), homes=("n0",)), 1.0, local=True)
    assert figures.local["nbytes"] == 0


def test_figures_stay_small() -> None:
    figures = Figures()
    for number in range(100):
        figures.entered(group(0, run=f"r{number}"), float(number))
        if number:
            figures.ended(f"r{number}", number + 0.5)
    for second in range(5 * SECONDS):
        figures.received(1, 1, float(second))
    assert len(figures.runs) == 20
    assert "r0" in figures.runs, "which still has tasks"
    assert "r99" in figures.runs
    assert len(figures._seconds) == SECONDS


def test_a_census_tells_whose_chunks_are_nowhere_else() -> None:
    both, one = frozenset({"a", "b"}), frozenset({"a"})
    held, away = census([{both: 5, one: 2, frozenset({"c"}): 3, frozenset(): 1}], {"a", "b"})
    assert held == {"a": Held(2, 5), "b": Held(0, 5)}
    assert away == 4
    held, away = census([{both: 5}], {"b"})
    assert (held, away) == ({"b": Held(5, 0)}, 0)


def test_an_inventory_counts_and_samples() -> None:
    inventory, array = Inventory(), ("d", "x")
    assert (inventory.counts(), inventory.sampled(array, 10)) == ({}, [])
    inventory.report("a", array, np.arange(1000, dtype=np.uint32), np.ones(1000, np.uint32))
    before = inventory.changes
    inventory.report("b", array, np.arange(10, dtype=np.uint32), np.ones(10, np.uint32))
    assert inventory.changes > before
    assert inventory.counts() == {array: {frozenset({"a"}): 990, frozenset({"a", "b"}): 10}}
    sample = inventory.sampled(array, 64)
    assert [chunk for chunk, _ in sample] == list(range(0, 1000, 16))
    assert sample[0][1] == {"a", "b"}
    assert [chunk for chunk, _ in inventory.sampled(array, 1000)] == list(range(1000))
    before = inventory.changes
    inventory.withdraw("a", array, range(20, 30))
    assert inventory.changes > before
    assert inventory.counts()[array][frozenset()] == 10
    for change in (lambda: inventory.forget("a"), lambda: inventory.drop("d")):
        before = inventory.changes
        change()
        assert inventory.changes > before


def test_names_are_text_in_the_page() -> None:
    figures, bad = Figures(), "<script>alert(1)</script>"
    figures.entered(replace(group(0), dataset=bad, run=bad), 0.0)
    assert "<script" not in runs_table(figures.runs.values(), 1.0)
    assert "no run" in runs_table([], 1.0)
    text = headline(Observed((NodeFigures("n", 1, 2, Held(), 0, 0),), {(bad, bad): 7}, 3), "late", bad, "1")
    assert "<script" not in text
    assert "1 nodes, 1 workers, 2 threads" not in text
    assert "1 node, 1 worker, 2 threads" in text
    assert "3 chunks are on no live node" in text
    assert "the scheduler plugin is not working" in text


def test_watched_pipelines_are_shown_as_they_told_last() -> None:
    figures = Figures()
    assert watches_table(figures.watches.values(), 0.0) == ""
    for number in range(300):
        figures.watched(WatchFigures(f"d{number}", "raw", float(number)))
    figures.watched(WatchFigures("d299", "raw", 400.0, runs=3, chunks=7000, left=2, given_up=1, problem="<script>"))
    figures.watched(WatchFigures("d250", "raw", 401.0))
    assert len(figures.watches) == 100
    assert list(figures.watches)[-2:] == ["d299", "d250"]
    assert figures.watches["d299"].is_watched(400.0 + WATCH_SECONDS)
    text = watches_table([figures.watches["d299"]], 401.0)
    for part in ("7,000", ">d299<", ">raw<", "&lt;script&gt;"):
        assert part in text
    assert "no watcher for 1 min" in watches_table([figures.watches["d299"]], 460.0)
