"""The commit protocol, interrupted at every step: by an error, by a disk that is gone for good, and by SIGKILL.

Whatever happens, after recovery each chunk is at the old generation with the old bytes or at the new one with the new, no intent and no
temporary file is left, and the commit can be made again."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import zarr

from gpuflow.errors import NotFound, StoreError
from gpuflow.storage.node import NodeStore
from tests.storage.faults import Faults, patched
from tests.storage.scenarios import BEFORE, SCENARIOS, SOURCE, Scenario, seen
from tests.storage.stores import content, killed_at, new_record, new_store

_MOST_CALLS = 200


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A closed store with chunks 0 to 2 at generation 1, and a source to link."""
    folder = tmp_path_factory.mktemp("template")
    new_store(folder / "root").close()
    (folder / SOURCE).write_bytes(content(9, 9))
    return folder


def _fresh(template: Path, memory_path: Path) -> Iterator[tuple[int, Path]]:
    """(k, a root) for k = 1 and on."""
    for call in range(1, _MOST_CALLS):
        folder = memory_path / str(call)
        shutil.copytree(template, folder)
        yield call, folder / "root"
        shutil.rmtree(folder)
    raise AssertionError("the scenario makes more calls than expected")


def _check(root: Path, scenario: Scenario) -> set[int]:
    """Recover, and hold the invariant; the chunks that are at the new generation."""
    store = NodeStore(root)
    store.recover()
    assert store.manifest.intents() == []
    done = set()
    for chunk in range(6):
        before = (1, BEFORE[chunk]) if chunk in BEFORE else (0, None)
        after = (before[0] + 1, scenario.after[chunk]) if chunk in scenario.after else before
        found = seen(store, chunk)
        assert found in (before, after)
        assert store.path("d", "a/b", chunk).exists() == (found[1] is not None)
        if found == after != before:
            done.add(chunk)
    if done != set(scenario.after):
        again = scenario.staged(store)
        rest = [item for item in again if item.replica.chunk not in done]
        store.discard([item for item in again if item.replica.chunk in done])
        store.commit(rest)
    whole = {**BEFORE, **scenario.after}
    wanted = b"".join(whole.get(chunk) or bytes(16) for chunk in range(6))
    assert zarr.open_array(root / "datasets/d/a/b", mode="r")[...].astype("<i4").tobytes() == wanted
    store.close()
    assert list((root / "staging").iterdir()) == []
    assert not list(root.rglob(".*"))
    assert (root.parent / SOURCE).read_bytes() == content(9, 9)
    return done


@pytest.mark.parametrize("stays", [False, True], ids=["once", "for good"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_an_error_at_every_step(template: Path, memory_path: Path, name: str, stays: bool) -> None:
    scenario = SCENARIOS[name]
    outcomes = set()
    for call, root in _fresh(template, memory_path):
        with patched(Faults(call, stays=stays)) as faults:
            store = NodeStore(root)
            try:
                scenario.run(store, faults)
                failed = False
            except StoreError as error:
                failed = True
                assert "full" in str(error)  # noqa: PT017 - the last step raises nothing
            store.close()
        done = _check(root, scenario)
        outcomes.add(len(done))
        if not failed:
            assert done == set(scenario.after)
        if faults.count < call:
            break
    assert call > 5, "the faults struck nothing"
    assert outcomes >= {0, len(scenario.after)}


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_kill_at_every_step(template: Path, memory_path: Path, name: str, processes: ProcessPoolExecutor) -> None:
    outcomes = set()
    for call, root in _fresh(template, memory_path):
        status = processes.submit(killed_at, root, name, call).result()
        assert status in (0, signal.SIGKILL)
        outcomes.add(len(_check(root, SCENARIOS[name])))
        if status == 0:
            break
    assert call > 5, "the kills struck nothing"
    assert outcomes >= {0, len(SCENARIOS[name].after)}


def test_an_error_at_every_step_of_a_removal(template: Path, memory_path: Path) -> None:
    for call, root in _fresh(template, memory_path):
        with patched(Faults(call)) as faults:
            store = NodeStore(root)
            _ = store.writer
            faults.armed = True
            try:
                store.put_record(new_record(version=2, state="removed"))
            except StoreError as error:
                assert "full" in str(error)  # noqa: PT017 - the last step raises nothing
            faults.armed = False
            store.close()
        store = NodeStore(root)
        store.recover()
        removed = store.manifest.version("d") == (2, "removed")
        assert (root / "datasets" / "d").exists() != removed
        if removed:
            with pytest.raises(NotFound):
                store.read("d", "a/b", 0)
        else:
            assert seen(store, 0) == (1, content(0, 1))
        store.close()
        assert list((root / "staging").iterdir()) == []
        if faults.count < call:
            assert removed
            return


def test_an_error_at_every_step_of_a_record(template: Path, memory_path: Path) -> None:
    """Of a new dataset, in the place of one that was removed and whose folder is still there."""
    for call, root in _fresh(template, memory_path):
        store = NodeStore(root)
        store.manifest.put_record(new_record(version=2, state="removed"))
        store.close()
        with patched(Faults(call)) as faults:
            store = NodeStore(root)
            faults.armed = True
            try:
                store.put_record(new_record(version=3))
            except StoreError as error:
                assert "full" in str(error)  # noqa: PT017 - the last step raises nothing
            faults.armed = False
            store.close()
        store = NodeStore(root)
        store.put_record(new_record(version=3))
        assert seen(store, 0) == (0, None)
        np.testing.assert_array_equal(zarr.open_array(root / "datasets/d/a/b", mode="r")[...], np.zeros(24))
        store.close()
        assert list((root / "staging").iterdir()) == []
        assert not list(root.rglob(".*"))
        if faults.count < call:
            return
