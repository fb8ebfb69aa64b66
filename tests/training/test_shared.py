"""One cache for the ranks of a machine: real processes that share it, are killed while they write, and find it full."""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import gpuflow
from gpuflow.training import shared, shared_file
from gpuflow.training.cache import Kept
from gpuflow.training.loader import Loader
from gpuflow.training.shared import Layout, SharedKept, open_cache
from tests.training.datasets import make_dataset, numbered

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

COUNT = 48
FIELD = numbered(COUNT, 16, 64)  # 4 KiB each
FORK = multiprocessing.get_context("fork")
LAYOUT = Layout((1, 16, 64), FIELD.dtype, 1, COUNT)
BIG = 2**24
CHECKSUM = shared._checksum


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of shared memory for this test and what it forks, which it has to leave empty."""
    path = Path(tempfile.mkdtemp(dir=shared_file.folder()))
    monkeypatch.setattr(shared_file, "_SHARED_MEMORY", path)
    yield path
    left = [file.name for file in path.iterdir()]
    shutil.rmtree(path)
    assert not left


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Dataset `d`: every sample a stored object, so that a rank has opened only those of its own samples."""
    make_dataset(tmp_path / "store", "d", {"field": FIELD}, chunks={"field": (1, 16, 64)}, inner={"field": (1, 16, 64)})
    return tmp_path / "store"


def make(root: Path, **options: Any) -> Loader:
    return gpuflow.loader("d", 8, root=root, **{"device": "numpy", "number_as": "n", "threads": 2, "cache": BIG, **options})


def kept_by(loader: Loader) -> Any:
    assert loader._engine is not None
    return loader._engine.reader.kept


def checked(loader: Loader) -> list[int]:
    """An epoch's numbers; its samples are what they say."""
    numbers = []
    for batch in loader:
        assert (batch["field"] == FIELD[batch["n"]]).all()
        numbers += batch["n"].tolist()
    return numbers


def put(cache: SharedKept, number: int) -> bool:
    return cache.keep((0, number, 0), FIELD[number : number + 1])


def is_right(cache: SharedKept, number: int) -> bool:
    found = cache.get((0, number, 0))
    return found is not None and bool((found == FIELD[number : number + 1]).all())


def forked(function: Callable[..., None], *arguments: Any, count: int = 1) -> list[int | None]:
    """Exit codes of that many processes, all at once, which get their number as well."""
    processes = [FORK.Process(target=function, args=(number, *arguments)) for number in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes]


def two_epochs(rank: int, world: int, root: Path, barrier: Any, queue: Any) -> None:
    """The second one when the dataset's files are gone."""
    with make(root, rank=rank, world=world) as loader:
        seen = [checked(loader)]
        assert loader._engine is not None
        for _, ahead in loader._engine._ahead:  # of the second epoch
            ahead.result.result(60)
        if barrier.wait(60) == 0:
            os.rename(root / "datasets", root / "gone")
        barrier.wait(60)
        seen.append(checked(loader))
        queue.put((rank, seen, str(kept_by(loader)._file.path)))
        barrier.wait(60)  # the last one to leave is not the first to be through


