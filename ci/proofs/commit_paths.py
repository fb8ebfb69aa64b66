"""Every way in which a store changes what it keeps, and what may be there when one was cut short."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from ci.proofs.crash_states import CrashState
from gpuflow.errors import ChunkCorrupt, NotFound
from gpuflow.storage.disk import write_file
from gpuflow.storage.dropping import drop
from gpuflow.storage.node import NodeStore, Staged
from gpuflow.storage.record import DatasetRecord
from tests.storage.scenarios import BEFORE, SCENARIOS, SOURCE, Scenario, seen
from tests.storage.stores import ARRAY, CHUNKS, content, new_record, new_replica, stage

Found = tuple[int, bytes | None]
"""(generation, bytes) of a chunk, as `seen` gives it."""


class CommitPath(Protocol):
    """A way in which a store changes."""

    @property
    def durable(self) -> bool:
        """Whether what is acknowledged survives a power failure."""
        ...

    @property
    def exchange(self) -> bool:
        """Whether the file system can swap two files."""
        ...

    def prepare(self, store: NodeStore) -> None:
        """What is there, durably, before."""
        ...

    def act(self, store: NodeStore, acknowledge: Callable[[], None]) -> None:
        """One step after the other, each acknowledged when it is done."""
        ...

    def check(self, store: NodeStore, state: CrashState) -> None:
        """AssertionError when the recovered store is not what it may be."""
        ...


@dataclass(frozen=True)
class Step:
    """A commit, and what the chunks that it changes are afterwards."""

    staged: Callable[[NodeStore], list[Staged]]
    after: Mapping[int, Found]


@dataclass(frozen=True)
class Chunks:
    """Commits of chunks. before: those that are there, at generation 1."""

    steps: tuple[Step, ...]
    durable: bool = True
    exchange: bool = True
    before: tuple[int, ...] = tuple(BEFORE)

    def prepare(self, store: NodeStore) -> None:
        store.put_record(new_record())
        store.commit([stage(store, chunk, 1) for chunk in self.before])
        write_file(store.root.parent / SOURCE, content(9, 9))

    def act(self, store: NodeStore, acknowledge: Callable[[], None]) -> None:
        for step in self.steps:
            store.commit(step.staged(store), durable=self.durable)
            acknowledge()

    def check(self, store: NodeStore, state: CrashState) -> None:
        """Each chunk is as some step left it, none before the last that was acknowledged, and can be committed again."""
        assert store.manifest.intents() == []
        for chunk in range(CHUNKS):
            if state.lossy and not self.durable:
                self._check_found(store, chunk)
            else:
                found = seen(store, chunk)
                assert found in self._allowed(chunk, state.acknowledged), f"chunk {chunk}: {found}"
                assert store.path("d", ARRAY, chunk).exists() == (found[1] is not None), f"chunk {chunk}: its file"
        assert (store.root.parent / SOURCE).read_bytes() == content(9, 9)
        self._commit_again(store)

    def _allowed(self, chunk: int, acknowledged: int) -> list[Found]:
        """What the chunk may be, oldest first."""
        history: list[Found] = [(1, content(chunk, 1)) if chunk in self.before else (0, None)]
        for number, step in enumerate(self.steps):
            if chunk in step.after:
                history = [*(history if number >= acknowledged else ()), step.after[chunk]]
        return history

    def _check_found(self, store: NodeStore, chunk: int) -> None:
        """Not durable, and the power failed: right bytes of one of its generations, or an error that names the chunk."""
        try:
            assert seen(store, chunk) in self._allowed(chunk, 0), f"chunk {chunk}: wrong bytes"
        except ChunkCorrupt as error:
            assert error.chunk == store.record("d").chunk_name(ARRAY, chunk)  # noqa: PT017

    def _commit_again(self, store: NodeStore) -> None:
        generations = {}
        for chunk in range(CHUNKS):
            there = store.manifest.replica("d", ARRAY, chunk)
            generations[chunk] = (there.generation if there else 0) + 1
        store.commit([stage(store, chunk, generation) for chunk, generation in generations.items()])
        for chunk, generation in generations.items():
            assert seen(store, chunk) == (generation, content(chunk, generation)), f"chunk {chunk} committed again"


@dataclass(frozen=True)
class Record:
    """A new version of a dataset's record, with other attributes; or, after a removal, a new dataset of the name."""

    former: str = "ready"
    durable: bool = True
    exchange: bool = True

    def prepare(self, store: NodeStore) -> None:
        store.put_record(new_record())
        store.commit([stage(store, 0, 1)])
        if self.former == "removed":
            store.manifest.put_record(new_record(version=2, state="removed"))  # its folder is still there

    def act(self, store: NodeStore, acknowledge: Callable[[], None]) -> None:
        store.put_record(_titled(3))
        acknowledge()

    def check(self, store: NodeStore, state: CrashState) -> None:
        version = store.manifest.version("d")
        assert version in ((1, "ready"), (2, "removed"), (3, "ready"))
        assert version == (3, "ready") or not state.acknowledged
        if self.former == "ready":
            assert seen(store, 0) == (1, content(0, 1))
        store.put_record(_titled(3))
        assert seen(store, 0) == ((1, content(0, 1)) if self.former == "ready" else (0, None))
        for path, document in (("", b"title 3"), (ARRAY, b"int32")):
            assert document in (store.root / "datasets" / "d" / path / "zarr.json").read_bytes()
        following = 2 if self.former == "ready" else 1
        store.commit([stage(store, 0, following)])
        assert seen(store, 0) == (following, content(0, following))


