"""Snapshots over two nodes: against a model, under failing disks, and in the face of everything that can be asked wrongly."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zarr
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gpuflow.datasets import catalog
from gpuflow.datasets.snapshots import ROLLING_BACK, compare, delete_snapshot, roll_back, take_snapshot
from gpuflow.errors import ChunkCorrupt, ChunkLost, ClusterError, ConfigError, GpuflowError, NameTaken, NotFound
from gpuflow.storage import snapshots as storage
from gpuflow.storage.manifest import Replica
from gpuflow.storage.node import NodeStore
from tests.datasets.two_nodes import Model, Stores
from tests.storage.faults import Faults, patched
from tests.storage.stores import ARRAY, new_record

TAGS = st.sampled_from(["a", "b", "c"])
_MOST_CALLS = 300
_MEMORY = "/dev/shm"  # thousands of fsyncs


@pytest.fixture
def model(tmp_path: Path) -> Iterator[Model]:
    nodes = Stores(tmp_path / "0", tmp_path / "1")
    yield Model.begun(nodes)
    nodes.close()


class Interleaved(RuleBasedStateMachine):
    """Commits, moves, pipelines, snapshots and rollbacks in any order, some of them on a disk that fails."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(dir=_MEMORY if os.path.isdir(_MEMORY) else None)
        self.faults = Faults()
        self.patches = patched(self.faults)
        self.patches.__enter__()

    @initialize()
    def begin(self) -> None:
        self.model = Model.begun(Stores(Path(self.folder.name, "0"), Path(self.folder.name, "1")))

    @rule(chunk=st.integers(0, 5), node=st.integers(0, 1), value=st.integers(0, 9))
    def write(self, chunk: int, node: int, value: int) -> None:
        self.model.write(chunk, node, value)

    @rule()
    def apply_pipeline(self) -> None:
        self.model.apply_pipeline()

    @rule(tag=TAGS)
    def take(self, tag: str) -> None:
        if tag in self.model.snapshots:
            with pytest.raises(NameTaken, match=f"has a snapshot '{tag}' of"):
                self.model.take(tag)
        else:
            self.model.take(tag)

    @precondition(lambda self: self.model.snapshots)
    @rule(data=st.data())
    def back(self, data: st.DataObject) -> None:
        self.model.back(data.draw(st.sampled_from(sorted(self.model.snapshots))))

    @precondition(lambda self: self.model.snapshots)
    @rule(data=st.data(), call=st.integers(1, 90))
    def back_on_a_failing_disk(self, data: st.DataObject, call: int) -> None:
        tag = data.draw(st.sampled_from(sorted(self.model.snapshots)))
        if self._fails(call, lambda: self.model.back(tag)):
            self.model.back(tag)

    @precondition(lambda self: self.model.snapshots)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        self.model.delete(data.draw(st.sampled_from(sorted(self.model.snapshots))))

    @rule(tag=TAGS, call=st.integers(1, 60))
    def take_on_a_failing_disk(self, tag: str, call: int) -> None:
        if tag not in self.model.snapshots and self._fails(call, lambda: self.model.take(tag)):
            if tag in catalog.find(self.model.nodes, "d").snapshots:  # the last node to hear of it failed, or its removal did
                self.model.snapshots[tag] = self.model.now
            else:
                self.model.take(tag)

    def _fails(self, call: int, action: Callable[[], None]) -> bool:
        self.faults.call, self.faults.count, self.faults.armed = call, 0, True
        try:
            action()
            return False
        except GpuflowError:
            return True
        finally:
            self.faults.armed = False
            for store in self.model.nodes.stores:  # a lease that could not be given back runs out
                shutil.rmtree(store.root / "leases", ignore_errors=True)

    @invariant()
    def all_is_as_it_should_be(self) -> None:
        if hasattr(self, "model"):
            self.model.check()

    def teardown(self) -> None:
        self.model.nodes.close()
        self.patches.__exit__(None, None, None)
        self.folder.cleanup()


