"""The main job on a real cluster of three nodes: ingest, statistics, map, skip, resume, in place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from gpuflow.cluster.connection import Connection
from gpuflow.datasets import catalog
from gpuflow.datasets.leases import leased
from gpuflow.errors import ConfigError, NameTaken, NotFound
from gpuflow.execution.receipt import Receipt
from gpuflow.execution.run import run_pipeline
from gpuflow.objectstore.ingest import ingest_source, remove_dataset
from gpuflow.objectstore.sources import open_source
from gpuflow.pipelines.load import from_dict
from tests.helpers import read_back


def roots_of(connection: Connection) -> list[Path]:
    return [Path(worker["root"]) for worker in connection.info()["workers"].values()]


def ingest(connection: Connection, source: Path, name: str, **options: Any) -> Receipt:
    receipt = ingest_source(connection, open_source(source), name, **options)
    assert receipt.status == "done", receipt.outcome.tally.failures
    return receipt


def normalise(name: str, output: Any) -> Any:
    steps = [{"standardize": {"per": "y"}}, {"clip": [-2, 2]}, {"cast": "float16"}]
    return from_dict({"source": name, "steps": steps, "output": output})


def reference(values: Any, axes: tuple[int, ...] = (0, 2)) -> Any:
    wide = values.astype("float64")
    return np.clip((wide - wide.mean(axes, keepdims=True)) / wide.std(axes, keepdims=True), -2, 2)


def normalised(connection: Connection, source: Path, name: str) -> tuple[str, dict[str, Any]]:
    """Ingest `source` and normalise it: name of the dataset, that of the output being NAME-out, and receipt.

    Of a worker that the machine holds up, chunks are shipped, and rightly: of three runs one is not held up."""
    for attempt in "abc":
        dataset = f"{name}-{attempt}"
        assert ingest(connection, source, dataset).to_dict()["chunks"] == {"total": 24, "done": 24, "skipped": 0, "failed": 0}
        receipt = run_pipeline(connection, normalise(dataset, f"{dataset}-out")).to_dict()
        if not receipt["bytes"]["shipped"]:
            break
    return dataset, receipt


class TestNewDataset:
    def test_result_locality_and_receipt(self, three_nodes: Connection, field_zarr: Path) -> None:
        name, receipt = normalised(three_nodes, field_zarr, "fresh")
        assert receipt["status"] == "done"
        assert receipt["chunks"] == {"total": 24, "done": 24, "skipped": 0, "failed": 0}
        assert receipt["bytes"]["shipped"] == receipt["bytes"]["sent"] == 0
        locality = receipt["locality"]
        assert (locality["local_chunks"], locality["remote_chunks"], locality["reasons"]) == (
            44,
            0,
            {"local": 44},
        )  # 20: statistics
        assert locality["tiers"]["disk"] == {"chunks": 44 - locality["tiers"]["ram"]["chunks"], "bytes": receipt["bytes"]["read"]}
        assert locality["tiers"]["peer"] == {"chunks": 0, "bytes": 0}
        assert (locality["shipped_bytes"], locality["kept_bytes"]) == ({}, 0)
        assert all(part["chunks"] for part in receipt["nodes"].values())
        assert len(receipt["nodes"]) == 3
        assert receipt["bytes"]["read"] > 0
        assert receipt["seconds"]["wall"] > 0
        values = zarr.open_group(field_zarr, mode="r")["t2m"][...]
        result = read_back(roots_of(three_nodes), f"{name}-out", "t2m")
        assert result.dtype == np.float16
        np.testing.assert_allclose(result, reference(values), atol=2e-3)

    def test_what_is_not_processed_is_carried_with_its_metadata(self, three_nodes: Connection, field_zarr: Path) -> None:
        name, receipt = normalised(three_nodes, field_zarr, "carry")
        assert receipt["status"] == "done"
        assert (read_back(roots_of(three_nodes), f"{name}-out", "time") == np.arange(37) * 6).all()
        record = catalog.find(three_nodes, f"{name}-out")
        assert record.state == "ready"
        assert record.array("t2m").dims == ("time", "y", "x")
        assert record.array("t2m").attributes == {"units": "K"}
        assert record.groups[""] == {"title": "a field"}
        source, target = (_placement(three_nodes, name) for name in (name, f"{name}-out"))
        pairs = [pair for path in source for pair in zip(source[path], target[path], strict=True)]
        elsewhere = sum(before != after for before, after in pairs)
        assert (
            elsewhere <= receipt["locality"]["remote_chunks"]
        )  # laid beside it, but for what was shipped to a node that was idle

    def test_again_skips_everything(self, three_nodes: Connection, field_zarr: Path) -> None:
        ingest(three_nodes, field_zarr, "again")
        run_pipeline(three_nodes, normalise("again", "again-out"))
        receipt = run_pipeline(three_nodes, normalise("again", "again-out")).to_dict()
        assert receipt["chunks"] == {"total": 24, "done": 0, "skipped": 24, "failed": 0}
        assert receipt["bytes"] == {"read": 0, "written": 0, "shipped": 0, "sent": 0}  # nor the statistics again
        assert ingest(three_nodes, field_zarr, "again").to_dict()["chunks"]["skipped"] == 24

    def test_another_pipeline_does_not_take_the_name(self, three_nodes: Connection, field_zarr: Path) -> None:
        ingest(three_nodes, field_zarr, "named")
        run_pipeline(three_nodes, normalise("named", "named-out"))
        other = from_dict({"source": "named", "steps": [{"map": "x * 2"}], "output": "named-out"})
        with pytest.raises(NameTaken, match="made from something else"):
            run_pipeline(three_nodes, other)

    def test_only_changed_chunks_are_done_again(self, three_nodes: Connection, field_zarr: Path) -> None:
        ingest(three_nodes, field_zarr, "grown")
        double = from_dict({"source": "grown", "steps": [{"map": "x * 2"}], "output": "grown-out"})
        run_pipeline(three_nodes, double)
        add_one = from_dict(
            {"source": {"dataset": "grown", "arrays": "time"}, "steps": [{"map": "x + 1"}], "output": {"in_place": True}}
        )
        assert run_pipeline(three_nodes, add_one).to_dict()["chunks"]["done"] == 4
        assert run_pipeline(three_nodes, double).to_dict()["chunks"] == {"total": 24, "done": 4, "skipped": 20, "failed": 0}
        assert (read_back(roots_of(three_nodes), "grown-out", "time") == np.arange(37) * 6 + 1).all()

    def test_removed_is_gone_and_the_name_is_free(self, three_nodes: Connection, field_zarr: Path) -> None:
        ingest(three_nodes, field_zarr, "gone")
        remove_dataset(three_nodes, "gone")
        with pytest.raises(NotFound, match="gone"):
            catalog.find(three_nodes, "gone")
        assert not any((root / "datasets" / "gone").exists() for root in roots_of(three_nodes))
        assert ingest(three_nodes, field_zarr, "gone").to_dict()["chunks"]["done"] == 24
        assert run_pipeline(three_nodes, normalise("gone", "gone-out")).status == "done"


def _placement(connection: Connection, name: str) -> dict[str, Any]:
    record = catalog.find(connection, name)
    return {
        path: catalog.chunk_table(connection, name, path, metadata.grid.size).holder_sets
        for path, metadata in record.metadata.items()
    }


class TestInPlace:
    @staticmethod
    def spec(name: str) -> Any:
        return from_dict(
            {"source": name, "steps": [{"standardize": {"per": "y"}}, {"clip": [-2, 2]}], "output": {"in_place": True}}
        )

    def test_applied_once_however_often_it_runs(self, three_nodes: Connection, field_zarr: Path) -> None:
        ingest(three_nodes, field_zarr, "placed")
        first = run_pipeline(three_nodes, self.spec("placed")).to_dict()
        assert first["chunks"] == {"total": 20, "done": 20, "skipped": 0, "failed": 0}
        second = run_pipeline(three_nodes, self.spec("placed")).to_dict()
        assert second["chunks"] == {"total": 20, "done": 0, "skipped": 20, "failed": 0}
        values = zarr.open_group(field_zarr, mode="r")["t2m"][...]
        np.testing.assert_allclose(read_back(roots_of(three_nodes), "placed", "t2m"), reference(values), atol=1e-5)

    def test_another_asks_for_stack(self, three_nodes: Connection, field_zarr: Path) -> None:
        ingest(three_nodes, field_zarr, "stacked")
        run_pipeline(three_nodes, self.spec("stacked"))
        half = from_dict({"source": "stacked", "steps": [{"map": "x / 2"}], "output": {"in_place": True}})
        with pytest.raises(NameTaken, match="--stack"):
            run_pipeline(three_nodes, half)
        before = read_back(roots_of(three_nodes), "stacked", "t2m")
        assert run_pipeline(three_nodes, half, stack=True).to_dict()["chunks"]["done"] == 20
        assert run_pipeline(three_nodes, half).to_dict()["chunks"]["skipped"] == 20
        np.testing.assert_array_equal(read_back(roots_of(three_nodes), "stacked", "t2m"), before / 2)

    def test_a_changed_dtype_is_refused_before_anything_starts(self, three_nodes: Connection, field_zarr: Path) -> None:
        ingest(three_nodes, field_zarr, "typed")
        spec = from_dict({"source": "typed", "steps": [{"cast": "float16"}], "output": {"in_place": True}})
        with pytest.raises(ConfigError, match="in place"):
            run_pipeline(three_nodes, spec)

    def test_ingesting_over_it_is_refused(self, three_nodes: Connection, field_zarr: Path) -> None:
        ingest(three_nodes, field_zarr, "kept")
        run_pipeline(three_nodes, self.spec("kept"))
        with pytest.raises(NameTaken, match="changed in place"):
            ingest(three_nodes, field_zarr, "kept")

    def test_a_linked_source_is_never_altered(self, three_nodes: Connection, field_zarr: Path) -> None:
        before = {path: path.read_bytes() for path in field_zarr.rglob("*") if path.is_file()}
        receipt = ingest(three_nodes, field_zarr, "linked", link=True)
        inodes = {path.stat().st_ino for path in before}
        chunks = [path for root in roots_of(three_nodes) for path in (root / "datasets/linked").rglob("c/*") if path.is_file()]
        chunks += [
            path for root in roots_of(three_nodes) for path in (root / "datasets/linked").rglob("c/*/*/*") if path.is_file()
        ]
        assert len(chunks) == 24
        assert {path.stat().st_ino for path in chunks} <= inodes  # no bytes were copied
        assert receipt.status == "done"
        run_pipeline(three_nodes, self.spec("linked"))
        assert {path: path.read_bytes() for path in before} == before


class TestBadInput:
    def test_no_such_dataset(self, three_nodes: Connection) -> None:
        with pytest.raises(NotFound, match="no dataset 'nowhere'"):
            run_pipeline(three_nodes, normalise("nowhere", "x"))

    def test_name_taken(self, three_nodes: Connection, field_zarr: Path, tmp_path: Path) -> None:
        ingest(three_nodes, field_zarr, "taken")
        np.save(tmp_path / "other.npy", np.zeros(3))
        with pytest.raises(NameTaken, match="'taken' exists already"):
            ingest(three_nodes, tmp_path / "other.npy", "taken")

    @pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
    def test_a_damaged_chunk_is_named_and_the_others_go_on(self, three_nodes: Connection, field_zarr: Path, damage: str) -> None:
        name = f"hurt-{damage}"
        ingest(three_nodes, field_zarr, name)
        (path,) = [root / f"datasets/{name}/t2m/c/3/1/0" for root in roots_of(three_nodes) if _has(root, name, "t2m/c/3/1/0")]
        data = path.read_bytes()
        path.unlink()
        if damage != "delete":
            path.write_bytes(data[:-3] if damage == "truncate" else data[:40] + bytes([data[40] ^ 1]) + data[41:])
        spec = from_dict({"source": name, "steps": [{"map": "x * 2"}], "output": f"{name}-out"})
        receipt = run_pipeline(three_nodes, spec).to_dict()
        assert receipt["chunks"] == {"total": 24, "done": 23, "skipped": 0, "failed": 1}
        (failure,) = receipt["failures"]
        assert failure["chunk"] == f"{name}/t2m/c/3/1/0"
        assert failure["node"] in failure["error"]
        assert "damaged" in failure["error"]
        assert catalog.find(three_nodes, f"{name}-out").state == "writing"
        # Ingesting again mends it, and the next run does only what is missing.
        assert ingest(three_nodes, field_zarr, name).to_dict()["chunks"]["done"] == 1
        assert run_pipeline(three_nodes, spec).to_dict()["chunks"] == {"total": 24, "done": 1, "skipped": 23, "failed": 0}
        assert catalog.find(three_nodes, f"{name}-out").state == "ready"

    def test_the_first_failure_stops_it_where_that_is_wanted(self, three_nodes: Connection, tmp_path: Path) -> None:
        values = np.ones((600, 2), "f4")
        values[0] = 300
        zarr.create_array(tmp_path / "v.zarr", data=values, chunks=(1, 2), compressors=None)
        ingest(three_nodes, tmp_path / "v.zarr", "stops")
        data: dict[str, Any] = {"source": "stops", "steps": [{"cast": {"dtype": "uint8", "strict": True}}], "output": "stops-out"}
        receipt = run_pipeline(three_nodes, from_dict({**data, "run": {"on_error": "stop", "durability": "atomic"}}))
        left = 600 - receipt.outcome.tally.ended
        assert receipt.status == "failed"
        assert [failure.chunk for failure in receipt.outcome.tally.failures] == ["stops/data/c/0/0"]
        assert left > 100
        assert receipt.notes == (f"map: {left} chunks were left out after the first failure, as run.on_error says",)
        receipt = run_pipeline(three_nodes, from_dict(data))
        assert len(receipt.outcome.tally.failures) == 1
        assert receipt.planned_skips + receipt.outcome.tally.ended == 600

    def test_a_failed_statistics_pass_begins_no_output(self, three_nodes: Connection, field_zarr: Path) -> None:
        ingest(three_nodes, field_zarr, "blind")
        for root in roots_of(three_nodes):
            if _has(root, "blind", "t2m/c/0/0/0"):
                (root / "datasets/blind/t2m/c/0/0/0").unlink()
        receipt = run_pipeline(three_nodes, normalise("blind", "blind-out")).to_dict()
        assert receipt["status"] == "failed"
        assert receipt["chunks"]["done"] == 0
        assert "blind-out" not in catalog.records(three_nodes)

    def test_zero_spread_is_an_error_that_names_the_channel(self, three_nodes: Connection, tmp_path: Path) -> None:
        values = np.random.default_rng(1).normal(size=(8, 3))
        values[:, 1] = 5.0
        np.save(tmp_path / "flat.npy", values)
        ingest(three_nodes, tmp_path / "flat.npy", "flat")
        spec = from_dict({"source": "flat", "steps": [{"standardize": {"per": 1}}], "output": "flat-out"})
        with pytest.raises(ArithmeticError, match="flat/data"):
            run_pipeline(three_nodes, spec)


def _has(root: Path, name: str, chunk: str) -> bool:
    return (root / "datasets" / name / chunk).exists()


class TestShapes:
    @pytest.mark.parametrize("shape", [(), (0, 4), (5,), (7, 3)])
    def test_scalar_empty_and_odd(self, three_nodes: Connection, tmp_path: Path, shape: tuple[int, ...]) -> None:
        name = f"odd-{'x'.join(map(str, shape)) or 'scalar'}"
        values = np.random.default_rng(3).normal(size=shape)
        np.save(tmp_path / "a.npy", values)
        ingest(three_nodes, tmp_path / "a.npy", name)
        spec = from_dict({"source": name, "steps": [{"map": "x * 2 + 1"}], "output": f"{name}-out"})
        assert run_pipeline(three_nodes, spec).status == "done"
        np.testing.assert_array_equal(read_back(roots_of(three_nodes), f"{name}-out", "data"), values * 2 + 1)

    def test_chunks_absent_in_the_source_are_fill_value(self, three_nodes: Connection, tmp_path: Path) -> None:
        array = zarr.create_array(tmp_path / "sparse.zarr", shape=(12,), chunks=(4,), dtype="float32", fill_value=-1.0)
        array[4:8] = 7.0
        ingest(three_nodes, tmp_path / "sparse.zarr", "sparse")
        spec = from_dict({"source": "sparse", "steps": [{"map": "x + 1"}], "output": "sparse-out"})
        assert run_pipeline(three_nodes, spec).to_dict()["chunks"]["done"] == 3
        assert read_back(roots_of(three_nodes), "sparse-out", "data").tolist() == [0.0] * 4 + [8.0] * 4 + [0.0] * 4

    def test_sharded_source(self, three_nodes: Connection, tmp_path: Path) -> None:
        array = zarr.create_array(tmp_path / "sharded.zarr", shape=(30, 8), chunks=(2, 8), shards=(10, 8), dtype="int16")
        values = np.arange(240, dtype="int16").reshape(30, 8)
        array[...] = values
        assert ingest(three_nodes, tmp_path / "sharded.zarr", "sharded").to_dict()["chunks"]["total"] == 3
        spec = from_dict({"source": "sharded", "steps": [{"map": "x // 2"}], "output": "sharded-out"})
        assert run_pipeline(three_nodes, spec).status == "done"
        assert (read_back(roots_of(three_nodes), "sharded-out", "data") == values // 2).all()


def test_the_same_steps_in_place_on_what_they_made(three_nodes: Connection, field_zarr: Path) -> None:
    """They are applied a second time: what was made and what was changed in place are told apart."""
    ingest(three_nodes, field_zarr, "twice-in")
    steps = {"source": {"dataset": "twice-in", "arrays": ["t2m"]}, "steps": [{"map": "x * 2"}], "output": "twice"}
    run_pipeline(three_nodes, from_dict(steps))
    once = read_back(roots_of(three_nodes), "twice", "t2m")
    again = {"source": {"dataset": "twice", "arrays": ["t2m"]}, "steps": [{"map": "x * 2"}], "output": {"in_place": True}}
    assert run_pipeline(three_nodes, from_dict(again)).to_dict()["chunks"]["skipped"] == 0
    np.testing.assert_array_equal(read_back(roots_of(three_nodes), "twice", "t2m"), once * 2)
    assert run_pipeline(three_nodes, from_dict(again)).outcome.tally.done == 0


def test_in_place_one_pipeline_at_a_time(three_nodes: Connection, field_zarr: Path) -> None:
    ingest(three_nodes, field_zarr, "leased")
    spec = from_dict(
        {"source": {"dataset": "leased", "arrays": ["t2m"]}, "steps": [{"map": "x * 2"}], "output": {"in_place": True}}
    )
    with (
        leased(three_nodes, "leased", "another", "run-1"),
        pytest.raises(NameTaken, match="in place by run run-1; wait for its end"),
    ):
        run_pipeline(three_nodes, spec)
    assert run_pipeline(three_nodes, spec).to_dict()["chunks"]["done"] == 20
    with leased(three_nodes, "leased", "another", "run-2"):
        pass


def test_the_torch_backend_gives_what_numba_gives(three_nodes: Connection, field_zarr: Path) -> None:
    pytest.importorskip("torch")
    ingest(three_nodes, field_zarr, "backends")
    results = []
    for backend in ("numba", "torch"):
        spec = normalise("backends", f"by-{backend}").to_dict() | {"run": {"backend": backend}}
        assert run_pipeline(three_nodes, from_dict(spec)).status == "done"
        results.append(read_back(roots_of(three_nodes), f"by-{backend}", "t2m"))
    np.testing.assert_array_equal(*results)
