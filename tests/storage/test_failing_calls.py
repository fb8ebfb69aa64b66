"""Disks that break, turn read-only or go away under every call, and files changed behind our back: the small part of `ci/faults`."""

from __future__ import annotations

import errno
import logging
from pathlib import Path

import pytest

from ci.proofs import corruption, failures
from ci.proofs.commit_paths import commit_paths

PATHS = commit_paths()


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "gpuflow")


@pytest.mark.parametrize("code", [errno.EIO, errno.EROFS], ids=["EIO", "EROFS"])
def test_a_call_that_fails_leaves_old_or_new_and_names_the_store(memory_path: Path, code: int) -> None:
    calls, wrong = failures.prove(PATHS["overwrite"], memory_path, code)
    assert calls > 10
    assert wrong == []


@pytest.mark.parametrize("name", ["group of 3", "empty over a file", "a record's next version", "removal"])
def test_a_root_that_is_gone_is_not_made_anew_and_loses_nothing(memory_path: Path, name: str) -> None:
    calls, wrong = failures.prove(PATHS[name], memory_path, errno.ENOENT)
    assert calls > 5
    assert wrong == []


def test_every_change_of_a_chunk_is_found_and_harms_no_other(memory_path: Path) -> None:
    for kind, counts in corruption.chunks(memory_path / "store").items():
        assert counts.wrong == [], kind
        assert counts.found == counts.made > 0, kind
