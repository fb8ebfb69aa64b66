"""What is made of a source that grows: only what is new is done, and what comes out is what the whole would have made."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpuflow
from gpuflow.cluster.connection import Connection
from gpuflow.datasets import catalog
from gpuflow.datasets.snapshots import take_snapshot
from gpuflow.errors import NameTaken
from gpuflow.execution import run as run_module
from gpuflow.execution.receipt import Receipt
from gpuflow.execution.run import run_pipeline
from gpuflow.execution.summary import run_statistics
from gpuflow.objectstore.append import append_sources
from gpuflow.objectstore.repair import scrub_dataset
from gpuflow.objectstore.sources import open_source
from gpuflow.pipelines import stored
from gpuflow.pipelines.load import any_from_dict as from_any
from gpuflow.pipelines.load import from_dict
from gpuflow.storage import metadata
from tests.helpers import read_back
from tests.objectstore.test_append import Killed, table, write
from tests.objectstore.test_repair import file_of, flip, roots_of

_names = (f"source-{number}" for number in itertools.count())


def run(connection: Connection, source: str, output: Any, *steps: Any) -> dict[str, Any]:
    receipt = run_pipeline(connection, from_dict({"source": source, "steps": list(steps), "output": output}))
    assert receipt.status == "done", receipt.outcome.tally.failures
    return counts(receipt)


def counts(receipt: Receipt) -> dict[str, Any]:
    chunks: dict[str, Any] = receipt.to_dict()["chunks"]
    return chunks


def rows(connection: Connection, path: Path, name: str, start: int, stop: int) -> None:
    assert append_sources(connection, [open_source(write(path / f"{name}-{start}.zarr", start, stop))], name).status == "done"


def same(connection: Connection, one: str, other: str, *arrays: str) -> None:
    for array in arrays:
        np.testing.assert_array_equal(read_back(roots_of(connection), one, array), read_back(roots_of(connection), other, array))


@pytest.mark.parametrize(
    ("steps", "output", "done", "again"),
    [
        ([{"map": "x + 1"}], {}, 8, 3 + 1),  # t2m: the partial one and 2 more; time: 1 more
        ([{"map": "x + 1"}], {"chunks": {"time": 1}}, 8, 3 + 1),
        ([{"gaussian": {"sigma": {"time": 1}}}], {}, 8, 4 + 1),
    ],
    ids=["map", "cut otherwise", "neighbours"],
)
def test_only_what_is_new_is_done(
    three_nodes: Connection, tmp_path: Path, steps: list[Any], output: dict[str, Any], done: int, again: int
) -> None:
    source = next(_names)
    rows(three_nodes, tmp_path, source, 0, 10)
    run(three_nodes, source, {"dataset": f"{source}-out", **output}, *steps)
    rows(three_nodes, tmp_path, source, 10, 18)
    grown = run(three_nodes, source, {"dataset": f"{source}-out", **output}, *steps)
    whole = run(three_nodes, source, {"dataset": f"{source}-whole", **output}, *steps)
    same(three_nodes, f"{source}-out", f"{source}-whole", "t2m", "time", "y")
    assert (whole["done"], grown["done"]) == (done, again)
    assert run(three_nodes, source, {"dataset": f"{source}-out", **output}, *steps)["done"] == 0


@pytest.mark.parametrize(
    ("owner", "name", "former", "kept"),
    [
        (stored, "inner_chunks", lambda shape, itemsize: (1, *shape[1:]), "codecs"),
        (metadata, "FLAT_KEYS", {"name": "default", "configuration": {"separator": "/"}}, "chunk_key_encoding"),
    ],
    ids=["inner chunks", "folders for chunks"],
)
def test_an_output_that_has_grown_is_stored_as_it_was_begun(
    three_nodes: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, former: Any, kept: str
) -> None:
    """What would be chosen for it now is another form, as for a longer array it may be, or of another version."""
    source, step = next(_names), {"map": "x + 1"}
    output = {"dataset": f"{source}-out"}
    rows(three_nodes, tmp_path, source, 0, 10)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, former)
        run(three_nodes, source, output, step)
    form = catalog.find(three_nodes, f"{source}-out").arrays["t2m"][kept]
    rows(three_nodes, tmp_path, source, 10, 18)
    assert run(three_nodes, source, output, step)["done"] == 3 + 1
    assert run(three_nodes, source, output, step)["done"] == 0
    record = catalog.find(three_nodes, f"{source}-out")
    assert (record.arrays["t2m"][kept], set(record.grown)) == (form, {"t2m", "time"})
    assert catalog.find(three_nodes, source).grown == ()


def test_an_output_with_folders_for_its_chunks_is_there(
    three_nodes: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its source has not grown."""
    source, step = next(_names), {"map": "x + 1"}
    rows(three_nodes, tmp_path, source, 0, 10)
    with monkeypatch.context() as patch:
        patch.setattr(metadata, "FLAT_KEYS", {"name": "default", "configuration": {"separator": "/"}})
        run(three_nodes, source, {"dataset": f"{source}-out"}, step)
    assert run(three_nodes, source, {"dataset": f"{source}-out"}, step)["done"] == 0