class TestRanks:
    @pytest.mark.parametrize(("world", "method"), [(2, "fork"), (4, "fork"), (2, "spawn")])
    def test_what_one_has_decoded_the_others_take_from_memory(self, root: Path, world: int, method: Any) -> None:
        context = multiprocessing.get_context(method)
        barrier, queue = context.Barrier(world), context.Queue()
        ranks = [context.Process(target=two_epochs, args=(rank, world, root, barrier, queue)) for rank in range(world)]
        for process in ranks:
            process.start()
        told = sorted(queue.get(timeout=60) for _ in ranks)
        for process in ranks:
            process.join(60)
        assert [process.exitcode for process in ranks] == [0] * world
        for epoch in (0, 1):
            assert sorted(number for _, seen, _ in told for number in seen[epoch]) == list(range(COUNT))
        assert any(set(seen[1]) - set(seen[0]) for _, seen, _ in told)
        (path,) = {path for _, _, path in told}
        assert Path(path).name.startswith("gpuflow-loader-")
        assert not os.path.exists(path)

    def test_within_the_budget(self, root: Path, memory: Path) -> None:
        """Four ranks, more data than may be kept: the same batches as without a cache."""
        most = 20 * 4096

        def rank(number: int) -> None:
            with make(root, rank=number, world=4, cache=most) as loader, make(root, rank=number, world=4, cache=0) as bare:
                for _ in range(3):
                    assert checked(loader) == checked(bare)
                    taken = sum(path.stat().st_blocks * 512 for path in memory.iterdir())
                    assert taken <= most
                assert taken >= most - 4 * 4096

        assert forked(rank, count=4) == [0] * 4

    def test_one_is_killed_while_it_writes(self, root: Path, memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The other goes on, with the right samples, and nothing remains."""

        died = FORK.Event()

        def survives() -> None:
            with make(root, rank=0, world=2) as loader:
                checked(loader)
                assert died.wait(60)
                for _ in range(2):
                    checked(loader)

        def dies(number: int) -> None:
            monkeypatch.setattr(shared, "_checksum", halfway)
            checked(make(root, rank=1, world=2))

        other = FORK.Process(target=survives)
        other.start()
        assert forked(dies) == [-signal.SIGKILL]
        died.set()
        other.join(60)
        assert other.exitcode == 0

    @pytest.mark.parametrize("closes", [True, False])
    def test_a_process_that_ends_leaves_nothing(self, root: Path, memory: Path, closes: bool) -> None:
        """Those of multiprocessing do not run what is registered to be done at exit."""

        def rank(number: int) -> None:
            loader = make(root, rank=0, world=2)
            checked(loader)
            assert len(list(memory.iterdir())) == 1
            if closes:
                loader.close()

        assert forked(rank) == [0]

    def test_killed_ones_leave_a_file_to_the_next(self, root: Path, memory: Path) -> None:
        def rank(number: int) -> None:
            loader = make(root, rank=0, world=2)
            checked(loader)
            os.kill(os.getpid(), signal.SIGKILL)

        assert forked(rank) == [-signal.SIGKILL]
        (path,) = memory.iterdir()
        assert path.stat().st_mode & 0o777 == 0o600
        with make(root) as loader:
            checked(loader)

    def test_who_shares(self, root: Path, memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Neither a single process, nor a rank that its launcher has started alone on its machine."""

        def kind(**options: Any) -> type:
            with make(root, **options) as loader:
                checked(loader)
                return type(kept_by(loader))

        assert kind() is Kept
        assert kind(rank=1, world=2) is SharedKept
        assert kind(rank=1, world=2, cache=0) is Kept
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
        assert kind(rank=1, world=2) is Kept

    def test_other_data_is_another_cache(self, tmp_path: Path, memory: Path) -> None:
        with make_two(tmp_path / "a", FIELD) as loader, make_two(tmp_path / "b", FIELD + 1) as other:
            for field, some in ((FIELD, loader), (FIELD + 1, other)):
                for batch in some:
                    assert (batch["field"] == field[batch["n"]]).all()
            assert len(list(memory.iterdir())) == 2

    def test_windows_and_whole_objects(self, tmp_path: Path, memory: Path) -> None:
        """Units of several samples, and such as are taken in part."""
        make_dataset(tmp_path, "d", {"field": FIELD}, chunks={"field": (5, 16, 64)})
        options: dict[str, Any] = {"sample": {"time": 3, "y": 7}, "order": "buffered", "world": 2}
        with make(tmp_path, rank=0, **options) as first, make(tmp_path, rank=1, cache=0, **options) as bare:
            list(first)
            with make(tmp_path, rank=1, **options) as second:
                for _ in range(2):
                    for batch, expected in zip(second, bare, strict=True):
                        assert (batch["field"] == expected["field"]).all()


def make_two(root: Path, field: NDArray[Any]) -> Loader:
    make_dataset(root, "d", {"field": field}, chunks={"field": (1, 16, 64)})
    return make(root, rank=0, world=2)


def halfway(place: NDArray[Any]) -> int:
    """In place of a checksum: half of the unit is there when the process is killed."""
    if sys._getframe(1).f_code.co_name != "keep":
        return CHECKSUM(place)
    place[:, 8:] = -1
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


class TestUnits:
    def test_a_half_written_one_is_none(self, memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        cache = SharedKept("x", [LAYOUT], BIG)

        def child(number: int) -> None:
            monkeypatch.setattr(shared, "_checksum", halfway)
            put(SharedKept("x", [LAYOUT], BIG), 3)

        assert forked(child) == [-signal.SIGKILL]
        taken = cache.nbytes
        assert cache.get((0, 3, 0)) is None
        assert put(cache, 3)
        assert is_right(cache, 3)
        assert cache.nbytes == taken  # at the place that was given out
        cache.close()

    def test_one_is_killed_under_the_lock(self, memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        cache = SharedKept("x", [LAYOUT], BIG)

        def child(number: int) -> None:
            monkeypatch.setattr(os, "posix_fallocate", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
            put(SharedKept("x", [LAYOUT], BIG), 3)

        assert forked(child) == [-signal.SIGKILL]
        assert put(cache, 3)
        assert is_right(cache, 3)
        cache.close()

    def test_damaged_memory_is_not_believed(self, memory: Path) -> None:
        first, second = (SharedKept("x", [LAYOUT], BIG) for _ in range(2))
        put(first, 3)
        (path,) = memory.iterdir()
        with path.open("r+b") as file:
            file.seek(first._begin + 100)
            file.write(b"\xff")
        assert second.get((0, 3, 0)) is None
        put(second, 3)
        assert is_right(second, 3)
        first.close()
        second.close()

    def test_all_write_the_same_ones_at_once(self, memory: Path) -> None:
        """No one ever sees another's unit in part, and each has a place of its own."""

        def child(number: int) -> None:
            cache = SharedKept("x", [LAYOUT], BIG)
            random = np.random.default_rng(number)
            for _ in range(30):
                for unit in random.permutation(COUNT).tolist():
                    assert is_right(cache, unit) or put(cache, unit)
                    assert is_right(cache, unit)
                cache._units.clear()
            cache.close()

        keeper = SharedKept("x", [LAYOUT], BIG)
        assert forked(child, count=4) == [0] * 4
        offsets = sorted(keeper._entry(number)[0] for number in range(COUNT))
        assert np.diff(offsets).tolist() == [4096] * (COUNT - 1)
        assert all(is_right(keeper, number) for number in range(COUNT))
        keeper.close()

    def test_units_are_read_only(self, memory: Path) -> None:
        cache = SharedKept("x", [LAYOUT], BIG)
        put(cache, 0)
        found = cache.get((0, 0, 0))
        assert found is not None
        with pytest.raises(ValueError, match="read-only"):
            found[...] = 0
        cache.close()


class TestFull:
    def test_memory_ends(
        self, root: Path, memory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        left = [5]
        allocate = os.posix_fallocate

        def limited(*arguments: int) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            allocate(*arguments)

        monkeypatch.setattr(os, "posix_fallocate", limited)
        with make(root, rank=0, world=2) as loader, caplog.at_level(logging.WARNING):
            for _ in range(3):
                checked(loader)
            assert len(kept_by(loader)._units) == 5
        (record,) = caplog.records
        assert "the cache of decoded data stays at " in record.message
        assert "No space left on device (give it more room, or a smaller cache)" in record.message

    @pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
    def test_a_small_file_system(self, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Writing to a page that the system lacks would kill the process."""
        small = tmp_path / "small"
        small.mkdir()
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(small)], capture_output=True, text=True)
        if mounted.returncode:
            pytest.skip(f"mount: {mounted.stderr}")
        monkeypatch.setattr(shared_file, "_SHARED_MEMORY", small)

        def rank(number: int) -> None:
            with make(root, rank=number, world=2) as loader:
                for _ in range(3):
                    checked(loader)
                assert 0 < len(kept_by(loader)._units) < 16

        try:
            assert forked(rank, count=2) == [0, 0]
            assert not list(small.iterdir())
        finally:
            subprocess.run(["umount", str(small)], check=True)

    def test_no_file_can_be_made(self, root: Path, memory: Path, caplog: pytest.LogCaptureFixture) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        with make(root, rank=0, world=2) as loader, caplog.at_level(logging.WARNING):
            resource.setrlimit(resource.RLIMIT_FSIZE, (BIG // 2, hard))
            try:
                checked(loader)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert "decoded data is not kept in memory: no file can be shared in" in caplog.text
        assert "File too large" in caplog.text


class TestFile:
    def test_the_last_to_leave_removes_it(self, memory: Path) -> None:
        first, second = (SharedKept("x", [LAYOUT], BIG) for _ in range(2))
        put(first, 1)
        first.close()
        shared_file.sweep()
        assert is_right(second, 1)
        third = SharedKept("x", [LAYOUT], BIG)
        assert is_right(third, 1)
        second.close()
        third.close()
        assert not list(memory.iterdir())

    def test_coming_and_going_at_once(self, memory: Path) -> None:
        """A file that was removed between its opening and its locking is not used."""

        def child(number: int) -> None:
            for turn in range(100):
                cache = SharedKept("x", [LAYOUT], BIG)
                assert os.path.samestat(os.fstat(cache._file.descriptor), os.stat(cache._file.path))
                put(cache, turn % COUNT)
                shared_file.sweep()
                assert is_right(cache, turn % COUNT)
                cache.close()

        assert forked(child, count=4) == [0] * 4

    @pytest.mark.skipif(os.geteuid() != 0, reason="gives a file away")
    def test_another_users_is_not_used(self, memory: Path, caplog: pytest.LogCaptureFixture) -> None:
        cache = SharedKept("x", [LAYOUT], BIG)
        (path,) = memory.iterdir()
        os.chown(path, 12345, -1)
        assert isinstance(open_cache("x", [LAYOUT], BIG), Kept)
        assert "is another user's" in caplog.text
        cache.close()
