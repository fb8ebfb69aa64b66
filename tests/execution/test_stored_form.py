"""What a run writes is sharded, is read by zarr and by the next run, and is never mixed with another stored form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import zarr
from PIL import Image

from gpuflow.cluster.connection import Connection
from gpuflow.datasets import catalog
from gpuflow.display.plan import plan_details, plan_view
from gpuflow.errors import NameTaken
from gpuflow.execution.run import look, plan_all_chunks, prepare, run_pipeline
from gpuflow.objectstore.ingest import ingest_source
from gpuflow.objectstore.sources import open_source
from gpuflow.pipelines import stored as planning
from gpuflow.pipelines.pipeline import Pipeline
from gpuflow.storage.metadata import ArrayMetadata
from tests.execution.test_run import roots_of
from tests.helpers import read_back

VALUES = np.random.default_rng(0).normal(size=(5, 256, 512)).astype("f4")


@pytest.fixture
def field(tmp_path: Path) -> Path:
    """Three chunks of 1 MiB, the last one ragged."""
    zarr.create_array(tmp_path / "field", data=VALUES, chunks=(2, 256, 512), compressors=None)
    return tmp_path / "field"


def inner_of(connection: Connection, name: str, array: str = "data") -> Any:
    return catalog.find(connection, name).array(array).document["codecs"][0]["configuration"].get("chunk_shape")


@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in:zarr.errors.ZarrUserWarning")  # of zarr, which reads the result
@pytest.mark.parametrize("compressor", ["none", "zstd", "lz4"])
def test_output_is_sharded_and_a_source_in_turn(three_nodes: Connection, field: Path, compressor: str) -> None:
    first, second = f"form-{compressor}", f"form-{compressor}-out"
    ingest_source(three_nodes, open_source(field), first)
    assert inner_of(three_nodes, first) is None  # the source's own form
    receipt = run_pipeline(three_nodes, Pipeline(first).map("x * 2").to(second, compressor=compressor).spec)
    assert receipt.status == "done"
    assert inner_of(three_nodes, second) == [1, 128, 512]
    assert np.array_equal(read_back(roots_of(three_nodes), second, "data"), VALUES * 2)
    assert run_pipeline(three_nodes, Pipeline(second).map("x + 1").in_place().spec).status == "done"
    assert inner_of(three_nodes, second) == [1, 128, 512]
    assert np.array_equal(read_back(roots_of(three_nodes), second, "data"), VALUES * 2 + 1)


def test_an_output_of_another_form_is_not_continued(
    three_nodes: Connection, field: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest_source(three_nodes, open_source(field), "older")
    pipeline = Pipeline("older").map("x * 2")
    with monkeypatch.context() as patch:
        patch.setattr(planning, "inner_chunks", lambda shape, itemsize: shape)  # as outputs were made before there were shards
        run_pipeline(three_nodes, pipeline.to("older-out").spec)
    assert inner_of(three_nodes, "older-out") is None
    for output in ({}, {"chunks": "whole"}, {"chunks": [1, 256, 512]}, {"compressor": "none"}):
        with pytest.raises(NameTaken, match="was made from something else"):
            run_pipeline(three_nodes, pipeline.to("older-out", **output).spec)
    assert np.array_equal(read_back(roots_of(three_nodes), "older-out", "data"), VALUES * 2)


def test_an_ingest_of_another_form_is_not_continued(three_nodes: Connection, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", VALUES)
    ingest_source(three_nodes, open_source(tmp_path / "x.npy"), "older-npy")
    record = catalog.find(three_nodes, "older-npy")
    whole = ArrayMetadata.create(VALUES.shape, record.array("data").grid.chunks, VALUES.dtype)
    assert catalog.publish(three_nodes, record.next(arrays={"data": whole.document}))
    with pytest.raises(NameTaken, match="by another version of gpuflow"):
        ingest_source(three_nodes, open_source(tmp_path / "x.npy"), "older-npy")


def test_npy_and_images_are_cut_into_samples(three_nodes: Connection, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", VALUES)
    ingest_source(three_nodes, open_source(tmp_path / "x.npy"), "cut-npy")
    assert inner_of(three_nodes, "cut-npy") == [1, 128, 512]
    assert np.array_equal(read_back(roots_of(three_nodes), "cut-npy", "data"), VALUES)
    pixels = np.random.default_rng(1).integers(0, 255, (512, 512, 3)).astype("u1")
    (tmp_path / "images").mkdir()
    Image.fromarray(pixels).save(tmp_path / "images" / "a.png")
    ingest_source(three_nodes, open_source(tmp_path / "images", tile=(256, 256)), "cut-images")
    assert inner_of(three_nodes, "cut-images", "image") == [1, 256, 256, 3]
    found = read_back(roots_of(three_nodes), "cut-images", "image")
    assert np.array_equal(found[1], pixels[:256, 256:])


def test_a_plan_says_which_codecs_are_slow(three_nodes: Connection, tmp_path: Path) -> None:
    from rich.console import Console

    path = tmp_path / "nested"
    inner = zarr.codecs.ShardingCodec(chunk_shape=(1, 256, 512))
    outer = zarr.codecs.ShardingCodec(chunk_shape=(1, 256, 512), codecs=[inner])
    zarr.create_array(path, data=VALUES, chunks=(5, 256, 512), serializer=outer, compressors=None)
    ingest_source(three_nodes, open_source(path), "slow-codecs")
    spec = Pipeline("slow-codecs").map("x * 2").to("slow-codecs-out").spec
    found = look(three_nodes, spec)
    plan, _ = prepare(found, spec)
    details = plan_details(plan, plan_all_chunks(found, plan), "cpu")
    assert details["arrays"]["data"]["slow_codecs"] == "sharding_indexed(sharding_indexed(bytes))"
    console = Console(width=200)
    with console.capture() as shown:
        console.print(plan_view(details))
    assert "data: codec chain sharding_indexed(sharding_indexed(bytes)) goes through zarr-python, slow" in shown.get()
    assert run_pipeline(three_nodes, Pipeline("slow-codecs").map("x * 2").to("slow-codecs-out").spec).status == "done"
    assert np.array_equal(read_back(roots_of(three_nodes), "slow-codecs-out", "data"), VALUES * 2)


def test_a_shard_whose_index_lies_is_named_and_the_others_go_on(three_nodes: Connection, tmp_path: Path) -> None:
    """It came so from its source: its digest is right, what it says of itself is not."""
    path = tmp_path / "lying"
    zarr.create_array(path, data=np.tile(VALUES, (2, 1, 1)), shards=(5, 256, 512), chunks=(1, 256, 512), compressors=None)
    shard = path / "c" / "0" / "0" / "0"
    data = bytearray(shard.read_bytes())
    index = np.frombuffer(data[-5 * 16 - 4 : -4], "<u8").copy()
    index[2] = len(data)  # the second inner chunk begins where the file ends
    data[-5 * 16 - 4 :] = index.tobytes() + google_crc32c.value(index.tobytes()).to_bytes(4, "little")
    shard.write_bytes(data)
    ingest_source(three_nodes, open_source(path), "lying")
    receipt = run_pipeline(three_nodes, Pipeline("lying").map("x * 2").to("lying-out").spec).to_dict()
    (failure,) = receipt["failures"]
    assert failure["chunk"] == "lying/data/c/0/0/0"
    assert "the index of the shard puts inner chunk 1 at" in failure["error"]
    assert receipt["chunks"]["done"] == receipt["chunks"]["total"] - 1


def test_a_plan_says_where_chunks_for_a_device_are_decoded(three_nodes: Connection, tmp_path: Path) -> None:
    path = tmp_path / "shards"
    zarr.create_array(path, data=VALUES, shards=(5, 256, 512), chunks=(1, 128, 128))
    ingest_source(three_nodes, open_source(path), "for-devices")
    decoded = {}
    for device in ("cpu", "cuda: 2 x A100"):
        for steps in ("map", "gathered"):
            pipeline = Pipeline("for-devices").map("x * 2")
            spec = pipeline.to("out", **({"chunks": [2, 256, 256]} if steps == "gathered" else {})).spec
            found = look(three_nodes, spec)
            plan, _ = prepare(found, spec)
            details = plan_details(plan, plan_all_chunks(found, plan), device)
            decoded[device.partition(":")[0], steps] = details["arrays"]["data"]["decoded_by"]
            assert bool(details["arrays"]["data"]["encoded_by"]) == (device != "cpu")
    assert decoded == {
        ("cpu", "map"): "",
        ("cpu", "gathered"): "",
        ("cuda", "map"): "the device, a batch of frames for each shard",
        ("cuda", "gathered"): "the CPU",
    }