def test_statistics_of_what_is_there_are_not_taken_again(three_nodes: Connection, tmp_path: Path) -> None:
    source = next(_names)
    rows(three_nodes, tmp_path, source, 0, 14)
    asked = from_any(
        {"source": source, "statistics": {"per": "y", "quantiles": [0.1, 0.5], "histogram": {"bins": 5, "range": [200, 340]}}}
    )
    assert run_statistics(three_nodes, asked).outcome.tally.done == 4
    rows(three_nodes, tmp_path, source, 14, 26)
    grown = run_statistics(three_nodes, asked)
    assert grown.outcome.tally.done == 7 - 3  # the one that was not whole, and three more
    assert "of 3 chunks are kept" in grown.notes[0]
    record = catalog.find(three_nodes, source)
    catalog.publish(three_nodes, record.next(statistics={}))
    whole = run_statistics(three_nodes, asked)
    assert whole.outcome.tally.done == 7
    assert grown.results == whole.results  # to the last bit
    kept = len(catalog.find(three_nodes, source).statistics)
    assert len(record.statistics) == kept  # what was computed when it was shorter is not kept for ever


def test_a_changed_chunk_is_taken_again(three_nodes: Connection, tmp_path: Path) -> None:
    source = next(_names)
    rows(three_nodes, tmp_path, source, 0, 16)
    compute = from_any({"source": source, "statistics": {}})
    run_statistics(three_nodes, compute)
    with gpuflow.open(source, mode="r+", connection=three_nodes) as dataset:
        dataset["t2m"][5] = 0
    changed = run_statistics(three_nodes, compute)
    assert changed.results is not None
    assert changed.results["t2m"]["min"] == 0


@pytest.fixture(scope="module")
def drifting(three_nodes: Connection, tmp_path_factory: pytest.TempPathFactory) -> tuple[np.ndarray, Callable[[str], Any]]:
    """Values whose second half is another one; and what appends them to a dataset, half by half."""
    path = tmp_path_factory.mktemp("drifting")
    values = np.random.default_rng(2).normal(10, 2, (32, 3, 5)).astype("float32")
    values[16:, 1] += 4  # mean and std of one channel move by about a std
    np.save(path / "1.npy", values[:16])
    np.save(path / "2.npy", values[16:])

    def append(name: str) -> Iterator[None]:
        append_sources(three_nodes, [open_source(path / "1.npy", chunk_samples=4)], name)
        yield
        append_sources(three_nodes, [open_source(path / "2.npy")], name)
        yield

    return values, append


@pytest.mark.parametrize(
    ("refit", "says", "done"),
    [
        (None, "keeps the fit that it began with (refit: never): mean and std have moved by 1", 4),
        ("never", "keeps the fit that it began with (refit: never): mean and std have moved by 1", 4),
        ("drift > 5", "keeps the fit that it began with (refit: drift > 5): mean and std have moved by 1", 4),
        ("drift > .05", "is fitted anew (refit: drift > 0.05): mean and std have moved by 1", 8),
        ("always", "is fitted anew (refit: always): mean and std have moved by 1", 8),
    ],
)
def test_a_fit_is_kept_or_taken_anew(three_nodes: Connection, drifting: Any, refit: str | None, says: str, done: int) -> None:
    values, append = drifting
    source = next(_names)
    appended = append(source)
    next(appended)
    pipeline = gpuflow.Pipeline(source).standardize(per=1, refit=refit).to(f"{source}-out")
    assert counts(gpuflow.run(pipeline, connection=three_nodes))["done"] == 4
    next(appended)
    receipt = gpuflow.run(pipeline, connection=three_nodes)
    assert any(says in note for note in receipt.notes), receipt.notes
    assert any("moments of 4 chunks are kept" in note for note in receipt.notes)
    assert (counts(receipt)["done"], receipt.statistics_chunks) == (done, 4)
    of = values[:16] if done == 4 else values
    wanted = (values - of.mean((0, 2), keepdims=True, dtype="f8")) / of.std((0, 2), keepdims=True, dtype="f8")
    np.testing.assert_allclose(read_back(roots_of(three_nodes), f"{source}-out", "data"), wanted, rtol=1e-4, atol=1e-4)
    again = gpuflow.run(pipeline, connection=three_nodes)
    assert counts(again)["done"] == 0
    assert gpuflow.plan(pipeline, connection=three_nodes).details["arrays"]["data"]["chunks"]["pending"] == 0
    flip(file_of(three_nodes, f"{source}-out/data/c.1.0.0"))
    assert scrub_dataset(three_nodes, f"{source}-out").sound  # by the fit that it had


