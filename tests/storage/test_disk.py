"""Old bytes or new bytes, and nothing left behind."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from gpuflow.errors import ChunkLost, StoreError
from gpuflow.storage.disk import (
    digest,
    make_directories,
    read_file,
    store_errors,
    sync_directories,
    write_durably,
    write_file,
)
from tests.storage.faults import Faults, patched


def test_what_is_written_is_read(tmp_path: Path) -> None:
    for number, data in enumerate((b"", b"x", bytes(300_000))):
        write_file(tmp_path / str(number), memoryview(data))
        assert read_file(tmp_path / str(number)) == data
    with pytest.raises(FileExistsError):
        write_file(tmp_path / "0", b"other")
    assert read_file(tmp_path / "0") == b""
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path / "none")


def test_digest_is_xxh3_128() -> None:
    assert digest(b"").hex() == "99aa06d3014798d86001c324468d497f"
    assert digest(memoryview(b"abc")) == digest(b"abc") != digest(b"abd")


def test_a_write_goes_on_when_the_kernel_takes_part_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:7]))
    write_file(tmp_path / "a", bytes(range(100)))
    assert read_file(tmp_path / "a") == bytes(range(100))


def test_a_disk_that_fills_up_in_the_middle_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, room = os.write, [10]

    def until_full(descriptor: int, data: memoryview) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        room[0] -= 5
        return write(descriptor, data[:5])

    monkeypatch.setattr(os, "write", until_full)
    with pytest.raises(OSError, match="No space left"):
        write_file(tmp_path / "a", bytes(100))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_no_file(small_disk: Path) -> None:
    with pytest.raises(StoreError, match=r"the disk is full; free some space") as raised, store_errors(small_disk):
        write_file(small_disk / "a", bytes(2**21))
    assert isinstance(raised.value.__cause__, OSError)
    assert list(small_disk.iterdir()) == []


@pytest.mark.parametrize("given", [False, True], ids=["temporary beside", "temporary given"])
def test_write_durably_is_old_or_new_whatever_fails(tmp_path: Path, given: bool) -> None:
    (tmp_path / "staging").mkdir()
    temporary = tmp_path / "staging" / "t" if given else None
    for there in (False, True):
        call = 0
        while True:
            call += 1
            folder = tmp_path / f"{there}{call}" / "deep"
            path = folder / "zarr.json"
            if there:
                folder.mkdir(parents=True)
                path.write_bytes(b"old")
            with patched(Faults(call)) as faults:
                faults.armed = True
                try:
                    write_durably(path, b"new", temporary)
                except OSError:
                    found = path.read_bytes() if path.exists() else None
                    assert found in ((b"old" if there else None), b"new")
                faults.armed = False
            leftovers = [each for each in folder.iterdir() if each != path] if folder.exists() else []
            assert leftovers == []
            assert list((tmp_path / "staging").iterdir()) == []
            if call > faults.count:
                break
            write_durably(path, b"newer", temporary)
            assert path.read_bytes() == b"newer"
        assert path.read_bytes() == b"new"
        assert call > 4, "the faults struck nothing"


def test_new_entries_are_synced_from_the_top(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    make_directories(tmp_path / "a" / "b")
    assert synced == [str(tmp_path), str(tmp_path / "a")]
    make_directories(tmp_path / "a" / "b")
    sync_directories([tmp_path, tmp_path])
    assert synced[2:] == [str(tmp_path)]


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "the disk is full; free some space"),
        (errno.EDQUOT, "quota is used up; free some space"),
        (errno.EACCES, "not writable (Permission denied); choose another root"),
        (errno.EROFS, "not writable (Read-only file system); choose another root"),
        (errno.ENOTDIR, "a file is where a folder should be"),
        (errno.EXDEV, "on another file system"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_system_errors_say_what_to_do(number: int, words: str) -> None:
    with pytest.raises(StoreError) as raised, store_errors(Path("/some/root")):
        raise OSError(number, os.strerror(number))
    assert str(raised.value).startswith("store root /some/root: ")
    assert words in str(raised.value)


@pytest.mark.parametrize("error", [StoreError("/r", "x"), ChunkLost("c"), ValueError("v"), KeyboardInterrupt()])
def test_other_errors_pass(error: BaseException) -> None:
    with pytest.raises(type(error)) as raised, store_errors(Path("/r")):
        raise error
    assert raised.value is error
