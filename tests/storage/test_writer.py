"""A writer is dead when its process is, and not before."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from gpuflow.storage.node import NodeStore
from gpuflow.storage.writer import Writer, dead_writers
from tests.storage.stores import ARRAY, content, new_store, recover

REPOSITORY = Path(__file__).parents[2]


def _dead(root: Path) -> list[str]:
    with dead_writers(root) as dead:
        return dead


def _holder(root: Path) -> subprocess.Popen[str]:
    """A process that has announced a commit."""
    code = f"from pathlib import Path; from tests.storage.stores import hold_store; hold_store(Path({str(root)!r}))"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_a_live_writer_is_not_dead_even_to_its_own_process(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    path = Path(writer.temporary())
    path.write_bytes(b"x")
    assert str(path) != writer.temporary()
    assert _dead(tmp_path) == []
    assert path.exists()
    writer.close()
    writer.close()
    assert list((tmp_path / "staging").iterdir()) == []


def test_a_writer_is_dead_once_its_process_is_killed(tmp_path: Path) -> None:
    new_store(tmp_path).close()
    process = _holder(tmp_path)
    store = NodeStore(tmp_path)
    try:
        assert _dead(tmp_path) == []
        assert store.recover() == 0
        assert len(store.manifest.intents()) == 1
        os.kill(process.pid, signal.SIGSTOP)  # hung is not dead
        assert store.recover() == 0
    finally:
        process.kill()
        process.communicate()
    (intent,) = store.manifest.intents()
    assert store.recover() == 1
    assert store.manifest.intents() == []
    assert not (tmp_path / "staging" / intent.writer).exists()
    assert store.read("d", ARRAY, 0)[1] == content(0, 1)
    store.close()
    assert list((tmp_path / "staging").iterdir()) == []


def test_two_recoverers_settle_once(tmp_path: Path, processes: ProcessPoolExecutor) -> None:
    new_store(tmp_path).close()
    holder = _holder(tmp_path)
    holder.kill()
    holder.communicate()
    start = time.time() + 0.3
    counts = [future.result() for future in [processes.submit(recover, tmp_path, start) for _ in range(2)]]
    assert sorted(counts) == [0, 1]
    store = NodeStore(tmp_path)
    assert store.manifest.intents() == []
    assert store.read("d", ARRAY, 0)[1] == content(0, 1)
    store.close()


def test_temporaries_of_the_dead_stay_when_settling_fails(tmp_path: Path) -> None:
    folder = tmp_path / "staging" / "dead"
    folder.mkdir(parents=True)
    (folder / "0").write_bytes(b"x")

    def fail() -> None:
        with dead_writers(tmp_path) as dead:
            raise RuntimeError(*dead)

    with pytest.raises(RuntimeError, match="dead"):
        fail()
    assert (folder / "0").exists()
    assert _dead(tmp_path) == ["dead"]
    assert not folder.exists()


def test_what_is_no_writer_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "staging").mkdir()
    (tmp_path / "staging" / "abc").write_bytes(b"a file that somebody left")
    assert _dead(tmp_path) == []


def test_no_writer_is_made_while_the_dead_are_settled(tmp_path: Path) -> None:
    """Half made, it would look dead."""
    (tmp_path / "staging").mkdir()
    made: list[Writer] = []
    thread = threading.Thread(target=lambda: made.append(Writer(tmp_path)))
    with dead_writers(tmp_path) as dead:
        thread.start()
        time.sleep(0.05)
        assert list((tmp_path / "staging").iterdir()) == dead == []
    thread.join(10)
    made[0].close()


def test_threads_share_one_writer(tmp_path: Path) -> None:
    store = NodeStore(tmp_path)
    store.close()
    store = NodeStore(tmp_path)
    barrier, found = threading.Barrier(8), []

    def ask() -> None:
        barrier.wait()
        found.append(store.writer)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, found))) == 1
    assert len(list((tmp_path / "staging").iterdir())) == 1
    store.close()
