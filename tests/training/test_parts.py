"""Samples of other nodes: index and inner chunks travel where that is less, verified like all others."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpuflow
from gpuflow.datasets.here import NodesHere
from gpuflow.errors import ChunkCorrupt, ChunkLost, DatasetChanged
from gpuflow.storage.dropping import drop
from gpuflow.storage.node import NodeStore
from gpuflow.storage.roots import node_roots
from gpuflow.training import access, objects
from gpuflow.training.loader import Loader
from tests.training.datasets import change, make_dataset, numbered

COUNT, IN_ONE = 96, 16
FIELD = numbered(COUNT, 32, 32)
SHARD = {"field": (IN_ONE, 32, 32)}
OBJECT = "d/field/c.1.0.0"
"""On the second node."""
AHEAD = 2 * 8 / (COUNT / 2)
"""The most that is read of the next epoch, of what is elsewhere."""


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Objects of some kilobytes count as large, and none is held for long; no gaps are read between inner chunks."""
    monkeypatch.setattr(access, "_WHOLE_NBYTES", 0)
    monkeypatch.setattr(access, "_HELD_NBYTES", 1)
    monkeypatch.setattr(objects, "_GAP_NBYTES", 0)


def lay(root: Path, *, nodes: int = 2, replicas: int = 1, compressor: str = "zstd") -> list[str]:
    inner = {"field": (1, 32, 32)}
    return make_dataset(
        root, "d", {"field": FIELD}, chunks=SHARD, inner=inner, nodes=nodes, replicas=replicas, compressor=compressor
    )


def make(root: Path, node: str | None, **options: Any) -> Loader:
    return gpuflow.loader(
        "d", 8, root=root, node=node, **{"device": "numpy", "number_as": "n", "cache": 0, "threads": 1, **options}
    )


def epoch(loader: Loader) -> int:
    """Samples, which are what their numbers say."""
    count = 0
    for batch in loader:
        assert (batch["field"] == FIELD[batch["n"]]).all()
        count += len(batch["n"])
    return count


def elsewhere_nbytes(root: Path) -> int:
    """Stored bytes on the second node."""
    return sum(path.stat().st_size for path in (root / "nodes/1/datasets/d/field").rglob("*") if path.is_file())


def test_what_travels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, _ = lay(tmp_path)
    with make(tmp_path, here) as loader:
        assert epoch(loader) == COUNT
        assert 0.9 < loader.received_nbytes / elsewhere_nbytes(tmp_path) < 1.1 + AHEAD  # each inner chunk once, and the indexes
        epoch(loader)
        assert loader.reads == {"here": 3, "elsewhere": 3}  # the indexes are known
    monkeypatch.setattr(access, "_HELD_NBYTES", 10)
    monkeypatch.setattr(access, "_WHOLE_NBYTES", 10**9)
    with make(tmp_path, here) as loader:
        epoch(loader)
        assert loader.received_nbytes > 2 * elsewhere_nbytes(tmp_path)


@pytest.mark.parametrize("options", [{"order": "none"}, {"order": "buffered", "window": 1}, {}])
def test_whole_where_it_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]) -> None:
    """In order, one object is in use at a time; under a permutation all are, which here fit into memory."""
    here, _ = lay(tmp_path)
    monkeypatch.setattr(access, "_HELD_NBYTES", 2**20 if not options else 80_000)
    with make(tmp_path, here, **options) as loader:
        for _ in range(2):
            epoch(loader)
        most = 3 if not options else 7  # the third epoch has begun
        assert 3 <= loader.reads["elsewhere"] <= most
        assert loader.received_nbytes <= elsewhere_nbytes(tmp_path) * most / 3


