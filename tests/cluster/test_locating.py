"""A cluster's chunks through its locators, on a real cluster: where they lie when that is here, else from a peer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from gpuflow.cluster.connection import Connection
from gpuflow.cluster.locating import ClientLocator, WorkerLocator
from gpuflow.cluster.worker_plugin import runtime
from gpuflow.datasets import catalog
from gpuflow.errors import ChunkLost, NotFound, StaleChunk
from gpuflow.storage.locator import read_chunk
from gpuflow.storage.metadata import ArrayMetadata
from gpuflow.storage.node import NodeStore
from gpuflow.storage.record import DatasetRecord
from tests.storage.stores import ARRAY, CHUNKS, content, new_record, stage

NAME = "located"


def _lay(store: NodeStore, shares: dict[str, list[int]], generation: int) -> None:
    store.commit([stage(store, chunk, generation, name=NAME) for chunk in shares.get(store.node_id, ())])


@pytest.fixture(scope="module")
def laid(three_nodes: Connection) -> Connection:
    """Each node holds two of the six chunks."""
    assert catalog.publish(three_nodes, new_record(NAME))
    nodes = list(three_nodes.nodes())
    three_nodes.each_node(_lay, {node: [number, number + 3] for number, node in enumerate(nodes)}, 1)
    three_nodes.ask("gf_sync")
    return three_nodes


@pytest.fixture
def locator(laid: Connection) -> Iterator[ClientLocator]:
    found = ClientLocator(laid)
    yield found
    found.close()


def test_a_client_on_a_nodes_machine_reads_without_the_network(laid: Connection, locator: ClientLocator) -> None:
    before = laid.sent_bytes("read")
    lies = locator.whereabouts(NAME, ARRAY, CHUNKS)
    assert lies.generations.tolist() == [1] * CHUNKS
    for chunk in range(CHUNKS):
        found = read_chunk(locator, locator.record(NAME), ARRAY, chunk, 1)
        assert (bytes(found.data), found.local) == (content(chunk, 1), True)
        assert {found.node} == lies.holders_of(chunk)
    assert laid.sent_bytes("read") == before


def test_a_client_elsewhere_reads_from_the_workers(laid: Connection, locator: ClientLocator) -> None:
    before = laid.sent_bytes("read")
    locator._here = {}  # as on another machine
    lies = locator.whereabouts(NAME, ARRAY, CHUNKS)
    for chunk in range(CHUNKS):
        found = read_chunk(locator, locator.record(NAME), ARRAY, chunk, 1)
        assert (bytes(found.data), found.local, {found.node}) == (content(chunk, 1), False, lies.holders_of(chunk))
    assert laid.sent_bytes("read") - before == 16 * CHUNKS


def test_chunks_that_nobody_has_and_names_that_are_not_there(laid: Connection, locator: ClientLocator) -> None:
    metadata = ArrayMetadata.create((8,), (4,), np.dtype("int32"), compressor="none")
    assert catalog.publish(laid, DatasetRecord("located-half", 1, "ready", {"x": metadata.document}))
    with pytest.raises(ChunkLost, match=r"located-half/x/c\.1"):
        read_chunk(locator, locator.record("located-half"), "x", 1, 0)
    locator._here = {}
    with pytest.raises(ChunkLost, match=r"located-half/x/c\.1"):
        read_chunk(locator, locator.record("located-half"), "x", 1, 0)
    with pytest.raises(NotFound, match="no dataset 'locatd'; did you mean 'located'"):
        locator.record("locatd")


def _read_all(generations: list[int]) -> dict[str, Any]:
    """In a task: what this worker reads of the dataset, by where it came from."""
    locator = WorkerLocator(runtime())
    record, lies = locator.record(NAME), locator.whereabouts(NAME, ARRAY, CHUNKS)
    found = [read_chunk(locator, record, ARRAY, chunk, generation) for chunk, generation in enumerate(generations)]
    data = [bytes(one.data) for one in found]
    return {
        "data": data,
        "local": [one.local for one in found],
        "own": [runtime().store.node_id in lies.holders_of(c) for c in range(6)],
    }


def test_a_worker_reads_its_nodes_chunks_and_has_the_others_sent(laid: Connection) -> None:
    for addresses in laid.nodes().values():
        answer = laid.client.submit(_read_all, [1] * CHUNKS, workers=addresses[:1], pure=False).result()
        assert answer["data"] == [content(chunk, 1) for chunk in range(CHUNKS)]
        assert answer["local"] == answer["own"]
        assert sum(answer["own"]) == 2


def _replace(store: NodeStore, node: str) -> None:
    if store.node_id == node:
        store.commit([stage(store, 0, 2, name=NAME)])


def test_what_has_changed_since_is_refused_wherever_it_is_read(laid: Connection, locator: ClientLocator) -> None:
    node = next(iter(laid.nodes()))
    laid.each_node(_replace, node)
    laid.ask("gf_sync")
    with pytest.raises(StaleChunk, match="located/a/b/c/0 is at generation 2, not 1"):
        read_chunk(locator, locator.record(NAME), ARRAY, 0, 1)
    locator._here = {}
    with pytest.raises(StaleChunk, match="located/a/b/c/0 is at generation 2, not 1"):
        read_chunk(locator, locator.record(NAME), ARRAY, 0, 1)
    assert bytes(read_chunk(locator, locator.record(NAME), ARRAY, 0, 2).data) == content(0, 2)
