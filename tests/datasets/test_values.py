"""Small arrays as the nodes have them together: of each chunk the newest generation, whole, or an error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gpuflow.datasets import catalog
from gpuflow.datasets.values import array_values, chunk_values
from gpuflow.errors import ChunkCorrupt, ChunkLost
from tests.datasets.two_nodes import Model, Stores
from tests.storage.stores import ARRAY


def test_the_newest_whole_one_of_each_chunk(tmp_path: Path) -> None:
    nodes = Stores(tmp_path / "n0", tmp_path / "n1")
    model = Model.begun(nodes)
    model.write(0, 1, 7)  # the first node has the generation before
    record = catalog.find(nodes, "d")
    values = array_values(nodes, record, ARRAY)
    np.testing.assert_array_equal(chunk_values(nodes, record, ARRAY, [0])[0].reshape(-1)[0], 7)
    assert (values.shape, values.dtype) == (record.array(ARRAY).shape, record.array(ARRAY).dtype)
    path = next((nodes.stores[1].root / "datasets/d" / ARRAY).rglob("*0"))
    path.write_bytes(b"?" * path.stat().st_size)
    with pytest.raises(ChunkCorrupt):  # and not what the first node still has of it
        chunk_values(nodes, record, ARRAY, [0])
    np.testing.assert_array_equal(chunk_values(nodes, record, ARRAY, [1])[1].reshape(-1)[0], 1)
    nodes.close()


def test_a_chunk_that_no_node_has(tmp_path: Path) -> None:
    nodes = Stores(tmp_path / "n0", tmp_path / "n1")
    Model.begun(nodes)
    record, store = catalog.find(nodes, "d"), nodes.stores[1]
    nodes.stores = nodes.stores[:1]
    with pytest.raises(ChunkLost, match="n0"):
        array_values(nodes, record, ARRAY)
    nodes.close()
    store.close()