def test_what_several_threads_want_is_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, _ = lay(tmp_path)
    monkeypatch.setattr(access, "_HELD_NBYTES", 2**20)
    fetch = NodesHere.fetch

    def slowly(*arguments: Any) -> Any:
        time.sleep(0.05)
        return fetch(*arguments)

    monkeypatch.setattr(NodesHere, "fetch", slowly)
    with gpuflow.loader("d", 4, root=tmp_path, node=here, order="none", device="numpy", cache=0, threads=4, prefetch=4) as loader:
        for _ in loader:
            pass
        assert loader.reads["elsewhere"] == 3


def test_whole_where_most_is_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, _ = lay(tmp_path)
    asked: list[int] = []
    parts = NodesHere.parts
    monkeypatch.setattr(NodesHere, "parts", lambda *arguments: asked.append(1) or parts(*arguments))
    for batch_size, in_parts in ((COUNT, False), (8, True)):
        with gpuflow.loader("d", batch_size, root=tmp_path, node=here, device="numpy", cache=0, threads=1) as loader:
            assert sum(len(batch["field"]) for batch in loader) == COUNT
            assert loader.reads["elsewhere"] >= 3
        assert bool(asked) == in_parts


@pytest.mark.parametrize("compressor", ["none", "lz4", "blosc", "gzip", "zstd"])
@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in:UserWarning")
def test_without_checksums_whole(tmp_path: Path, compressor: str) -> None:
    here, _ = lay(tmp_path, compressor=compressor)
    with make(tmp_path, here) as loader:
        assert epoch(loader) == COUNT
        in_parts = loader.received_nbytes < (1.1 + AHEAD) * elsewhere_nbytes(tmp_path)
        assert in_parts == (compressor in ("gzip", "zstd"))


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("at", [40, -3])
def test_damage(tmp_path: Path, at: int) -> None:
    """In an inner chunk, or in the index."""
    here, there = lay(tmp_path)
    flip(tmp_path / "nodes/1/datasets" / OBJECT, at)
    with make(tmp_path, here) as loader, pytest.raises(ChunkCorrupt, match=f"{OBJECT} on node (n1|{there})"):
        epoch(loader)


@pytest.mark.parametrize("at", [40, -3])
def test_another_replica(tmp_path: Path, at: int) -> None:
    here, _, _ = lay(tmp_path, nodes=3, replicas=2)
    flip(tmp_path / "nodes/1/datasets" / OBJECT, at)
    with make(tmp_path, here) as loader:
        for _ in range(2):
            assert epoch(loader) == COUNT


def test_a_replica_goes(tmp_path: Path) -> None:
    """While it is read in parts; the other one serves on, and without one the chunk is lost."""
    here, there, other = lay(tmp_path, nodes=3, replicas=2)
    with make(tmp_path, here, prefetch=1) as loader:
        epoch(loader)
        for root, node in zip(node_roots(tmp_path, 3)[1:], (there, other), strict=True):
            remove(root, node)
            if node == there:
                assert epoch(loader) == COUNT
            else:
                with pytest.raises(ChunkLost, match=OBJECT):
                    epoch(loader)


def remove(root: Path, node: str) -> None:
    store = NodeStore(root, create=False)
    assert store.node_id == node
    assert drop(store, "d", "field", {1: 1})
    store.close()


def test_a_change_meanwhile(tmp_path: Path) -> None:
    here, _ = lay(tmp_path)
    with make(tmp_path, here, prefetch=1) as loader:
        epoch(loader)
        change(tmp_path / "nodes/1", "d", "field", 1, FIELD[IN_ONE : 2 * IN_ONE] + 1)
        with pytest.raises(DatasetChanged, match=rf"{OBJECT} was at generation 1 .* is at generation 2"):
            epoch(loader)


def test_inner_chunks_of_fill_value(tmp_path: Path) -> None:
    field = FIELD.copy()
    field[IN_ONE : 2 * IN_ONE : 2] = 0
    here, _ = make_dataset(tmp_path, "d", {"field": field}, chunks=SHARD, inner={"field": (1, 32, 32)}, nodes=2)
    with make(tmp_path, here) as loader:
        for batch in loader:
            np.testing.assert_array_equal(batch["field"], field[batch["n"]])
