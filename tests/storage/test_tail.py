"""A node's commits from any number on: chunks from their rows, datasets from what records told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from gpuflow.errors import StoreError
from gpuflow.storage import news
from gpuflow.storage.news import FORGOTTEN, PUBLISHED, REMOVED, changes_told
from gpuflow.storage.node import NodeStore
from gpuflow.storage.tail import Page, Tail
from tests.storage.stores import ARRAY, new_record, new_store, stage


@pytest.fixture
def store(tmp_path: Path) -> Iterator[NodeStore]:
    with closing(new_store(tmp_path / "root", ())) as store:
        yield store


@pytest.fixture
def tail(store: NodeStore) -> Iterator[Tail]:
    with closing(Tail(store.root)) as tail:
        yield tail


def test_the_newest_state_of_each_chunk_in_order(store: NodeStore, tail: Tail) -> None:
    begun = tail.page(0)
    assert [one.kind for one in begun.news] == [PUBLISHED]
    for chunk, generation in [(0, 1), (1, 1), (0, 2), (2, 1)]:
        store.commit([stage(store, chunk, generation)], run=f"run{generation}")
    page = tail.page(begun.until)
    assert page.rows["chunk"].tolist() == [1, 0, 2], "chunk 0 only as it is now"
    assert page.rows["generation"].tolist() == [1, 2, 1]
    assert (page.until, page.more, page.newest) == (page.rows["seq"][-1], False, tail.newest())
    assert [page.arrays[number] for number in page.rows["array"].tolist()] == [("d", ARRAY)] * 3
    assert [run for _, _, run in page.moments] == ["run1", "run2", "run1"]
    assert all(abs(time - page.moments[0][1]) < 60 for _, time, _ in page.moments)
    assert tail.page(page.until).is_empty
    assert Page.from_wire(page.to_wire()).rows.tobytes() == page.rows.tobytes()
    assert Page.from_wire(begun.to_wire()).news == begun.news


def test_page_by_page(store: NodeStore, tail: Tail) -> None:
    store.commit([stage(store, chunk, 1) for chunk in range(5)])
    at, found, pages = 0, list[int](), 0
    while True:
        page = tail.page(at, limit=2)
        found += page.rows["chunk"].tolist()
        at, pages = page.until, pages + 1
        if not page.more:
            break
    assert (found, pages) == ([0, 1, 2, 3, 4], 3)
    assert tail.page(0, "other").is_empty
    assert tail.page(0, "other").until == tail.newest(), "what is passed over is not looked at again"


def test_commits_that_follow_at_once_share_a_moment(store: NodeStore, tail: Tail) -> None:
    for chunk in range(5):
        store.commit([stage(store, chunk, 1)], durable=False, run="a")
    assert len(tail.page(0).moments) <= 2, "one row for all of them, or the machine was slow"


def test_a_removed_dataset_and_one_made_anew(store: NodeStore, tail: Tail) -> None:
    store.commit([stage(store, 0, 1)])
    before = tail.newest()
    store.put_record(new_record(version=2, state="removed"))
    store.put_record(new_record(version=3))
    store.commit([stage(store, 0, 1)])
    page = tail.page(before)
    assert [(one.kind, one.version) for one in page.news] == [(REMOVED, 2), (PUBLISHED, 3)]
    assert page.rows["generation"].tolist() == [1]
    assert page.versions == {"d": 3}


def test_news_are_forgotten_and_then_told_as_they_are(store: NodeStore, tail: Tail, monkeypatch: pytest.MonkeyPatch) -> None:
    at = tail.page(0).until
    monkeypatch.setattr(news, "MOST_NEWS", 1)
    for version in range(2, 8):
        store.put_record(new_record(version=version, state="writing" if version % 2 else "ready"))
    store.put_record(new_record(name="e"))
    store.manifest._notes.prune(1e9)
    page = tail.page(at)
    assert page.forgotten
    assert [(one.kind, one.dataset) for one in page.news] == [(PUBLISHED, "e")], "d is being written, as its record says"
    assert FORGOTTEN not in {one.kind for one in page.news}
    assert not tail.page(page.until - 1).forgotten, "a follower that knows what is forgotten misses nothing"


def test_what_a_record_tells() -> None:
    writing, ready = new_record(state="writing"), new_record(version=2)
    assert changes_told(None, writing) == []
    assert changes_told(writing, ready) == [(PUBLISHED, "")]
    assert changes_told(ready, ready.next(statistics={"a": 1})) == []
    assert changes_told(ready, ready.next(arrays={})) == [(REMOVED, ARRAY), (PUBLISHED, "")]
    assert changes_told(ready, ready.next(state="removed")) == [(REMOVED, "")]


def test_damaged_rows_are_not_told(store: NodeStore, tail: Tail) -> None:
    store.commit([stage(store, chunk, 1) for chunk in range(2)], run="r")
    at = tail.page(0).rows["seq"][0] - 1
    store.manifest.query("UPDATE replica SET nbytes = 7 WHERE chunk = 0")
    store.manifest.query("UPDATE moment SET run = 'x'")
    store.manifest.query("UPDATE news SET dataset = 'x'")
    page = tail.page(int(at))
    assert page.rows["chunk"].tolist() == [1]
    assert page.moments[-1][1:] == (0.0, "")
    assert [one.dataset for one in tail.page(0).news] == ["d"], "as its record says"


def test_who_waits_is_told_at_once(store: NodeStore, tail: Tail) -> None:
    at = tail.newest()
    assert tail.wait(at, 0.02).is_empty
    store.commit([stage(store, 3, 1)])
    assert tail.wait(at, 30).rows["chunk"].tolist() == [3]


def test_no_store_and_a_broken_one(tmp_path: Path, store: NodeStore, tail: Tail) -> None:
    with pytest.raises(StoreError, match="holds no gpuflow store"):
        Tail(tmp_path)
    store.manifest.set_sequence(99)
    store.manifest.query("ALTER TABLE news RENAME TO old")
    with pytest.raises(StoreError, match=r"manifest: .*news"):
        tail.page(0)
