"""A dataset that was put together from parts is the dataset that the whole would have made, whoever dies when; and what does not fit is
refused before anything changes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gpuflow
from gpuflow.cluster.connection import Connection
from gpuflow.datasets import catalog
from gpuflow.datasets.catalog import ChunkTable, chunk_table
from gpuflow.datasets.leases import leased
from gpuflow.errors import ConfigError, GpuflowError, NameTaken, SourceError
from gpuflow.objectstore import append
from gpuflow.objectstore.append import append_sources
from gpuflow.objectstore.ingest import ingest_source
from gpuflow.objectstore.repair import scrub_dataset
from gpuflow.objectstore.sources import open_source
from tests.helpers import read_back
from tests.objectstore.test_repair import file_of, flip, roots_of

TIMES = 37
_names = (f"grown-{number}" for number in itertools.count())


def field(start: int, stop: int) -> np.ndarray:
    return np.random.default_rng(7).normal(280.0, 12.0, (TIMES, 6, 5)).astype("float32")[start:stop]


def write(path: Path, start: int, stop: int, chunks: int = 4, first: int | None = None, **attributes: Any) -> Path:
    """t2m (time, y, x) and its coordinates, of some of the times."""
    group = zarr.create_group(path, overwrite=True)
    values = field(start, stop)
    t2m = group.create_array(
        "t2m", shape=values.shape, chunks=(chunks, 6, 5), dtype="float32", dimension_names=["time", "y", "x"]
    )
    t2m[...] = values
    t2m.attrs["units"] = "K"
    time = group.create_array("time", shape=(stop - start,), chunks=(10,), dtype="int64", dimension_names=["time"])
    time[...] = np.arange(start, stop) * 6 if first is None else np.arange(first, first + stop - start) * 6
    time.attrs.update({"units": "hours since 2020-01-01", **attributes})
    lat = group.create_array("y", shape=(6,), chunks=(6,), dtype="float64", dimension_names=["y"])
    lat[...] = np.arange(6) + 0.5
    return path


def grow(connection: Connection, path: Path, name: str, **options: Any) -> gpuflow.Receipt:
    return append_sources(connection, [open_source(path)], name, **options)


def table(connection: Connection, name: str, array: str) -> ChunkTable:
    return chunk_table(connection, name, array, catalog.find(connection, name).array(array).grid.size)


def check(connection: Connection, name: str, stop: int = TIMES) -> None:
    """It is what the times up to `stop` are: to plain zarr, node by node, and through gpuflow."""
    np.testing.assert_array_equal(read_back(roots_of(connection), name, "t2m"), field(0, stop))
    np.testing.assert_array_equal(read_back(roots_of(connection), name, "time"), np.arange(stop) * 6)
    np.testing.assert_array_equal(gpuflow.open(name, connection=connection)["t2m"][...], field(0, stop))


def test_parts_of_any_length_become_the_whole_and_are_repaired_from_where_they_came(
    three_nodes: Connection, tmp_path: Path
) -> None:
    name, cuts = next(_names), (0, 10, 11, 13, 37)
    paths = [write(tmp_path / f"{a}.zarr", a, b, chunks=3 if a == 13 else 4) for a, b in itertools.pairwise(cuts)]
    assert grow(three_nodes, paths[0], name).status == "done"  # there is no dataset yet: it is made
    receipt = grow(three_nodes, paths[1], name).to_dict()
    assert (receipt["status"], receipt["chunks"]["done"], receipt["notes"]) == (
        "done",
        2,
        [],
    )  # the last of t2m; a new one of time
    before = table(three_nodes, name, "t2m").rows["generation"].tolist()
    assert before == [1, 1, 2]
    append_sources(three_nodes, [open_source(path) for path in paths[2:]], name)
    check(three_nodes, name)
    assert table(three_nodes, name, "t2m").rows["generation"].tolist() == [1, 1, 3, *[1] * 7]
    with xarray.open_dataset(f"gpuflow://{name}", engine="gpuflow", connection=three_nodes) as opened:
        assert opened.sizes == {"time": TIMES, "y": 6, "x": 5}
        assert opened.time.values[-1] == np.datetime64("2020-01-10", "ns")
    for chunk in ("t2m/c/1/0/0", "t2m/c/2/0/0", "t2m/c/5/0/0", "time/c/1", "y/c/0"):
        flip(file_of(three_nodes, f"{name}/{chunk}"))
    report = scrub_dataset(three_nodes, name)
    assert report.sound, report.notes
    assert {each.repaired for each in report.findings} == {"fetched again"}
    assert len(report.findings) == 5
    check(three_nodes, name)
    write(paths[1], 10, 11, first=99)
    flip(file_of(three_nodes, f"{name}/t2m/c/2/0/0"))
    flip(file_of(three_nodes, f"{name}/t2m/c/0/0/0"))
    report = scrub_dataset(three_nodes, name)
    assert [(each.index, each.repaired) for each in report.findings] == [(0, "fetched again"), (2, "")]
    assert "10.zarr has changed since it was ingested" in report.notes[0]


def test_what_is_in_is_not_appended_twice(three_nodes: Connection, tmp_path: Path) -> None:
    name = next(_names)
    one, two = write(tmp_path / "1.zarr", 0, 10), write(tmp_path / "2.zarr", 10, 15)
    ingest_source(three_nodes, open_source(one), name)
    grow(three_nodes, two, name)
    version = catalog.find(three_nodes, name).version
    for path, place in ((two, "10 to 15"), (one, "0 to 10")):
        receipt = grow(three_nodes, path, name)
        assert (receipt.status, receipt.total) == ("done", 0)
        assert receipt.notes == (f"{path} is in already, as time {place}: nothing was done",)
    assert catalog.find(three_nodes, name).version == version
    with pytest.raises(NameTaken, match="has grown by 1 more sources"):
        ingest_source(three_nodes, open_source(one), name)
    write(two, 15, 20)  # a file that is written anew for each day: its coordinate says that it is another one
    grow(three_nodes, two, name)
    check(three_nodes, name, 20)


def test_what_other_arrays_hold_is_said(three_nodes: Connection, tmp_path: Path) -> None:
    name = next(_names)
    ingest_source(three_nodes, open_source(write(tmp_path / "1.zarr", 0, 10)), name)
    two = zarr.open_group(write(tmp_path / "2.zarr", 10, 15))
    with pytest.raises(ConfigError, match="what is appended cannot be linked"):
        gpuflow.ingest(tmp_path / "2.zarr", name, append=True, link=True, connection=three_nodes)
    two["y"][0] = 7.0  # type: ignore[index]
    two.create_array("mask", shape=(6,), chunks=(6,), dtype="bool", dimension_names=["y"])
    notes = gpuflow.ingest(tmp_path / "2.zarr", name, append=True, axis="time", connection=three_nodes).notes
    assert [note.replace(str(tmp_path), "") for note in notes] == [
        "mask of /2.zarr is left out: the dataset has no such array",
        "y stays as it is: that of /2.zarr is another one",
    ]
    assert read_back(roots_of(three_nodes), name, "y")[0] == 0.5


@pytest.fixture(scope="module")
def standing(three_nodes: Connection, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A dataset of the first ten times, to which nothing fits."""
    path = tmp_path_factory.mktemp("standing")
    ingest_source(three_nodes, open_source(write(path / "1.zarr", 0, 10)), "standing")
    np.save(path / "data.npy", np.zeros((10, 6)))
    ingest_source(three_nodes, open_source(path / "data.npy"), "standing-npy")
    return "standing"