def _titled(version: int) -> DatasetRecord:
    record = new_record(version=version)
    return replace(record, groups={**record.groups, "": {"title": f"title {version}"}})


@dataclass(frozen=True)
class Removal:
    """A dataset goes: its rows, its files, its folder."""

    durable: bool = True
    exchange: bool = True

    def prepare(self, store: NodeStore) -> None:
        store.put_record(new_record())
        store.commit([stage(store, chunk, 1) for chunk in BEFORE])

    def act(self, store: NodeStore, acknowledge: Callable[[], None]) -> None:
        store.put_record(new_record(version=2, state="removed"))
        acknowledge()

    def check(self, store: NodeStore, state: CrashState) -> None:
        removed = store.manifest.version("d") == (2, "removed")
        assert removed or not state.acknowledged
        if not removed:
            for chunk in BEFORE:
                assert seen(store, chunk) == (1, content(chunk, 1))
        else:
            assert not (store.root / "datasets" / "d").exists()
            try:
                store.read("d", ARRAY, 0)
                raise AssertionError("a removed chunk is read")
            except NotFound:
                pass
        store.put_record(new_record(version=3))
        following = 1 if removed else 2
        store.commit([stage(store, 0, following)])
        assert seen(store, 0) == (following, content(0, following))


@dataclass(frozen=True)
class Dropping:
    """Replicas that are given up, but for one that has become another meanwhile."""

    durable: bool = True
    exchange: bool = True

    def prepare(self, store: NodeStore) -> None:
        store.put_record(new_record())
        store.commit([stage(store, chunk, 1) for chunk in BEFORE])
        store.commit([stage(store, 2, 2)])

    def act(self, store: NodeStore, acknowledge: Callable[[], None]) -> None:
        assert drop(store, "d", ARRAY, dict.fromkeys(BEFORE, 1)) == [0, 1]
        acknowledge()

    def check(self, store: NodeStore, state: CrashState) -> None:
        for chunk in (0, 1):
            found = seen(store, chunk)
            assert found == (0, None) or (found == (1, content(chunk, 1)) and not state.acknowledged), f"chunk {chunk}: {found}"
        assert seen(store, 2) == (2, content(2, 2))
        for chunk in BEFORE:
            following = seen(store, chunk)[0] + 1
            store.commit([stage(store, chunk, following)])
            assert seen(store, chunk) == (following, content(chunk, following))


# -- all of them -----------------------------------------------------------------------------------------------------------------------


def _of(scenario: Scenario, exchange: bool = True) -> Chunks:
    """A scenario as one step."""
    after = {chunk: (2 if chunk in BEFORE else 1, data) for chunk, data in scenario.after.items()}
    return Chunks((Step(scenario.staged, after),), scenario.durable, exchange)


def _group(generation: int, *chunks: int) -> Step:
    def staged(store: NodeStore) -> list[Staged]:
        return [stage(store, chunk, generation) for chunk in chunks]

    return Step(staged, {chunk: (generation, content(chunk, generation)) for chunk in chunks})


_IN_PLACE = (_group(2, 0, 1), _group(2, 2), _group(3, 0, 2))
"""Group after group in place: the files that one replaces are what the next writes over."""
_AND_NEW = (_group(1, 3, 4), _group(2, 3))


def _copies(store: NodeStore) -> list[Staged]:
    """Of another node's chunks, where the one here is older or none is."""
    return [store.stage(new_replica(chunk, 5), content(chunk, 5), replaces=replaces) for chunk, replaces in ((0, 1), (3, 0))]


def commit_paths() -> dict[str, CommitPath]:
    """By name."""
    chunks: dict[str, CommitPath] = {name: _of(scenario) for name, scenario in SCENARIOS.items()}
    others: dict[str, CommitPath] = {
        "overwrite, no exchange": _of(SCENARIOS["overwrite"], exchange=False),
        "group of 3, no exchange": _of(SCENARIOS["group of 3"], exchange=False),
        "first chunks of an array": Chunks(_AND_NEW, before=()),
        "in place, groups": Chunks(_IN_PLACE),
        "in place, groups, no exchange": Chunks(_IN_PLACE, exchange=False),
        "in place, groups, not durable": Chunks(_IN_PLACE, durable=False),
        "first chunks, not durable": Chunks(_AND_NEW, durable=False, before=()),
        "copies of another node's": Chunks((Step(_copies, {chunk: (5, content(chunk, 5)) for chunk in (0, 3)}),)),
        "a record's next version": Record(),
        "a record where a dataset was removed": Record("removed"),
        "removal": Removal(),
        "copies dropped": Dropping(),
    }
    return chunks | others
