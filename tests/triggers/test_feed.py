"""The feed over real stores and over a real cluster."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

import gpuflow
from gpuflow.cluster.connection import Connection
from gpuflow.datasets import catalog
from gpuflow.errors import ConfigError, NotFound
from gpuflow.storage.disk import digest
from gpuflow.storage.manifest import Replica
from gpuflow.storage.node import NodeStore
from gpuflow.triggers.event import Cursor, Event
from gpuflow.triggers.feed import events
from tests.cli.commands import command
from tests.datasets.two_nodes import Model, Stores
from tests.storage.stores import ARRAY


@pytest.fixture
def model(tmp_path: Path) -> Iterator[Model]:
    nodes = Stores(tmp_path / "root", tmp_path / "root" / "nodes" / "1")
    yield Model.begun(nodes)
    nodes.close()


def _told(found: list[Event]) -> list[tuple[str, int | None, int]]:
    return [(event.kind, event.chunk, event.generation) for event in found]


def test_all_there_is_and_then_what_comes(model: Model, tmp_path: Path) -> None:
    with events(root=tmp_path / "root") as feed:
        found, cursor = list(feed), feed.cursor
    assert sorted(_told(found)[:-1]) == [("created", chunk, 1) for chunk in range(6)]
    assert _told(found)[-1] == ("published", None, 1), "after all its chunks, which are on two nodes"
    model.write(4, 0, 7)
    model.write(4, 0, 8)
    with events(cursor, root=tmp_path / "root") as feed:
        assert _told(list(feed)) == [("updated", 4, 3)]
        assert feed.notices == []
        assert list(events(feed.cursor, root=tmp_path / "root")) == []


def test_a_copy_is_no_news(model: Model, tmp_path: Path) -> None:
    with events("now", root=tmp_path / "root") as feed:
        cursor = feed.cursor
    first, second = model.nodes.stores
    replica, data = first.read("d", ARRAY, 0)
    second.adopt(replica, data)
    model.write(0, 1, 5)
    with events(cursor, root=tmp_path / "root") as feed:
        assert [event.generation for event in feed] == [2], "the newest; the copy of the first is on the other node"


def test_following_wakes_up_and_ends_when_closed(model: Model, tmp_path: Path) -> None:
    with events("now", root=tmp_path / "root", follow=True) as feed:
        assert feed.next(0.05) is None
        model.write(3, 1, 9)
        event = feed.next(20)
        assert event is not None
        assert (event.chunk, event.generation, event.kind) == (3, 2, "updated")
    assert list(feed) == []


async def test_as_an_async_iterator(model: Model, tmp_path: Path) -> None:
    with events(root=tmp_path / "root", dataset="d") as feed:
        assert len([event async for event in feed]) == 7
    with events(root=tmp_path / "root", dataset="none") as feed:
        assert [event async for event in feed] == []


def test_a_cursor_survives_joins_losses_and_a_store_made_anew(model: Model, tmp_path: Path) -> None:
    root = tmp_path / "root"
    with events(root=root) as feed:
        list(feed)
        cursor = feed.cursor
    with closing(NodeStore(root / "nodes" / "2", name="n2")) as third:
        third.put_record(catalog.find(model.nodes, "d"))
        replica = Replica("d", ARRAY, 2, 5, 1, digest(b"z"), digest(b"r"), digest(b"i"))
        third.commit([third.stage(replica, b"z")])
    with events(cursor, root=root) as feed:
        assert ("updated", 2, 5) in _told(list(feed)), "of the node that joined"
    shutil.rmtree(root / "nodes" / "1")
    with events(cursor, root=root) as feed:
        list(feed)
        assert any("is not there" in notice for notice in feed.notices)
        assert set(Cursor.parse(cursor).nodes) < set(Cursor.parse(feed.cursor).nodes), "the lost one is not forgotten"
    ahead = Cursor({node: number + 1000 for node, number in Cursor.parse(cursor).nodes.items()})
    with events(str(ahead), root=root) as feed:
        assert len(list(feed)) > 3
        assert any("counts its commits anew" in notice for notice in feed.notices)
        assert Cursor.parse(feed.cursor).nodes[model.nodes.stores[0].node_id] < 1000


def test_wrong_cursors_are_one_error(model: Model, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the cursor is of other nodes: elsewhere"):
        events(str(Cursor({"elsewhere": 3})), root=tmp_path / "root")
    with pytest.raises(ConfigError, match="is no cursor"):
        events("x", root=tmp_path / "root")
    with pytest.raises(NotFound, match="no store"):
        events(root=tmp_path / "nothing")


def test_the_command(model: Model, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shown = command("events", "--json", root=root)
    *lines, cursor = shown.splitlines()
    assert len(lines) == 7
    keys = {"sequence", "node", "dataset", "array", "chunk", "generation", "digest", "nbytes", "recipe", "run", "time", "kind"}
    assert all(set(json.loads(line)) == keys for line in lines)
    assert command("events", "--since", cursor.removeprefix("cursor: "), root=root).startswith("cursor: ")
    assert "created    d/" in command("events", "--dataset", "d", root=root)
    assert "error: since: 'bad' is no cursor" in command("events", "--since", "bad", root=root, status=2)


def test_of_a_cluster(three_nodes: Connection, tmp_path: Path) -> None:
    """An ingest, a run and what somebody writes: each with its run, each once, published after its chunks."""
    np.save(tmp_path / "a.npy", np.arange(12 * 4.0).reshape(12, 4))
    with events("now", connection=three_nodes, follow=True) as feed:
        receipt = gpuflow.ingest(tmp_path / "a.npy", "feed-raw", connection=three_nodes)
        found = []
        while not found or found[-1].kind != "published":
            event = feed.next(30)
            assert event is not None, found
            found.append(event)
        chunks = [event for event in found if event.chunk is not None]
        assert {event.run for event in chunks} == {receipt.run_id}
        assert {event.kind for event in chunks} == {"created"}
        cursor = feed.cursor
    assert list(events(cursor, connection=three_nodes, dataset="feed-raw")) == []
