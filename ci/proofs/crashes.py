"""a. Every state that a crash may leave of every commit path, recovered by the real store.

Recovery is itself cut short: the states that a crash of it may leave are recovered too. fsyncs are noted, not made: what is lost without
them is what the states are made of."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from ci.proofs.commit_paths import CommitPath, commit_paths
from ci.proofs.crash_states import CrashState, killed, power_lost
from ci.proofs.recording import Recorder, Recording, recorder
from gpuflow.storage.node import NodeStore


@dataclass
class Counts:
    """Different states by kind, and what was wrong with any."""

    states: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


def record(path: CommitPath, folder: Path) -> Recording:
    """Run a commit path in a new store in `folder`."""
    folder.mkdir()
    with recorder(folder, exchange=path.exchange, synced=False) as made, closing(NodeStore(folder / "root", name="n")) as store:
        path.prepare(store)
        recording = _begin(made, store)
        path.act(store, recording.acknowledge)
        made.end()
    return recording


def _begin(made: Recorder, store: NodeStore) -> Recording:
    """Record from here, with an empty WAL, so that its length says how far it goes."""
    store.manifest.query("PRAGMA wal_checkpoint(TRUNCATE)")
    return made.begin()


def prove(folder: Path, names: Iterable[str] | None = None, *, most: int | None = None, deep: bool = True) -> dict[str, Counts]:
    """Counts by commit path. most: states of each point in time that a power failure leaves of what is not durable, None for all. deep:
    recovery is cut short too."""
    paths = commit_paths()
    return {name: _prove(paths[name], folder, most, deep) for name in (paths if names is None else names)}


def _prove(path: CommitPath, folder: Path, most: int | None, deep: bool) -> Counts:
    counts, seen, numbers = Counts(), set[CrashState](), count()
    recording = record(path, folder / "recorded")
    shutil.rmtree(folder / "recorded")

    def check_all(kind: str, states: Iterator[CrashState]) -> list[Recording]:
        recoveries = []
        for state in states:
            if state in seen:
                continue
            seen.add(state)
            counts.states[kind] = counts.states.get(kind, 0) + 1
            try:
                again = deep and kind != "recovery cut short" and (path.durable or not state.lossy)
                recovery = check(path, state, folder / str(next(numbers)), again)
            except Exception as error:  # noqa: BLE001 - whatever recovery raises is what is looked for
                counts.wrong.append(f"{kind}: {type(error).__name__}: {error}")
                continue
            if recovery.operations:
                recoveries.append(recovery)
        return recoveries

    recoveries = check_all("killed", killed(recording))
    recoveries += check_all("power lost", power_lost(recording, None if path.durable else most))
    for recovery in recoveries:
        check_all("recovery cut short", _again(recovery))
    return counts


def _again(recovery: Recording) -> Iterator[CrashState]:
    yield from killed(recovery)
    yield from power_lost(recovery)


def check(path: CommitPath, state: CrashState, folder: Path, record_recovery: bool = False) -> Recording:
    """Recover from a state, twice, and hold what the path promises. What recovery did, if it is to be recorded."""
    state.lay(folder)
    with recorder(folder, exchange=path.exchange, synced=False) as made, closing(NodeStore(folder / "root", name="n")) as store:
        recovery = Recording()
        if record_recovery:
            recovery = _begin(made, store)
            recovery.acknowledged, recovery.lossy = state.acknowledged, state.lossy
        store.recover()
        if record_recovery:
            made.end()
        assert store.recover() == 0, "recovery did not end"
        path.check(store, state)
    left = [each.name for each in (folder / "root" / "staging").iterdir()]
    assert left == [], f"left in staging: {left}"
    shutil.rmtree(folder)
    return recovery
