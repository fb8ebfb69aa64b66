"""Files that come into a directory come into the dataset, each once, when it is complete; what does not fit is named."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import gpuflow
from gpuflow.cluster.connection import Connection
from gpuflow.datasets import catalog
from gpuflow.errors import NameTaken, SourceError
from gpuflow.objectstore import append
from gpuflow.objectstore.following import Follower, Round
from tests.helpers import read_back, read_embedded
from tests.objectstore.test_append import Killed, write
from tests.objectstore.test_repair import roots_of

_names = (f"followed-{number}" for number in itertools.count())


def rows(number: int, count: int = 3) -> np.ndarray:
    return np.random.default_rng(number).normal(size=(count, 4))


def names(found: Round) -> list[str]:
    return [Path(path).name for path in found.appended]


def reasons(found: Round) -> dict[str, str]:
    return {Path(path).name: reason for path, reason in found.refused.items()}


def check(connection: Connection, name: str, *numbers: int) -> None:
    np.testing.assert_array_equal(
        read_back(roots_of(connection), name, "data"), np.concatenate([rows(number) for number in numbers])
    )


def test_what_is_complete_comes_in_by_name_and_once(three_nodes: Connection, tmp_path: Path) -> None:
    name = next(_names)
    follower = Follower(three_nodes, tmp_path, name, options={"chunk_samples": 8})
    assert follower.look() == Round()
    for number in (2, 1):
        np.save(tmp_path / f"{number}.npy", rows(number))
    np.save(tmp_path / "hidden.npy", rows(9))
    os.rename(tmp_path / "hidden.npy", tmp_path / ".hidden.npy")
    assert names(follower.look()) == ["1.npy", "2.npy"]
    assert catalog.find(three_nodes, name).array("data").grid.chunks == (8, 4)  # as it is to be, also for small files
    np.save(tmp_path / "0.npy", rows(0))
    again = Follower(three_nodes, tmp_path, name)  # as after a kill: what is in is what the record says
    assert names(again.look()) == ["0.npy"]
    assert again.look() == Follower(three_nodes, tmp_path, name).look() == Round()
    check(three_nodes, name, 1, 2, 0)


def test_what_does_not_fit_is_named_and_the_others_go_on(
    three_nodes: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = next(_names)
    for number in range(5):
        np.save(tmp_path / f"{number}.npy", rows(number))
    np.save(tmp_path / "1.npy", rows(1).astype("float32"))
    np.save(tmp_path / "2.npy", rows(2)[:, :3])
    whole = (tmp_path / "3.npy").read_bytes()
    (tmp_path / "3.npy").write_bytes(whole[:-5])
    (tmp_path / "notes.txt").write_text("not data")
    (tmp_path / "empty.npy").touch()
    (tmp_path / "folder").mkdir()
    follower = Follower(three_nodes, tmp_path, name)
    found = follower.look()
    assert names(found) == ["0.npy", "4.npy"]
    for path, says in {
        "1.npy": "the data type is float32 in the source",
        "2.npy": "the shape is [3, 3] in the source",
        "3.npy": "is half-written: 219 of 224 bytes are there",
        "empty.npy": "is half-written",
        "folder": "is a directory and no Zarr",
        "notes.txt": "is a file of another kind",
    }.items():
        assert says in reasons(found)[path]
    assert len(found.refused) == 6
    assert follower.look() == Round()  # each is told once
    (tmp_path / "3.npy").write_bytes(whole)
    assert names(follower.look()) == ["3.npy"]
    check(three_nodes, name, 0, 4, 3)
    np.save(tmp_path / "0.npy", rows(7))
    assert "was appended already, as 0 to 3, and has other content now" in reasons(follower.look())["0.npy"]
    np.save(tmp_path / "5.npy", rows(5))
    np.save(tmp_path / "6.npy", rows(6))
    made = append.make_chunks

    def removed_meanwhile(*args: object) -> int:
        (tmp_path / "5.npy").unlink(missing_ok=True)
        return made(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(append, "make_chunks", removed_meanwhile)
    found = follower.look()
    assert names(found) == ["6.npy"]
    assert "5.npy" in reasons(found)
    check(three_nodes, name, 0, 4, 3, 6)


def test_a_file_that_is_being_written_is_waited_for(three_nodes: Connection, tmp_path: Path) -> None:
    name = next(_names)
    np.save(tmp_path / "0.npy", rows(0))
    with (tmp_path / "1.npy").open("wb") as file:
        np.save(file, rows(1))
        file.flush()
        found = Follower(three_nodes, tmp_path, name).look()
        assert (names(found), [Path(path).name for path in found.waiting]) == (["0.npy"], ["1.npy"])
    assert names(Follower(three_nodes, tmp_path, name).look()) == ["1.npy"]


def test_images_and_zarr_directories(three_nodes: Connection, tmp_path: Path) -> None:
    images, zarrs, name, other = tmp_path / "images", tmp_path / "zarrs", next(_names), next(_names)
    images.mkdir()
    pixels = np.random.default_rng(1).integers(0, 255, (3, 8, 6, 3), dtype=np.uint8)
    for number, values in enumerate(pixels):
        Image.fromarray(values).save(images / f"{number}.png")
    follower = Follower(three_nodes, images, name, options={"chunk_samples": 2})
    assert names(follower.look()) == ["0.png", "1.png", "2.png"]
    np.testing.assert_array_equal(read_back(roots_of(three_nodes), name, "image"), pixels)
    zarrs.mkdir()
    for start in (0, 10):
        write(zarrs / f"{start:02}.zarr", start, start + 10)
    (zarrs / "00.zarr/_SUCCESS").touch()
    follower = Follower(three_nodes, zarrs, other)
    found = follower.look()
    assert (names(found), len(found.waiting)) == (["00.zarr"], 1)
    (zarrs / "10.zarr/_SUCCESS").touch()
    assert names(follower.look()) == ["10.zarr"]
    assert Follower(three_nodes, zarrs, other).look() == Round()
    np.testing.assert_array_equal(read_back(roots_of(three_nodes), other, "time"), np.arange(20) * 6)


def test_it_is_woken_by_a_rename_and_goes_on_after_a_kill(
    three_nodes: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, inbox = next(_names), tmp_path / "inbox"
    inbox.mkdir()
    np.save(inbox / "0.npy", rows(0))
    with monkeypatch.context() as patch:
        patch.setattr(append, "_finish", lambda *args: (_ for _ in ()).throw(Killed()))
        Follower(three_nodes, inbox, name).look()  # the first makes the dataset
        np.save(inbox / "1.npy", rows(1))
        np.save(inbox / "2.npy", rows(2))
        with pytest.raises(Killed):
            Follower(three_nodes, inbox, name).look()
    stopped, rounds = threading.Event(), list[Round]()

    def drop() -> None:
        np.save(tmp_path / "3.npy", rows(3))
        os.rename(tmp_path / "3.npy", inbox / "3.npy")

    for found in Follower(three_nodes, inbox, name).follow(stopped):
        rounds.append(found)
        if len(rounds) == 1:
            assert names(found) == ["1.npy", "2.npy"]
            threading.Thread(target=drop).start()
        if names(found) == ["3.npy"]:
            stopped.set()
    check(three_nodes, name, 0, 1, 2, 3)


def test_what_cannot_be_followed(three_nodes: Connection, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="cannot be listed: No such file"):
        Follower(three_nodes, tmp_path / "none", next(_names)).look()
    name = next(_names)
    np.save(tmp_path / "0.npy", rows(0))
    Follower(three_nodes, tmp_path, name).look()
    gpuflow.run(gpuflow.Pipeline(name).cast("float32").to(f"{name}-out"), connection=three_nodes)
    with pytest.raises(NameTaken, match="is made by a pipeline"):
        Follower(three_nodes, tmp_path, f"{name}-out").look()


def test_the_command_is_killed_and_catches_up(tmp_path: Path) -> None:
    """kill -9 of the command and its embedded cluster, in the middle of what it does; then once more, to the end."""
    inbox, root = tmp_path / "inbox", tmp_path / "root"
    inbox.mkdir()
    values = np.random.default_rng(4).normal(size=(300, 20_000)).astype("float32")
    for number in range(6):
        np.save(inbox / f"{number}.npy", values[number * 50 : (number + 1) * 50])
    command = [sys.executable, "-m", "gpuflow", "ingest", "--follow", str(inbox), "raw", "--chunk-samples", "7"]
    command += ["--root", str(root), "--nodes", "1", "--workers", "1"]
    killed = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(list(root.glob("**/datasets/raw/data/c/*"))) < 8 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    there = read_embedded(root, "raw", "data")
    assert len(there) in range(50, 301, 50)
    np.testing.assert_array_equal(there, values[: len(there)])
    done = subprocess.run([*command, "--once"], capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(read_embedded(root, "raw", "data"), values)
