"""Chunks read through a locator over the stores of one machine: sound bytes of one generation, or an error that names chunk and nodes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gpuflow.datasets.here import NodesHere
from gpuflow.errors import ChunkCorrupt, ChunkLost, NotFound, StaleChunk, StoreError
from gpuflow.storage.locator import read_chunk
from gpuflow.storage.roots import node_roots
from tests.datasets.two_nodes import Model, Stores
from tests.storage.stores import ARRAY, CHUNKS, content, new_store, stage


@pytest.fixture
def here(tmp_path: Path) -> Iterator[NodesHere]:
    """Two nodes: the first holds chunks 0 to 3, the second 2 to 4; nobody has chunk 5."""
    first, second = node_roots(tmp_path, 2)
    new_store(first, (0, 1, 2, 3)).close()
    new_store(second, (2, 3, 4)).close()
    nodes = NodesHere.below(tmp_path)
    yield nodes
    nodes.close()


def test_every_chunk_is_read_where_it_lies(here: NodesHere) -> None:
    record, lies = here.record("d"), here.whereabouts("d", ARRAY, CHUNKS)
    assert lies.generations.tolist() == [1, 1, 1, 1, 1, 0]
    first, second = here.stores
    assert [lies.holders_of(chunk) for chunk in (0, 2, 4, 5)] == [{first}, {first, second}, {second}, set()]
    for chunk in range(5):
        found = read_chunk(here, record, ARRAY, chunk, 1)
        assert (bytes(found.data), found.local) == (content(chunk, 1), True)
        assert found.node in lies.holders_of(chunk)
    with pytest.raises(ChunkLost, match=rf"d/a/b/c/5 \(searched: .*{first}.*{second}|{second}.*{first}"):
        read_chunk(here, record, ARRAY, 5, 1)


def test_the_newest_generation_is_read_and_another_than_the_known_one_refused(here: NodesHere) -> None:
    record, (first, second) = here.record("d"), here.stores.values()
    second.commit([stage(second, 3, 2)])
    assert bytes(read_chunk(here, record, ARRAY, 3, 2).data) == content(3, 2)
    with pytest.raises(StaleChunk, match="c/3 is at generation 2, not 1"):
        read_chunk(here, record, ARRAY, 3, 1)
    with pytest.raises(ChunkLost, match="c/2 "):
        read_chunk(here, record, ARRAY, 2, 2)  # the node that had it is gone
    assert here.whereabouts("d", ARRAY, CHUNKS).holders_of(3) == {second.node_id}
    assert first.manifest.replica("d", ARRAY, 3) is not None


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_a_damaged_chunk_is_read_from_another_node_and_made_good(here: NodesHere, damage: str) -> None:
    record, (first, _) = here.record("d"), here.stores.values()
    path = first.path("d", ARRAY, 2)
    match damage:
        case "flip":
            path.write_bytes(content(2, 1)[:-1] + b"\xff")
        case "truncate":
            path.write_bytes(content(2, 1)[:7])
        case "delete":
            path.unlink()
    assert bytes(read_chunk(here, record, ARRAY, 2, 1).data) == content(2, 1)
    assert path.read_bytes() == content(2, 1)
    assert first.read("d", ARRAY, 2)[1] == content(2, 1)
    assert not first.manifest.intents()


def test_damage_that_nobody_can_make_good_is_named(here: NodesHere) -> None:
    record, (first, second) = here.record("d"), here.stores.values()
    first.path("d", ARRAY, 0).write_bytes(bytes(16))
    with pytest.raises(ChunkCorrupt, match=f"c/0 on node {first.node_id} is damaged"):
        read_chunk(here, record, ARRAY, 0, 1)
    for store in (first, second):
        store.path("d", ARRAY, 2).write_bytes(bytes(16))
    with pytest.raises(ChunkCorrupt, match="c/2 on node"):
        read_chunk(here, record, ARRAY, 2, 1)


def test_a_chunk_of_fill_value_has_no_bytes(tmp_path: Path) -> None:
    model = Model.begun(Stores(*node_roots(tmp_path, 2)))
    model.nodes.close()
    nodes = NodesHere.below(tmp_path)
    assert not read_chunk(nodes, nodes.record("d"), ARRAY, 5, 1).data
    assert np.array_equal(nodes.whereabouts("d", ARRAY, CHUNKS).generations, np.ones(CHUNKS))
    nodes.close()


def test_names_that_are_not_there(here: NodesHere, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no dataset 'dd'; did you mean 'd'") as caught:
        here.record("dd")
    assert caught.value.known == ["d"]
    with pytest.raises(NotFound, match=r"no store .*nowhere.*; ingest something first"):
        NodesHere.below(tmp_path / "nowhere")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user to be")
def test_a_root_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    root = tmp_path / "root"
    new_store(root).close()
    root.chmod(0o700)
    tmp_path.chmod(0o755)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setuid(65534)
            NodesHere.below(root)
        except StoreError as error:
            status = 0 if str(root) in str(error) and "permissions" in str(error) else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