def _retyped(group: zarr.Group) -> None:
    group.create_array(
        "t2m", shape=(5, 6, 5), chunks=(5, 6, 5), dtype="float64", dimension_names=["time", "y", "x"], overwrite=True
    )


def _wider(group: zarr.Group) -> None:
    group.create_array(
        "t2m", shape=(5, 6, 7), chunks=(5, 6, 7), dtype="float32", dimension_names=["time", "y", "x"], overwrite=True
    )


def _turned(group: zarr.Group) -> None:
    group.create_array(
        "t2m", shape=(5, 6, 5), chunks=(5, 6, 5), dtype="float32", dimension_names=["time", "x", "y"], overwrite=True
    )


def _shorter(group: zarr.Group) -> None:
    group.create_array("time", shape=(4,), chunks=(5,), dtype="int64", dimension_names=["time"], overwrite=True)


def _more(group: zarr.Group) -> None:
    group.create_array("wind", shape=(5,), chunks=(5,), dtype="int64", dimension_names=["time"])


def _less(group: zarr.Group) -> None:
    del group["time"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_retyped, r"'t2m': the data type is float64 in the source, and float32 in the dataset"),
        (_wider, r"'t2m': the shape is \[5, 6, 7\] in the source, and \[10, 6, 5\] in the dataset"),
        (_turned, r"'t2m': the order of dimensions"),
        (_shorter, r"are not equally long along `time` \(t2m: 5, time: 4\)|`units` is None"),
        (_more, r"has an array 'wind' along `time`, which the dataset has not"),
        (_less, r"has no array 'time', which would have to grow too"),
    ],
)
def test_what_does_not_fit_is_refused(three_nodes: Connection, tmp_path: Path, standing: str, change: Any, says: str) -> None:
    change(zarr.open_group(write(tmp_path / "next.zarr", 10, 15)))
    before = catalog.find(three_nodes, standing)
    with pytest.raises(ConfigError, match=says):
        grow(three_nodes, tmp_path / "next.zarr", standing)
    assert catalog.find(three_nodes, standing) == before


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ({"start": 8, "stop": 15}, "overlaps the dataset: its `time` goes on with 48, after 54"),
        ({"start": 10, "stop": 15, "units": "days since 2020-01-01"}, "`units` is 'days since 2020-01-01' in the source"),
        ({"start": 10, "stop": 10}, "has nothing along `time`"),
    ],
)
def test_what_overlaps_is_refused(three_nodes: Connection, tmp_path: Path, standing: str, source: Any, says: str) -> None:
    write(tmp_path / "next.zarr", **source)
    with pytest.raises((SourceError, ConfigError), match=says):
        grow(three_nodes, tmp_path / "next.zarr", standing)