def test_another_habit_is_the_same_pipeline(three_nodes: Connection, drifting: Any) -> None:
    source = next(_names)
    list(drifting[1](source))
    begun = gpuflow.Pipeline(source).normalize().to(f"{source}-out")
    gpuflow.run(begun, connection=three_nodes)
    other = gpuflow.Pipeline(source).normalize(refit="always").to(f"{source}-out")
    assert counts(gpuflow.run(other, connection=three_nodes))["done"] == 0


def test_what_was_padding_becomes_data(three_nodes: Connection, tmp_path: Path) -> None:
    """The bytes of a chunk are the same when it grows by what it was padded with, and yet there is more to compute, and to count."""
    source, digests = next(_names), list[bytes]()
    for start, count in ((0, 6), (6, 5)):
        np.save(tmp_path / f"{start}.npy", np.zeros((count, 9), "f4") if start else np.ones((count, 9), "f4"))
        append_sources(three_nodes, [open_source(tmp_path / f"{start}.npy", chunk_samples=4 if not start else None)], source)
        mapped = run(three_nodes, source, f"{source}-out", {"map": "x + 5"})
        smooth = run(three_nodes, source, f"{source}-smooth", {"gaussian": {"sigma": {0: 1}}}, {"map": "x + 5"})
        asked = run_statistics(three_nodes, from_any({"source": source, "statistics": {}}))
        assert asked.results is not None
        assert asked.results["data"]["count"] == (start + count) * 9
        digests.append(table(three_nodes, source, "data").rows["digest"][1].tobytes())
    assert digests[0] == digests[1]  # the rewritten chunk is what it was
    assert (mapped["done"], smooth["done"]) == (2, 3)
    assert read_back(roots_of(three_nodes), f"{source}-out", "data")[6:].tolist() == [[5.0] * 9] * 5
    whole = run(three_nodes, source, f"{source}-whole", {"gaussian": {"sigma": {0: 1}}}, {"map": "x + 5"})
    assert whole["done"] == 3
    same(three_nodes, f"{source}-smooth", f"{source}-whole", "data")


def test_who_dies_leaves_the_output_old_or_new(three_nodes: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = next(_names)
    output, steps = {"dataset": f"{source}-out"}, [{"map": "x + 1"}]
    rows(three_nodes, tmp_path, source, 0, 10)
    run(three_nodes, source, output, *steps)
    before = read_back(roots_of(three_nodes), f"{source}-out", "t2m")
    rows(three_nodes, tmp_path, source, 10, 18)
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "_end", lambda *args: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            run(three_nodes, source, output, *steps)
    np.testing.assert_array_equal(read_back(roots_of(three_nodes), f"{source}-out", "t2m"), before)
    assert scrub_dataset(three_nodes, f"{source}-out").sound
    with pytest.raises(NameTaken, match="is growing, and that was not finished"):
        take_snapshot(three_nodes, f"{source}-out", "tag")
    rows(three_nodes, tmp_path, source, 18, 22)  # it grows again, before what it is for was finished
    assert run(three_nodes, source, output, *steps)["done"] == 2 + 2  # of each array, the partial chunk and one more
    run(three_nodes, source, f"{source}-whole", *steps)
    same(three_nodes, f"{source}-out", f"{source}-whole", "t2m", "time")


def test_an_output_with_snapshots_does_not_grow(three_nodes: Connection, tmp_path: Path) -> None:
    source = next(_names)
    rows(three_nodes, tmp_path, source, 0, 10)
    run(three_nodes, source, f"{source}-out", {"map": "x + 1"})
    take_snapshot(three_nodes, f"{source}-out", "tag")
    rows(three_nodes, tmp_path, source, 10, 18)
    with pytest.raises(NameTaken, match="has snapshots, which are of its arrays as they are"):
        run(three_nodes, source, f"{source}-out", {"map": "x + 1"})
