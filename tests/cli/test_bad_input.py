"""What a user gets for wrong input: one clear message, an exit status, and never a traceback."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.cli.test_main_job import PHOTOS, free_port, gpuflow
from tests.helpers import read_embedded


def test_no_such_source(tmp_path: Path) -> None:
    assert "no source" in gpuflow("ingest", tmp_path / "nowhere", "x", root=tmp_path / "root", status=1)
    assert not (tmp_path / "root").exists()  # found before anything started


def test_no_such_dataset_names_what_there_is(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(4))
    gpuflow("ingest", tmp_path / "a.npy", "zeros", root=tmp_path / "root")
    assert "there is: zeros" in gpuflow("show", "ones", root=tmp_path / "root", status=1)
    pipeline = tmp_path / "p.yaml"
    pipeline.write_text("source: ones\nsteps: [{map: x + 1}]\noutput: two\n")
    for command in ("plan", "run"):
        assert "there is: zeros" in gpuflow(command, pipeline, root=tmp_path / "root", status=1)
    np.save(tmp_path / "b.npy", np.ones(4))
    taken = gpuflow("ingest", tmp_path / "b.npy", "zeros", root=tmp_path / "root", status=1)
    assert "dataset 'zeros' exists already; choose another name" in taken


def test_datasets_of_an_empty_root(tmp_path: Path) -> None:
    assert "gpuflow ingest SOURCE NAME" in gpuflow("datasets", root=tmp_path)


def test_a_bad_image_among_good_ones(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    shutil.copy(PHOTOS / "coffee.png", images)
    (images / "half.png").write_bytes((PHOTOS / "chelsea.png").read_bytes()[:5000])
    refused = gpuflow("ingest", images, "x", "--tile", 100, root=tmp_path / "root", status=1)
    assert "half.png" in refused
    assert "--skip-bad" in refused or "skip_bad" in refused
    taken = gpuflow("ingest", images, "x", "--tile", 100, "--skip-bad", root=tmp_path / "root")
    assert "half.png" in taken


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tile", "12by12"), "--tile"),
        (("--tile", "64", "--size", "64"), "tile"),
        (("--color", "sepia"), "sepia"),
        (("--tile", "64", "--device", "gpu"), "device 'gpu' is unknown"),
    ],
)
def test_wrong_options(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    assert message in gpuflow("ingest", PHOTOS, "x", *arguments, root=tmp_path, status=2)


def test_a_device_that_is_not_there(tmp_path: Path) -> None:
    shown = gpuflow("ingest", PHOTOS, "x", "--tile", 64, "--device", "cuda", root=tmp_path, status=2)
    assert "use device: auto or cpu" in shown


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden", "x" * 101])
def test_names_that_cannot_be(tmp_path: Path, name: str) -> None:
    assert "cannot be the name of a dataset" in gpuflow("ingest", PHOTOS, name, "--tile", 64, root=tmp_path, status=2)


def test_a_wrong_pipeline_says_where(tmp_path: Path) -> None:
    pipeline = tmp_path / "p.yaml"
    pipeline.write_text("source: photos\nsteps:\n  - standardise: {per: channel}\n  - clip: {mni: 0}\noutput: x\n")
    for command in ("validate", "plan", "run"):
        shown = gpuflow(command, pipeline, root=tmp_path, status=2)
        assert f"{pipeline}:3" in shown
        assert "standardize" in shown
        assert f"{pipeline}:4" in shown
        assert "min" in shown
    assert not list(tmp_path.glob("*.sqlite"))


def test_a_step_that_does_not_fit_the_array(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((4, 2)))
    gpuflow("ingest", tmp_path / "a.npy", "zeros", root=tmp_path / "root")
    pipeline = tmp_path / "p.yaml"
    pipeline.write_text("source: zeros\nsteps: [{standardize: {per: channel}}]\noutput: x\n")
    shown = gpuflow("plan", pipeline, root=tmp_path / "root", status=2)
    assert "steps[0].standardize" in shown
    assert "'data'" in shown


def test_a_root_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    np.save(tmp_path / "a.npy", np.zeros(4))
    shown = gpuflow("ingest", tmp_path / "a.npy", "x", root=tmp_path / "file" / "root", status=1)
    assert f"store root {tmp_path}/file/root" in shown


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    mount = tmp_path / "disk"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", mount], capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield mount
    subprocess.run(["umount", "--lazy", mount], check=True)


def test_a_full_disk_loses_nothing_and_names_the_root(tmp_path: Path, small_disk: Path) -> None:
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(16, 65536)))  # 8 MiB that do not compress
    shown = gpuflow("ingest", tmp_path / "a.npy", "big", "--chunk-samples", 1, root=small_disk / "root", status=1)
    assert "disk is full" in shown
    assert "what is committed is kept" in shown
    assert "writing" in gpuflow("datasets", root=small_disk / "root")
    subprocess.run(["mount", "-o", "remount,size=40m", small_disk], check=True)
    gpuflow("ingest", tmp_path / "a.npy", "big", "--chunk-samples", 1, root=small_disk / "root")
    assert "ready" in gpuflow("datasets", root=small_disk / "root")


def test_a_disk_that_fills_up_in_the_middle_of_a_group_changed_in_place(tmp_path: Path, small_disk: Path) -> None:
    """Each chunk is as it was or as it is to be, and the next run does the rest, none of them twice."""
    root = small_disk / "root"
    values = np.random.default_rng(0).normal(size=(16, 16384))  # 128 KiB a chunk, 2 MiB in all
    np.save(tmp_path / "a.npy", values)
    gpuflow("ingest", tmp_path / "a.npy", "field", "--chunk-samples", 1, root=root)
    pipeline = tmp_path / "p.yaml"
    pipeline.write_text("source: field\nsteps: [{map: x * 2}]\noutput: {in_place: true}\n")
    filler = small_disk / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(small_disk).free - 350_000))
    shown = gpuflow("run", pipeline, root=root, status=1)
    assert "disk is full" in shown
    chunks = read_embedded(root, "field", "data")
    doubled = (chunks == 2 * values).all(axis=1)
    np.testing.assert_array_equal(chunks[~doubled], values[~doubled])
    assert not doubled.all()
    filler.unlink()
    gpuflow("run", pipeline, root=root)
    np.testing.assert_array_equal(read_embedded(root, "field", "data"), 2 * values)


def test_no_scheduler_there(tmp_path: Path) -> None:
    shown = gpuflow("datasets", "--scheduler", f"tcp://127.0.0.1:{free_port()}", root=tmp_path, status=1)
    assert "no scheduler answers at" in shown


def test_nodes_do_not_go_with_a_running_cluster(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(4))
    shown = gpuflow("ingest", tmp_path / "a.npy", "x", "--nodes", 2, "--scheduler", "tcp://127.0.0.1:1", root=tmp_path, status=1)
    assert "are for an embedded cluster" in shown


def test_node_without_a_scheduler(tmp_path: Path) -> None:
    assert "--scheduler" in gpuflow("node", root=tmp_path, status=1)