@pytest.mark.parametrize(
    ("axis", "says"),
    [
        ("tim", "no dimension `tim`.*did you mean `time`"),
        ("x", "cannot grow along axis 2: axes before it are cut into 3 chunks"),
        ("7", "has no axis 7"),
    ],
)
def test_the_dimension_must_be_there(three_nodes: Connection, tmp_path: Path, standing: str, axis: str, says: str) -> None:
    write(tmp_path / "next.zarr", 10, 15)
    with pytest.raises(ConfigError, match=says):
        grow(three_nodes, tmp_path / "next.zarr", standing, axis=axis)


def test_chunks_keep_their_numbers_or_it_is_refused(three_nodes: Connection, tmp_path: Path) -> None:
    name = next(_names)
    np.save(tmp_path / "1.npy", np.arange(60.0).reshape(4, 15))
    np.save(tmp_path / "2.npy", np.arange(60.0).reshape(4, 15) + 60)
    ingest_source(three_nodes, open_source(tmp_path / "1.npy", chunk_samples=2), name)
    with pytest.raises(ConfigError, match="cannot grow along axis 1: axes before it are cut into 2 chunks"):
        grow(three_nodes, tmp_path / "2.npy", name, axis=1)
    whole = next(_names)
    ingest_source(three_nodes, open_source(tmp_path / "1.npy"), whole)
    grow(three_nodes, tmp_path / "2.npy", whole, axis=1)
    expected = np.concatenate([np.load(tmp_path / "1.npy"), np.load(tmp_path / "2.npy")], axis=1)
    np.testing.assert_array_equal(read_back(roots_of(three_nodes), whole, "data"), expected)
    np.save(tmp_path / "2.npy", np.zeros((4, 15)))
    with pytest.raises(SourceError, match="was appended already, as 15 to 30, and has other content now"):
        grow(three_nodes, tmp_path / "2.npy", whole, axis=1)


