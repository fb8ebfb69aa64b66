"""Replicas that are not there, or damaged, while others hold the same chunks: nothing fails, and what is damaged is made good."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ci.benchmarks.routing import ARRAY, lay
from gpuflow.cluster.connection import Connection, connect
from gpuflow.cluster.launch import node_roots
from gpuflow.execution.receipt import Receipt
from gpuflow.execution.run import run_pipeline
from gpuflow.pipelines.load import from_dict
from tests.helpers import read_embedded

CHUNKS, SIZE = 24, 64
BAD = [chunk for chunk in range(CHUNKS) if chunk % 4 < 2]
DATASETS = ("missing-files", "flipped", "rows", "in-place", "both")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two nodes that both hold every chunk."""
    root: Path = tmp_path_factory.mktemp("lacks")
    for name in DATASETS:
        lay(node_roots(root, 2), name, CHUNKS, SIZE * 4, lambda chunk: [0, 1])
    return root


@pytest.fixture(scope="module")
def two_nodes(root: Path) -> Iterator[Connection]:
    with connect(nodes=2, workers=1, root=root) as connection:
        connection.ask("gf_sync")
        yield connection


def chunk_file(root: Path, dataset: str, chunk: int) -> Path:
    return root / "datasets" / dataset / ARRAY / f"c.{chunk}"


def flip(root: Path, dataset: str) -> None:
    for chunk in BAD:
        data = bytearray(chunk_file(root, dataset, chunk).read_bytes())
        data[7] ^= 1
        chunk_file(root, dataset, chunk).write_bytes(data)


def remove_files(root: Path, dataset: str) -> None:
    for chunk in BAD:
        chunk_file(root, dataset, chunk).unlink()


def remove_rows(root: Path, dataset: str) -> None:
    with sqlite3.connect(root / "manifest.sqlite") as manifest:
        (number,) = manifest.execute("SELECT id FROM array WHERE dataset = ?", (dataset,)).fetchone()
        manifest.executemany("DELETE FROM replica WHERE array = ? AND chunk = ?", [(number, chunk) for chunk in BAD])


def run(connection: Connection, dataset: str, output: Any) -> Receipt:
    return run_pipeline(connection, from_dict({"source": dataset, "steps": [{"map": "x * 2"}], "output": output}))


def holders(connection: Connection, dataset: str, chunks: list[int]) -> set[tuple[str, ...]]:
    """Sets of nodes that, for all that the scheduler knows, hold one of `chunks`; node0, node1."""
    answer = connection.ask("gf_holders", dataset=dataset, array=ARRAY, count=CHUNKS)
    return {tuple(node.split("-")[0] for node in answer[chunk]) for chunk in chunks}


def expected() -> Any:
    return 2 * np.repeat(280 + np.arange(CHUNKS) % 7, SIZE).astype("float32")


def test_the_other_holder_does_what_one_does_not_have(two_nodes: Connection, root: Path) -> None:
    assert holders(two_nodes, "rows", BAD) == {("node0", "node1")}
    remove_rows(root, "rows")
    receipt = run(two_nodes, "rows", "rows-out").to_dict()
    assert receipt["failures"] == []
    assert receipt["chunks"] == {"total": CHUNKS, "done": CHUNKS, "skipped": 0, "failed": 0}
    np.testing.assert_array_equal(read_embedded(root, "rows-out", ARRAY), expected())
    good = [chunk for chunk in range(CHUNKS) if chunk not in BAD]
    assert holders(two_nodes, "rows", good) == {("node0", "node1")}
    seen = holders(two_nodes, "rows", BAD)
    assert ("node1",) in seen, "what node0 was given of them, it could not serve, and said so"
    assert seen <= {("node1",), ("node0", "node1")}
    again = run(two_nodes, "rows", "rows-again").to_dict()
    assert (again["failures"], again["chunks"]["done"]) == ([], CHUNKS)


@pytest.mark.parametrize(("dataset", "damage"), [("missing-files", remove_files), ("flipped", flip)])
def test_what_is_damaged_is_made_good_on_the_way(two_nodes: Connection, root: Path, dataset: str, damage: Any) -> None:
    damage(root, dataset)
    receipt = run(two_nodes, dataset, f"{dataset}-out").to_dict()
    assert receipt["failures"] == []
    assert receipt["chunks"] == {"total": CHUNKS, "done": CHUNKS, "skipped": 0, "failed": 0}
    np.testing.assert_array_equal(read_embedded(root, f"{dataset}-out", ARRAY), expected())
    assert {each["how"] for each in receipt["healed"]} == {"copied"}
    healed = len({each["chunk"] for each in receipt["healed"]})
    assert 0 < healed <= len(BAD), "those that node0 was given"
    assert receipt["locality"]["shipped_bytes"] == {"repair": 4 * SIZE * healed}
    whole = [chunk for chunk in BAD if chunk_file(root, dataset, chunk).exists()]
    sound = [
        c for c in whole if chunk_file(root, dataset, c).read_bytes() == chunk_file(root / "nodes/1", dataset, c).read_bytes()
    ]
    assert len(sound) == healed
    assert holders(two_nodes, dataset, sound) == {("node0", "node1")}


def test_in_place_a_damaged_replica_is_made_good_and_changed_once(two_nodes: Connection, root: Path) -> None:
    flip(root, "in-place")
    receipt = run(two_nodes, "in-place", {"in_place": True}).to_dict()
    assert (receipt["failures"], receipt["chunks"]["done"]) == ([], CHUNKS)
    assert receipt["bytes"]["shipped"] == 4 * SIZE * len(receipt["healed"]) > 0
    np.testing.assert_array_equal(read_embedded(root, "in-place", ARRAY), expected())


def test_where_all_replicas_are_damaged_the_error_says_so(two_nodes: Connection, root: Path) -> None:
    flip(root, "both")
    flip(root / "nodes" / "1", "both")
    receipt = run(two_nodes, "both", "both-out").to_dict()
    assert len(receipt["failures"]) == len(BAD)
    assert all(" is damaged: " in failure["error"] for failure in receipt["failures"])
    assert receipt["chunks"]["done"] == CHUNKS - len(BAD)
    assert receipt["seconds"]["wall"] < 10, "nobody waited for a node that might come back"
