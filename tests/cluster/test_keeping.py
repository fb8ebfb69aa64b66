"""What is kept of shipped chunks: as much as there is room for and as is allowed; and nothing fails for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from gpuflow.cluster import keeping
from gpuflow.cluster.keeping import Keeper, has_room
from gpuflow.storage.manifest import Replica
from gpuflow.storage.node import NodeStore
from tests.storage.stores import ARRAY, content, new_record, new_replica, new_store


class Scheduler:
    """Allows `chunks`; what it was asked and told."""

    def __init__(self, *chunks: int, broken: bool = False) -> None:
        self.chunks, self.broken = chunks, broken
        self.asked: list[list[int]] = []
        self.told: list[list[int]] = []

    def keeper(self, store: NodeStore) -> Keeper:
        return Keeper(store, self.claim, self.announce)

    def claim(self, chunks: Sequence[int]) -> list[int]:
        self.asked.append(list(chunks))
        if self.broken:
            raise OSError("the scheduler is gone")
        return [chunk for chunk in chunks if chunk in self.chunks]

    def announce(self, kept: Sequence[Replica]) -> None:
        self.told.append([replica.chunk for replica in kept])


def add(keeper: Keeper, *chunks: int) -> None:
    for chunk in chunks:
        keeper.add(new_replica(chunk, 1), content(chunk, 1))


def test_room() -> None:
    assert has_room(10, 110, 1000)
    assert not has_room(11, 110, 1000)
    assert not has_room(0, 99, 1000)


def test_what_is_granted_is_kept_some_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "PART_NBYTES", 32)
    store, scheduler = new_store(tmp_path), Scheduler(1, 3, 5)
    keeper = scheduler.keeper(store)
    add(keeper, 3, 4, 5)
    assert store.read("d", ARRAY, 3)[1] == content(3, 1)
    assert store.manifest.replica("d", ARRAY, 5) is None
    add(keeper, 1)  # is here already
    keeper.flush()
    assert store.manifest.replica("d", ARRAY, 4) is None
    assert (scheduler.asked, scheduler.told) == ([[3, 4], [5, 1]], [[3], [5]])
    assert keeper.kept == 32
    assert not keeper._copies


@pytest.mark.parametrize("trouble", ["reserve", "full", "removed", "scheduler"])
def test_trouble_means_that_nothing_is_kept(trouble: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, scheduler = new_store(tmp_path), Scheduler(3, 4, broken=trouble == "scheduler")
    if trouble == "reserve":
        monkeypatch.setattr(keeping, "_RESERVE", 1.0)
    if trouble == "full":

        def refuse(*args: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(store, "_write", refuse)
    if trouble == "removed":
        store.put_record(new_record(version=2, state="removed"))
    keeper = scheduler.keeper(store)
    add(keeper, 3, 4)
    keeper.flush()
    assert keeper.kept == 0
    assert scheduler.told == []
    assert store.manifest.replicas("d", ARRAY)["chunk"].tolist() == ([] if trouble == "removed" else [0, 1, 2])
    keeper.flush()
    assert len(scheduler.asked) == (0 if trouble == "reserve" else 1)  # nothing was left to ask for