def test_a_dataset_under_lease_is_refused_and_readers_do_not_mind_an_append(
    three_nodes: Connection, tmp_path: Path, standing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with leased(three_nodes, standing, "other", "r1"), pytest.raises(NameTaken, match="is being changed in place by run r1"):
        grow(three_nodes, write(tmp_path / "next.zarr", 10, 15), standing)
    name = next(_names)
    ingest_source(three_nodes, open_source(write(tmp_path / "1.zarr", 0, 10)), name)
    made = append.make_chunks

    def then_look(*args: Any) -> int:
        done = made(*args)
        check(three_nodes, name, 10)  # as it was, although its last chunk has been rewritten
        with pytest.raises(NameTaken, match="is being appended to by run"), leased(three_nodes, name, "other", "r2"):
            pass
        return done

    monkeypatch.setattr(append, "make_chunks", then_look)
    grow(three_nodes, tmp_path / "next.zarr", name)
    check(three_nodes, name, 15)


class Killed(BaseException):
    """Nothing is done after it, as after a kill."""


@pytest.mark.parametrize("step", ["_announce", "make_chunks", "_finish"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_who_dies_leaves_the_old_or_the_new_and_the_same_call_goes_on(
    three_nodes: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, after: bool
) -> None:
    name = next(_names)
    ingest_source(three_nodes, open_source(write(tmp_path / "1.zarr", 0, 10)), name)
    two, done = write(tmp_path / "2.zarr", 10, 23), getattr(append, step)

    def dies(*args: Any) -> Any:
        if after:
            done(*args)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(append, step, dies)
        with pytest.raises(Killed):
            grow(three_nodes, two, name)
    check(three_nodes, name, 23 if (step, after) == ("_finish", True) else 10)
    assert scrub_dataset(three_nodes, name).sound
    receipt = grow(three_nodes, two, name).to_dict()["chunks"]
    written = {"_announce": False, "make_chunks": after, "_finish": True}[step]
    assert receipt["done"] == (0 if written else 6)
    check(three_nodes, name, 23)


def test_another_source_in_the_place_of_one_that_was_not_finished(
    three_nodes: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = next(_names)
    ingest_source(three_nodes, open_source(write(tmp_path / "1.zarr", 0, 10)), name)
    with monkeypatch.context() as patch:
        patch.setattr(append, "_finish", lambda *args: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            grow(three_nodes, write(tmp_path / "long.zarr", 10, 37, first=77), name)
    grow(three_nodes, write(tmp_path / "2.zarr", 10, 15), name)
    check(three_nodes, name, 15)
    assert len(three_nodes.each_node(lambda store: store.manifest.replicas(name, "t2m"))) == 3
    held = three_nodes.each_node(lambda store, name: store.manifest.replicas(name, "t2m")["chunk"].tolist(), name)
    assert sorted(chunk for chunks in held.values() for chunk in chunks) == [0, 1, 2, 3]
    grow(three_nodes, write(tmp_path / "3.zarr", 15, 37), name)
    check(three_nodes, name)


def test_a_damaged_source_leaves_the_dataset_as_it_was(three_nodes: Connection, tmp_path: Path) -> None:
    name = next(_names)
    ingest_source(three_nodes, open_source(write(tmp_path / "1.zarr", 0, 10)), name)
    two = write(tmp_path / "2.zarr", 10, 23)
    (two / "t2m/c/1/0/0").write_bytes(b"torn")
    receipt = grow(three_nodes, two, name)
    assert receipt.status == "failed"
    assert "chunk 1 of array 't2m' does not decode" in receipt.outcome.tally.failures[0].error
    check(three_nodes, name, 10)
    write(two, 10, 23)
    assert grow(three_nodes, two, name).status == "done"
    check(three_nodes, name, 23)


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(
    cuts=st.lists(st.integers(1, 39), max_size=3, unique=True).map(sorted),
    samples=st.integers(1, 9),
    width=st.sampled_from([3, 9000]),  # the latter is stored in shards
)
def test_any_split_equals_the_whole_at_once(
    three_nodes: Connection, tmp_path: Path, cuts: Sequence[int], samples: int, width: int
) -> None:
    values = np.random.default_rng(3).integers(0, 3, (40, width)).astype("int32")
    values[5:20] = 0  # what is appended may be what the chunk was padded with
    whole, name = next(_names), next(_names)
    np.save(tmp_path / f"{whole}.npy", values)
    ingest_source(three_nodes, open_source(tmp_path / f"{whole}.npy", chunk_samples=samples), whole)
    first = min(samples, [*cuts, 40][0])
    for start, stop in itertools.pairwise([0, *cuts, 40]):
        path = tmp_path / f"{name}-{start}.npy"
        np.save(path, values[start:stop])
        append_sources(three_nodes, [open_source(path, chunk_samples=first if start == 0 else None)], name)
    np.testing.assert_array_equal(read_back(roots_of(three_nodes), name, "data"), values)
    if first == samples:
        one, other = table(three_nodes, name, "data").rows, table(three_nodes, whole, "data").rows
        assert (one["digest"] == other["digest"]).all()


def test_errors_of_names_and_kinds(three_nodes: Connection, tmp_path: Path, standing: str) -> None:
    path = write(tmp_path / "next.zarr", 10, 15)
    with gpuflow.open("by-hand", mode="a", connection=three_nodes) as dataset:
        zarr.create_array(dataset.store, name="a", shape=(3,), chunks=(3,), dtype="i4")[...] = 1
    with pytest.raises(NameTaken, match="was not ingested; append to it with zarr"):
        grow(three_nodes, path, "by-hand")
    gpuflow.run(gpuflow.Pipeline(standing).cast("float64").to("made-of-it"), connection=three_nodes)
    with pytest.raises(NameTaken, match="is made by a pipeline; append to its source 'standing'"):
        grow(three_nodes, path, "made-of-it")
    with pytest.raises(GpuflowError, match="cannot be the name of a dataset"):
        grow(three_nodes, path, "a/b")
