"""One pipeline at a time, by what a node's files say."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from gpuflow.errors import StoreError
from gpuflow.storage.leases import LEASE_SECONDS, release, take
from gpuflow.storage.node import NodeStore


@pytest.fixture
def store(tmp_path: Path) -> Iterator[NodeStore]:
    with closing(NodeStore(tmp_path / "root")) as store:
        yield store


def lease_file(store: NodeStore) -> Path:
    return store.root / "leases" / "d.json"


def test_others_wait_until_it_is_given_back(store: NodeStore) -> None:
    assert take(store, "d", "one", "run-1") is None
    assert take(store, "d", "two", "run-2") == "run-1"
    assert take(store, "other", "two", "run-2") is None, "datasets are apart"
    release(store, "d", "run-2")
    assert take(store, "d", "two", "run-2") == "run-1", "who has none can give none back"
    release(store, "d", "run-1")
    assert take(store, "d", "two", "run-2") is None


def test_runs_of_one_pipeline_share_it(store: NodeStore) -> None:
    assert [take(store, "d", "one", run) for run in ("run-1", "run-2", "run-1")] == [None] * 3
    release(store, "d", "run-1")
    assert take(store, "d", "two", "run-3") == "run-2"
    release(store, "d", "run-2")
    assert take(store, "d", "two", "run-3") is None


@pytest.mark.parametrize("ahead", [-1.0, LEASE_SECONDS + 60.0])
def test_time_is_up_or_the_clock_was_set_back(store: NodeStore, ahead: float) -> None:
    take(store, "d", "one", "run-1")
    lease_file(store).write_text(json.dumps({"pipeline": "one", "runs": {"run-1": time.time() + ahead}}))
    assert take(store, "d", "two", "run-2") is None
    assert list(json.loads(lease_file(store).read_text())["runs"]) == ["run-2"]


@pytest.mark.parametrize("torn", ["", "{", "[]", '{"pipeline": "one"}', '{"pipeline": "one", "runs": {"run-1": "x"}}'])
def test_a_torn_file_is_no_lease(store: NodeStore, torn: str) -> None:
    take(store, "d", "one", "run-1")
    lease_file(store).write_text(torn)
    assert take(store, "d", "two", "run-2") is None


def test_of_many_at_once_one_gets_it(store: NodeStore) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda number: take(store, "d", f"pipeline-{number}", f"run-{number}"), range(40)))
    assert answers.count(None) == 1
    assert len(set(answers)) == 2


def test_a_root_that_is_no_folder(store: NodeStore) -> None:
    (store.root / "leases").write_text("")
    with pytest.raises(StoreError, match="a file is where a folder should be"):
        take(store, "d", "one", "run-1")
