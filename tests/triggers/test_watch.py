"""Pipelines that follow their sources, on a real cluster."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import zarr

import gpuflow
from gpuflow.cluster.connection import Connection
from gpuflow.datasets import catalog
from gpuflow.errors import ConfigError, NameTaken
from gpuflow.execution.tally import Failure, Tally
from gpuflow.storage import leases, notebook
from gpuflow.storage.node import NodeStore
from gpuflow.triggers.state import Claim, WatchState, load_state, save_state, watcher_of
from gpuflow.triggers.watcher import Watcher
from gpuflow.triggers.watching import Watching, load_all, statuses
from tests.execution.test_run import roots_of
from tests.helpers import read_back

COUNT = 12


def _made(connection: Connection, name: str) -> Any:
    """A dataset of COUNT chunks of ones, to be written to."""
    dataset = gpuflow.open(name, connection=connection, mode="a")
    array = zarr.create_group(dataset.store).create_array("x", shape=(COUNT, 8), chunks=(1, 8), dtype="float32")
    array[...] = 1
    return array


def _pipeline(folder: Path, source: str, target: str | None, step: Any = "x * 2", **on: Any) -> Path:
    path = folder / f"{source}-{target}.yaml"
    output = target or "{in_place: true}"
    on = {"dataset": source, "batch_seconds": 0, **on}
    path.write_text(f"source: {source}\nsteps:\n  - map: {step}\noutput: {output}\non: {on}\n".replace("'", ""))
    return path


def _watching(connection: Connection, *files: Path) -> tuple[Watching, list[str]]:
    said: list[str] = []
    return Watching(load_all(files), lambda: nullcontext(connection), said.append), said


@contextmanager
def _running(watching: Watching, refit: bool = False) -> Iterator[None]:
    thread = threading.Thread(target=watching.forever, args=(refit,))
    thread.start()
    try:
        yield
    finally:
        watching.stop.set()
        thread.join(30)
        assert not thread.is_alive()


def _wait(holds: Callable[[], object], seconds: float = 30.0) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "it did not come about"
        time.sleep(0.05)


def _values(connection: Connection, name: str) -> list[float]:
    """Of each chunk; none while it is not complete."""
    record = catalog.records(connection).get(name)
    if record is None or record.state != "ready":
        return []
    return read_back(roots_of(connection), name, "x")[:, 0].tolist()  # type: ignore[no-any-return]


def test_a_chain_follows_its_source_and_does_nothing_else(three_nodes: Connection, tmp_path: Path) -> None:
    second, first = _pipeline(tmp_path, "chain-b", "chain-c", "x + 1"), _pipeline(tmp_path, "chain-a", "chain-b")
    watching, said = _watching(three_nodes, second, first)
    with _running(watching):
        _wait(lambda: any("complete dataset 'chain-a'" in text for text in said))
        array = _made(three_nodes, "chain-a")
        _wait(lambda: _values(three_nodes, "chain-c") == [3.0] * COUNT)
        made = {name: load_state(three_nodes, name) for name in ("chain-b", "chain-c")}
        array[4], array[7] = 5, 6
        _wait(lambda: _values(three_nodes, "chain-c") == [11.0 if n == 4 else 13.0 if n == 7 else 3.0 for n in range(COUNT)])
        assert {one.state.name for one in statuses(three_nodes) if one.watcher} >= {"chain-b", "chain-c"}
    for name, before in made.items():
        after = load_state(three_nodes, name)
        assert before is not None
        assert after is not None
        assert after.left == {}
        assert after.problem == ""
        assert watcher_of(three_nodes, name) is None
    array[1] = 9  # while nobody watches
    watching, _ = _watching(three_nodes, first, second)
    assert watching.once()
    assert _values(three_nodes, "chain-c")[1] == 19.0
    before = load_state(three_nodes, "chain-c")
    assert watching.once()
    after = load_state(three_nodes, "chain-c")
    assert before is not None
    assert after is not None
    assert after.counts["chunks"] == before.counts["chunks"], "nothing is done twice"


def test_from_python(three_nodes: Connection, tmp_path: Path) -> None:
    array, said, stop = _made(three_nodes, "py-a"), list[str](), threading.Event()
    first = gpuflow.Pipeline("py-a").map("x * 2").to("py-b")
    second = _pipeline(tmp_path, "py-b", "py-c", "x + 1")
    called = list[int]()

    @gpuflow.on("py-c", name="from-python")
    def count(event: Any, chunk: Any) -> None:
        if chunk is not None and chunk.read().max() == 9:
            (tmp_path / "called").touch()

    assert gpuflow.watch(second, first, once=True, say=said.append, connection=three_nodes)
    assert _values(three_nodes, "py-c") == [3.0] * COUNT
    options: dict[str, Any] = {"functions": [count], "stop": stop, "say": said.append, "connection": three_nodes}
    thread = threading.Thread(target=lambda: called.append(gpuflow.watch(first, second, **options)))
    thread.start()
    array[5] = 4
    _wait(lambda: _values(three_nodes, "py-c")[5] == 9.0)
    _wait((tmp_path / "called").exists)
    stop.set()
    thread.join(30)
    assert called == [True]
    assert any("from-python: called with what happens to py-c" in text for text in said)
    for wrong in (lambda: gpuflow.watch(), lambda: gpuflow.watch(first, first), lambda: gpuflow.watch(functions=[print])):
        with pytest.raises(ConfigError, match=r"nothing to watch|both write|before it"):
            wrong()


def test_in_place_its_own_commits_do_not_trigger_it(three_nodes: Connection, tmp_path: Path) -> None:
    array = _made(three_nodes, "own")
    watching, said = _watching(three_nodes, _pipeline(tmp_path, "own", None, "x + 1"))
    with _running(watching):
        _wait(lambda: _values(three_nodes, "own") == [2.0] * COUNT)
        _wait(lambda: not getattr(load_state(three_nodes, "own"), "whole", True))
        array[3] = 7
        _wait(lambda: _values(three_nodes, "own")[3] == 8.0)
        state = load_state(three_nodes, "own")
        assert state is not None
        time.sleep(0.2)  # for what must not come
        assert _values(three_nodes, "own") == [8.0 if n == 3 else 2.0 for n in range(COUNT)]
    state = load_state(three_nodes, "own")
    assert state is not None
    assert state.counts["chunks"] == COUNT + 1
    assert state.counts["runs"] <= 3, said


def test_a_chunk_that_always_fails_is_given_up_and_tried_when_it_changes(three_nodes: Connection, tmp_path: Path) -> None:
    array = _made(three_nodes, "poison")
    (tmp_path / "steps.py").write_text(
        "def check(xp, block):\n    if (block == 13).any():\n        raise ValueError('13 it is')\n    return block + 0\n"
    )
    path = tmp_path / "poison.yaml"
    on = "on: {dataset: poison, batch_seconds: 0, tries: 2}"
    path.write_text(f"source: poison\nsteps:\n  - apply: steps:check\noutput: poison-out\n{on}\n")
    watching, said = _watching(three_nodes, path)
    with _running(watching):
        _wait(lambda: _values(three_nodes, "poison-out") == [1.0] * COUNT)
        array[5], array[6] = 13, 14
        _wait(lambda: any("is given up after 2 tries" in text for text in said))
        state = load_state(three_nodes, "poison-out")
        _wait(lambda: getattr(load_state(three_nodes, "poison-out"), "given_up", None))
        state = load_state(three_nodes, "poison-out")
        assert state is not None
        ((name, why),) = state.given_up.items()
        assert name == "poison/x/c/5/0"
        assert "13 it is" in why["reason"]
        assert _values(three_nodes, "poison-out")[6] == 14.0, "the others go on"
        array[5] = 15
        _wait(lambda: _values(three_nodes, "poison-out")[5] == 15.0)
        _wait(lambda: not getattr(load_state(three_nodes, "poison-out"), "given_up", 1))


def test_an_edited_pipeline_says_what_it_means_and_waits_for_refit(three_nodes: Connection, tmp_path: Path) -> None:
    _made(three_nodes, "edit")[...] = 2
    path = _pipeline(tmp_path, "edit", "edit-out")
    watching, said = _watching(three_nodes, path)
    with _running(watching):
        _wait(lambda: _values(three_nodes, "edit-out") == [4.0] * COUNT)
        _pipeline(tmp_path, "edit", "edit-out", tries=7)
        _pipeline(tmp_path, "edit", "edit-out", "x + 1")
        _wait(lambda: watching.failed)
    assert f"was edited since it was last watched: all {COUNT} chunks of 'edit-out' would be made again" in said[-1]
    assert "--refit" in said[-1]
    watching, _ = _watching(three_nodes, path)
    with pytest.raises(ConfigError, match="was edited"):
        watching.once()
    assert _values(three_nodes, "edit-out") == [4.0] * COUNT
    assert watching.once(refit=True)
    assert _values(three_nodes, "edit-out") == [3.0] * COUNT


def test_only_one_watches(three_nodes: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Claim(three_nodes, "single"), Claim(three_nodes, "single")
    assert first.take() is None
    assert first.is_held()
    assert "on" in (second.take() or "")
    _made(three_nodes, "single-in")
    watching, _ = _watching(three_nodes, _pipeline(tmp_path, "single-in", "single"))
    with pytest.raises(NameTaken, match=r"is watched by process \d+ on"):
        watching.once()
    first.give_back()
    assert second.take() is None
    second.give_back()
    dead = Claim(three_nodes, "single")
    dead._own = dead._own.replace(f"|{dead._own.split('|')[1]}|", "|4194399|")
    assert dead._ask() == set()
    assert Claim(three_nodes, "single").take() is None, "that process has ended"
    monkeypatch.setattr(leases, "LEASE_SECONDS", 0.0)
    assert not first.is_held()


def test_a_state_is_on_every_node_and_the_newest_counts(three_nodes: Connection, tmp_path: Path) -> None:
    state = save_state(three_nodes, WatchState("kept", "a", "i", cursor="c", left={"x": [1]}))
    assert load_state(three_nodes, "kept") == state
    newer = save_state(three_nodes, state.counted(runs=2))
    assert notebook.keep(NodeStore(tmp_path / "n"), "watch@kept", state.to_dict()) == 1
    save_state(three_nodes, WatchState("kept", "a", "i"))  # an older version comes late
    assert load_state(three_nodes, "kept") == newer
    (tmp_path / "n" / "notes" / "watch@kept.json").write_text("{")
    assert notebook.kept(NodeStore(tmp_path / "n"), "watch@kept") is None


def test_killed_and_started_again_it_catches_up(three_nodes: Connection, tmp_path: Path) -> None:
    """The command itself, in a process of its own, killed in the middle of a stream of changes."""
    array = _made(three_nodes, "kill")
    files = [_pipeline(tmp_path, "kill", "kill-b"), _pipeline(tmp_path, "kill-b", "kill-c", "x + 1")]
    address = three_nodes.client.scheduler_info(n_workers=0)["address"]
    command = [sys.executable, "-m", "gpuflow", "watch", "--scheduler", address, *map(str, files)]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stderr=log)
        try:
            _wait(lambda: _values(three_nodes, "kill-c") == [3.0] * COUNT)
            for value in range(2, 8):
                array[value] = value
            process.send_signal(signal.SIGKILL)
            process.wait()
            for value in range(8, COUNT):
                array[value] = value
            process = subprocess.Popen(command, stderr=log)
            _wait(lambda: _values(three_nodes, "kill-c") == [3.0, 3.0, *(2.0 * n + 1 for n in range(2, COUNT))])
            process.terminate()
            assert process.wait(30) == 0, (tmp_path / "log").read_text()
        finally:
            process.kill()
            process.wait()
    state = load_state(three_nodes, "kill-b")
    assert state is not None
    assert state.left == {}


def test_the_config(three_nodes: Connection) -> None:
    """configs/watch.yaml: once over all, then on what changed."""
    config = Path(__file__).parents[2] / "configs" / "watch.yaml"
    array = _made(three_nodes, "raw")
    watching, said = _watching(three_nodes, config)
    assert watching.once(), said
    array[2] = 255
    assert watching.once(), said
    assert _values(three_nodes, "raw-train") == [1.0 if n == 2 else np.float16(1 / 255) for n in range(COUNT)]
    state = load_state(three_nodes, "raw-train")
    assert state is not None
    assert state.counts["chunks"] == COUNT + 1


def test_only_what_a_step_raised_is_given_up(three_nodes: Connection, tmp_path: Path) -> None:
    """A node that is away for long is waited for."""
    spec = load_all([_pipeline(tmp_path, "away", "away-out", tries=2)])[0][1]
    watcher = Watcher(three_nodes, spec, None, lambda text: None, threading.Semaphore(), lambda: True)
    raised, lost = Failure("a/x/c/0", 0, "n", "ValueError", "Traceback"), Failure("a/x/c/1", 1, "", "no live replica")
    outcome = SimpleNamespace(tally=Tally(failures=[raised, lost]), interrupted=False)
    receipt = SimpleNamespace(run_id="r", outcome=outcome, planned_skips=0, wall_seconds=0.1)
    assert [watcher._count(receipt, None) for _ in range(5)] == [True] * 5  # type: ignore[arg-type]
    assert set(watcher.state.given_up) == {"a/x/c/0"}
    outcome.tally = Tally(done=1)
    assert not watcher._count(receipt, {"a/x/c/1"})  # type: ignore[arg-type]
    assert set(watcher.state.given_up) == {"a/x/c/0"}, "that one was not looked at"
    assert not watcher._count(receipt, {"a/x/c/0"})  # type: ignore[arg-type]
    assert not watcher.state.given_up
