"""A program ends, by itself or by us, with all that it started, and what it says stays small."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from gpuflow.steps.program import KEPT_NBYTES, Ended, run_program
from tests.cluster.processes import alive, until


def run(script: str, folder: Path, *, shell: bool = True, **options: Any) -> Ended:
    command = ["/bin/sh", "-c", script] if shell else [sys.executable, "-c", script]
    return run_program(command, dict(os.environ), folder, **{"timeout_seconds": 20, **options})


def test_it_runs_in_its_folder_and_its_end_is_known(tmp_path: Path) -> None:
    ended = run("pwd; echo wrong >&2; exit 3", tmp_path)
    assert (ended.status, ended.said, ended.output) == (3, f"{tmp_path}\nwrong\n", b"")
    assert run("kill -9 $$", tmp_path).status == -9


def test_stdin_and_stdout(tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    ended = run("cat; echo done >&2", tmp_path, given=data, most=len(data))
    assert (ended.status, ended.said, ended.overflow) == (0, "done\n", False)
    assert ended.output == data
    assert run("exit 0", tmp_path, given=data, most=10).status == 0  # it does not read, and that is its right
    assert run("cat", tmp_path, given=b"", most=10).output == b""


def test_more_than_it_may_write(tmp_path: Path) -> None:
    began = time.monotonic()
    assert run("yes", tmp_path, most=100_000).overflow
    assert time.monotonic() - began < 10


def test_a_flood_of_words_is_bounded(tmp_path: Path) -> None:
    ended = run("yes 'something is wrong' | head -c 30000000 >&2; echo the end >&2", tmp_path)
    assert ended.status == 0
    assert ended.said.endswith("the end\n")
    assert len(ended.said) < KEPT_NBYTES + 100
    assert "bytes before this]" in ended.said.splitlines()[0]


def test_when_its_time_is_up_all_of_it_is_killed(tmp_path: Path) -> None:
    began = time.monotonic()
    ended = run("sleep 600 & echo $! >child; echo begun; trap '' TERM; sleep 600; sleep 600", tmp_path, timeout_seconds=1)
    assert (ended.status, ended.said) == (None, "begun\n")
    assert time.monotonic() - began < 10
    child = int((tmp_path / "child").read_text())
    until(lambda: not alive(child), "the end of what it started")


def test_what_it_leaves_behind_does_not_hold_us_up(tmp_path: Path) -> None:
    began = time.monotonic()
    ended = run("sleep 600 & echo $! >child; echo out", tmp_path, most=100)
    assert (ended.status, ended.output) == (0, b"out\n")
    assert time.monotonic() - began < 10
    child = int((tmp_path / "child").read_text())
    until(lambda: not alive(child), "the end of what it left")


def test_memory(tmp_path: Path) -> None:
    script = "x = bytearray(10**9); print(len(x))"
    assert run(script, tmp_path, shell=False).status == 0
    ended = run(script, tmp_path, shell=False, memory_nbytes=500_000_000)
    assert ended.status == 1
    assert "MemoryError" in ended.said


def test_no_such_program(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no such program on this node"):
        run_program(["no-such-program"], dict(os.environ), tmp_path, timeout_seconds=1)
    (tmp_path / "text").write_text("no program")
    with pytest.raises(FileNotFoundError, match="there is no such program on this node"):
        run_program([str(tmp_path / "text")], dict(os.environ), tmp_path, timeout_seconds=1)
