"""What a crash may leave of commit paths recorded call by call: the small part of `ci/faults`, and that it fails when the protocol does."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ci.proofs.commit_paths import commit_paths
from ci.proofs.crash_states import CrashState, killed, power_lost
from ci.proofs.crashes import prove
from ci.proofs.recording import Entries, Recording, Sync, WalSync, WalWrite, Write
from gpuflow.storage import node
from gpuflow.storage.manifest import Manifest

DURABLE = [name for name, path in commit_paths().items() if path.durable]


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "gpuflow")


@pytest.mark.parametrize("name", DURABLE)
def test_every_crash_state_of_a_durable_path_is_recovered_from(memory_path: Path, name: str) -> None:
    counts = prove(memory_path, [name], deep=False)[name]
    assert counts.wrong == []
    assert counts.states["killed"] > 3
    assert counts.states["power lost"] > 5


def test_what_is_not_durable_survives_the_death_of_processes_and_is_never_read_wrong(memory_path: Path) -> None:
    counts = prove(memory_path, ["group, not durable"], most=5, deep=False)["group, not durable"]
    assert counts.wrong == []
    assert min(counts.states.values()) > 10


def test_a_recovery_that_is_cut_short_is_recovered_from(memory_path: Path) -> None:
    counts = prove(memory_path, ["overwrite"])["overwrite"]
    assert counts.wrong == []
    assert counts.states["recovery cut short"] > 20


def _intent_not_waited_for(announce: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, durable=True: announce(*args, durable=False)


def _not_synced(make_directories: Callable[..., Any]) -> Callable[..., Any]:
    return lambda path, durable=True, **options: make_directories(path, False, **options)


@pytest.mark.parametrize(
    ("owner", "name", "broken", "path"),
    [
        (node, "sync_data", lambda real: lambda path: None, "overwrite"),
        (node, "sync_directories", lambda real: lambda paths: None, "new chunk"),
        (node, "sync_directories", lambda real: lambda paths: None, "empty over a file"),
        (node, "make_directories", _not_synced, "first chunks of an array"),
        (Manifest, "announce", _intent_not_waited_for, "overwrite"),
        (node.NodeStore, "_settle", lambda real: lambda self, intents: None, "overwrite"),
    ],
    ids=["bytes", "name", "deletion", "directory", "intent", "settling"],
)
def test_a_protocol_that_leaves_something_out_is_found_out(
    memory_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, broken: Callable[[Any], Any], path: str
) -> None:
    monkeypatch.setattr(owner, name, broken(getattr(owner, name)))
    assert prove(memory_path, [path], deep=False)[path].wrong


# -- what may be left ------------------------------------------------------------------------------------------------------------------

A, B = (1, "a"), (1, "b")


def _recording(*operations: Any) -> Recording:
    """A folder `root` (1) with the file `a` (2) in it, and what happens then."""
    return Recording({(0, "root"): 1, A: 2}, {0, 1}, {2: b"old!"}, list(operations), b"main", b"12345678", 4)


def _seen(states: Iterator[CrashState]) -> set[tuple[tuple[str, bytes], ...]]:
    return {tuple((path, dict(state.files)[number]) for path, number in state.tree if number is not None) for state in states}


def test_what_was_written_is_there_or_not_or_torn_until_it_is_synced() -> None:
    written = Write(2, 0, b"new!")
    assert _seen(killed(_recording(written))) == {(("root/a", data),) for data in (b"old!", b"new!", b"new!"[:2] + b"d!")}
    lost = {data for ((_, data),) in _seen(power_lost(_recording(written)))}
    assert lost == {b"old!", b"new!", b"ned!", b"ne", bytes(4)}
    after = list(power_lost(_recording(written, Sync(2))))[-1]
    assert dict(after.files) == {2: b"new!"}


def test_a_name_is_there_or_not_until_its_directory_is_synced() -> None:
    renamed = Entries({A: None, B: 2})
    assert _seen(power_lost(_recording(renamed))) == {(("root/a", b"old!"),), (("root/b", b"old!"),)}
    synced = list(power_lost(_recording(renamed, Sync(1))))
    assert [state.tree for state in synced if ("root/b", 2) in state.tree][-1] == synced[-1].tree
    assert ("root/a", 2) not in synced[-1].tree


def test_a_change_of_a_name_never_comes_without_the_one_before() -> None:
    made, away = Entries({B: 3}), Entries({B: None})
    trees = {state.tree for state in power_lost(_recording(made, away))}
    assert trees == {(("root", None), ("root/a", 2)), (("root", None), ("root/a", 2), ("root/b", 3))}


def test_the_wal_is_cut_anywhere_behind_its_last_sync() -> None:
    wals = {state.wal for state in power_lost(_recording(WalWrite(8)))}
    assert wals == {b"1234", b"12345678", b"123456", b"123456\0\0"}
    assert {state.wal for state in list(power_lost(_recording(WalWrite(8), WalSync())))[-1:]} == {b"12345678"}