TestInterleaved = Interleaved.TestCase
TestInterleaved.settings = settings(max_examples=20, stateful_step_count=12, deadline=None)


# -- taking -------------------------------------------------------------------------------------------------------------------------


def test_a_snapshot_is_links_and_opens_with_zarr(model: Model) -> None:
    entry = take_snapshot(model.nodes, "d", "before")
    assert (entry["chunks"], entry["nbytes"]) == (6, 5 * 16)
    assert set(entry["nodes"].values()) == {3}
    for number, store in enumerate(model.nodes.stores):
        tree = store.root / "snapshots" / "d" / "before"
        files = [path.relative_to(tree) for path in tree.rglob("*") if path.is_file()]
        assert len(files) == 3 + 3 - number  # three zarr.json; chunk 5 has no file
        assert all(os.path.samefile(tree / file, store.root / "datasets" / "d" / file) for file in files)
        assert zarr.open_group(tree, mode="r").attrs["title"] == "d"
        values = zarr.open_array(tree / ARRAY, mode="r")[...].reshape(6, 4)[:, 0].tolist()
        assert values == ([1, 0, 1, 0, 1, 0] if number == 0 else [0, 1, 0, 1, 0, 0])


def test_many_folders_are_synced_at_once(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_FEW_FOLDERS", 2)
    synced: list[str] = []
    sync = storage.sync_file_system
    monkeypatch.setattr(storage, "sync_file_system", lambda path: (synced.append(path), sync(path)))
    model.take("before")
    model.check()
    assert len(synced) == 2


def test_linked_files_are_never_written_over(model: Model) -> None:
    """Not while they are the dataset's, nor as spares, nor after a rollback has linked them back."""
    model.take("before")
    for value in range(2, 6):
        for chunk in range(5):
            model.write(chunk, chunk % 2, value)
    model.check()
    model.back("before")
    for value in range(6, 9):
        for chunk in range(5):
            model.write(chunk, chunk % 2, value)
    model.check()


def test_a_commit_meanwhile_is_refused_by_name(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the node itself while it links, and on a node that has linked while another does."""
    link, pending = os.link, [0]

    def after_a_commit(source: Any, target: Any) -> None:
        if pending and "/1/datasets/" in str(source):
            chunk = pending.pop()
            model.write(chunk, chunk % 2, 7)
        link(source, target)

    monkeypatch.setattr(os, "link", after_a_commit)
    for chunk in (1, 0):
        pending[:] = [chunk]
        with pytest.raises(NameTaken, match="dataset 'd' is being changed by a run; take the snapshot when that has ended"):
            model.take("a")
        model.check()
    monkeypatch.undo()
    model.take("a")
    model.check()


def test_an_announced_commit_is_refused_too(model: Model) -> None:
    store = model.nodes.stores[0]
    replica = Replica("d", ARRAY, 0, 2, 16, bytes(16), bytes(16), bytes(16))
    store.manifest.announce([(replica, 1)], store.writer.name)
    with pytest.raises(NameTaken, match="is being changed by a run"):
        model.take("a")
    store.manifest.withdraw([replica])
    model.take("a")
    model.check()


def test_damaged_and_missing_chunks_are_named(model: Model) -> None:
    store = model.nodes.stores[0]
    path = store.path("d", ARRAY, 2)
    data = path.read_bytes()
    path.unlink()
    with pytest.raises(ChunkCorrupt, match=r"chunk d/a/b/c/2 on node n0-\w+ is damaged: its file is missing"):
        model.take("a")
    path.write_bytes(data[::-1])
    replica = store.manifest.replica("d", ARRAY, 2)
    assert replica is not None
    store.manifest.mark_damaged(replica)
    with pytest.raises(ChunkCorrupt, match=r"chunk d/a/b/c/2 on node n0-\w+ is damaged: 16 bytes with digest"):
        model.take("a")
    path.write_bytes(data)
    model.take("a")
    assert store.manifest.replica("d", ARRAY, 2) == replica  # it was a passing fault
    model.check()


def test_a_node_away_that_holds_chunks(model: Model) -> None:
    model.take("before")
    model.write(1, 1, 5)
    alone = Stores(model.nodes.stores[0].root)
    away = model.nodes.stores[1].node_id
    with pytest.raises(ChunkLost, match=r"no live replica of chunk d/a/b/c/1 \(searched: n0-\w+\); start the node"):
        take_snapshot(alone, "d", "other")
    for action in (lambda: roll_back(alone, "d", "before"), lambda: compare(alone, "d", "before")):
        with pytest.raises(ClusterError, match=f"3 chunks of snapshot 'before' of 'd' are on {away}; start it, then run again"):
            action()
    alone.close()
    assert catalog.find(model.nodes, "d").state == "ready"


def test_what_cannot_be(model: Model) -> None:
    for tag in ("", ".", "../x", "a/b", "a b", "-a", "x" * 101):
        with pytest.raises(ConfigError, match="cannot be the tag of a snapshot; use at most 100 letters"):
            take_snapshot(model.nodes, "d", tag)
    with pytest.raises(NotFound, match="no dataset 'e'; there is: d"):
        take_snapshot(model.nodes, "e", "a")
    for action in (roll_back, delete_snapshot, compare):
        with pytest.raises(NotFound, match="no snapshot 'a'; dataset 'd' has none; take one with `gpuflow snapshot d TAG`"):
            action(model.nodes, "d", "a")
    model.take("b")
    model.take("c")
    with pytest.raises(NotFound, match="no snapshot 'a'; there is: b, c"):
        roll_back(model.nodes, "d", "a")
    catalog.publish(model.nodes, new_record("w", state="writing"))
    with pytest.raises(NameTaken, match="dataset 'w' is not complete; finish it first"):
        take_snapshot(model.nodes, "w", "a")


def test_two_commands_at_once(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that began last wins; the other says so and leaves nothing."""
    current = storage.check_current

    def overtaken(*args: Any) -> None:
        if "late" not in model.snapshots:
            monkeypatch.undo()
            model.take("late")
        current(*args)

    monkeypatch.setattr(storage, "check_current", overtaken)
    with pytest.raises(NameTaken, match="is being changed by another command"):
        take_snapshot(model.nodes, "d", "early")
    model.check()


def test_deletion_reaches_a_node_that_was_away(model: Model) -> None:
    model.take("a")
    alone = Stores(model.nodes.stores[0].root)
    delete_snapshot(alone, "d", "a")
    alone.close()
    del model.snapshots["a"]
    model.take("b")
    model.check()


# -- going back -----------------------------------------------------------------------------------------------------------------------


def test_generations_go_up_and_the_history_is_that_of_then(model: Model) -> None:
    model.take("before")
    model.apply_pipeline()
    for chunk in (0, 1, 5):
        model.write(chunk, chunk % 2, 3)
    before = {chunk: store_of(model, chunk).manifest.replica("d", ARRAY, chunk) for chunk in range(6)}
    done = roll_back(model.nodes, "d", "before")
    assert (done.chunks, done.nbytes, done.undone, done.left) == (3, 32, 1, 0)
    for chunk, replica in before.items():
        now = store_of(model, chunk).manifest.replica("d", ARRAY, chunk)
        assert replica is not None
        assert now is not None
        assert now.generation == replica.generation + (chunk in (0, 1, 5))
    assert not store_of(model, 5).path("d", ARRAY, 5).exists()
    again = roll_back(model.nodes, "d", "before")
    assert (again.chunks, again.undone) == (0, 0)


def store_of(model: Model, chunk: int) -> NodeStore:
    return model.nodes.stores[chunk % 2]


def test_a_copy_elsewhere_does_not_win_over_what_was_rolled_back(model: Model) -> None:
    """Chunk 0 moved to the other node after the snapshot."""
    model.take("before")
    model.write(0, 1, 3)
    model.write(0, 1, 4)
    model.back("before")
    model.check()
    table = catalog.chunk_table(model.nodes, "d", ARRAY, 6)
    assert table.holder_sets[0] == {model.nodes.stores[0].node_id}


def test_copies_are_brought_back_together(model: Model) -> None:
    """Both nodes hold chunk 0. A crash after the first of them leaves the other at the older generation; the next call joins it."""
    one, other = model.nodes.stores
    replica, data = one.read("d", ARRAY, 0)
    other.commit([other.stage(replica, data)])
    model.take("before")
    model.write(0, 0, 3)
    newest, data = one.read("d", ARRAY, 0)
    other.commit([other.stage(newest, data, replaces=1)])
    model.back("before")
    model.check()
    assert catalog.chunk_table(model.nodes, "d", ARRAY, 6).holder_sets[0] == {one.node_id, other.node_id}
    at = other.manifest.replica("d", ARRAY, 0)
    assert at is not None
    stale = Replica("d", ARRAY, 0, at.generation - 1, 16, newest.digest, newest.recipe, newest.inputs)
    other.commit([other.stage(stale, data, replaces=at.generation)])
    assert roll_back(model.nodes, "d", "before").chunks == 1
    assert other.manifest.replica("d", ARRAY, 0) == one.manifest.replica("d", ARRAY, 0)


def test_a_damaged_snapshot_changes_nothing(model: Model) -> None:
    model.take("before")
    for chunk in (2, 4):
        model.write(chunk, 0, 8)
    store = model.nodes.stores[0]
    (store.root / "snapshots/d/before/a/b/c/2").write_bytes(b"x" * 16)
    (store.root / "snapshots/d/before/a/b/c/4").unlink()
    with pytest.raises(
        ClusterError, match=r"'before' of 'd' is damaged: 2 of its .* such as d/a/b/c/2 on n0.*nothing was changed"
    ):
        roll_back(model.nodes, "d", "before")
    record = catalog.find(model.nodes, "d")
    assert (record.state, store.read("d", ARRAY, 2)[1][:1]) == ("ready", b"\x08")


def test_a_sound_copy_stands_in_for_a_damaged_one(model: Model) -> None:
    one, other = model.nodes.stores
    replica, data = one.read("d", ARRAY, 0)
    other.commit([other.stage(replica, data)])
    model.take("before")
    model.write(0, 0, 3)
    (one.root / "snapshots/d/before/a/b/c/0").write_bytes(b"x" * 16)
    roll_back(model.nodes, "d", "before")
    assert catalog.chunk_table(model.nodes, "d", ARRAY, 6).holder_sets[0] == {other.node_id}
    assert other.read("d", ARRAY, 0)[1] == data


def test_a_run_meanwhile_is_noticed(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    model.take("before")
    model.write(0, 0, 3)
    restore = storage.restore

    def with_a_run(*args: Any) -> tuple[int, int]:
        done = restore(*args)
        if args[0] is model.nodes.stores[1]:
            model.write(0, 0, 4)
        return done

    monkeypatch.setattr(storage, "restore", with_a_run)
    with pytest.raises(NameTaken, match="was changed by a run while it was rolled back; when that has ended, roll back again"):
        roll_back(model.nodes, "d", "before")
    assert catalog.find(model.nodes, "d").state == ROLLING_BACK
    for action in (lambda: model.take("x"), lambda: model.delete("before")):
        with pytest.raises(NameTaken, match="is in the middle of a rollback; finish it first: `gpuflow rollback d TAG`"):
            action()
    monkeypatch.undo()
    model.back("before")
    model.check()


@pytest.fixture
def in_memory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=_MEMORY if os.path.isdir(_MEMORY) else None) as folder:
        yield Path(folder)


def test_an_error_at_every_step_of_a_rollback(in_memory: Path) -> None:
    """Each chunk is then as before or as kept; as soon as one has changed the record says so; the next call ends it."""
    template = in_memory / "template"
    model = Model.begun(Stores(template / "0", template / "1"))
    model.take("before")
    model.apply_pipeline()
    for chunk in (0, 1, 3, 5):
        model.write(chunk, chunk % 2, 9)
    changed = model.now[0]
    model.nodes.close()
    for call in range(1, _MOST_CALLS):
        folder = in_memory / "copy"
        shutil.copytree(template, folder)
        with patched(Faults(call)) as faults:
            nodes = Stores(folder / "0", folder / "1")
            _ = [store.writer for store in nodes.stores]
            faults.armed = True
            try:
                roll_back(nodes, "d", "before")
                failed = False
            except GpuflowError as error:
                failed = True
                assert "full" in str(error)  # noqa: PT017 - the last step raises nothing
            faults.armed = False
            nodes.close()
        after = Model(Stores(folder / "0", folder / "1"), model.snapshots["before"], dict(model.snapshots))
        for store in after.nodes.stores:
            store.recover()
        table = catalog.chunk_table(after.nodes, "d", ARRAY, 6)
        found = [after.read(table.holder_sets[chunk], chunk) for chunk in range(6)]
        assert all(data in (changed[chunk], after.now[0][chunk]) for chunk, data in enumerate(found))
        if tuple(found) not in (changed, after.now[0]):
            assert catalog.find(after.nodes, "d").state == ROLLING_BACK
        roll_back(after.nodes, "d", "before")
        after.check()
        after.nodes.close()
        shutil.rmtree(folder)
        if not failed and faults.count < call:
            break
    assert call > 30, "the faults struck nothing"


@pytest.mark.parametrize("action", [take_snapshot, roll_back, delete_snapshot])
def test_a_kill_at_every_step(action: Callable[[Stores, str, str], object]) -> None:
    """The same command then ends what was begun, or finds that it was done; nothing is left over."""
    tag = "new" if action is take_snapshot else "before"
    with tempfile.TemporaryDirectory(dir=_MEMORY if os.path.isdir(_MEMORY) else None) as folder:
        template, copied = Path(folder, "template"), Path(folder, "copied")
        model = Model.begun(Stores(template / "0", template / "1"))
        model.take("before")
        model.apply_pipeline()
        for chunk in (0, 1, 5):
            model.write(chunk, chunk % 2, 9)
        model.nodes.close()
        for call in range(1, _MOST_CALLS, 2):
            shutil.copytree(template, copied)
            killed = killed_in(copied, call, lambda nodes: action(nodes, "d", tag))
            after = Model(Stores(copied / "0", copied / "1"), model.now, dict(model.snapshots))
            there = tag in catalog.find(after.nodes, "d").snapshots
            if action is roll_back:
                after.back(tag)
            elif action is take_snapshot:
                assert there or killed
                after.snapshots[tag] = model.now
                None if there else after.take(tag)
            else:
                None if not there else delete_snapshot(after.nodes, "d", tag)
                del after.snapshots[tag]
            after.nodes.each_node(storage.begin, catalog.find(after.nodes, "d"))  # as the next command does
            after.check()
            after.nodes.close()
            shutil.rmtree(copied)
            if not killed:
                break
        assert call > 15, "the kills struck nothing"


def killed_in(folder: Path, call: int, action: Callable[[Stores], object]) -> bool:
    """Do `action` in a child that kills itself at the `call`-th call that changes the disk; whether it did."""
    child = os.fork()
    if child == 0:
        with patched(Faults(call, kill=True)) as faults:
            nodes = Stores(folder / "0", folder / "1")
            _ = [store.writer for store in nodes.stores]
            faults.armed = True
            action(nodes)
        os._exit(0)
    return os.waitpid(child, 0)[1] != 0


# -- comparing ------------------------------------------------------------------------------------------------------------------------


def test_what_differs(model: Model) -> None:
    model.take("a")
    model.write(0, 0, 2)
    model.write(3, 1, 0)
    model.take("b")
    model.write(0, 0, 1)
    diff = compare(model.nodes, "d", "a", "b")[ARRAY]
    assert (diff.chunks, diff.differing, diff.first_nbytes, diff.second_nbytes) == (6, (0, 3), 32, 16)
    assert compare(model.nodes, "d", "a")[ARRAY].differing == (3,)
    assert compare(model.nodes, "d", "b", "b")[ARRAY].differing == ()
