from __future__ import annotations

import os
import pathlib
import pickle
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from gpuflow.errors import ConfigError, NotFound, SourceError
from gpuflow.objectstore.sources import Source, open_source
from gpuflow.objectstore.sources.base import CHUNK_NBYTES, chunk_shape

from .contract import SourceContract, lay_out

CASES = {
    "plain": np.arange(60, dtype="f4").reshape(10, 6),
    "fortran": np.asfortranarray(np.arange(60, dtype="i8").reshape(10, 6)),
    "big-endian": np.arange(7, dtype=">f8"),
    "bool": np.arange(9) % 2 == 0,
    "float16": np.linspace(0, 1, 5, dtype="f2"),
    "complex": np.arange(4) * (1 + 2j),
    "scalar": np.array(3.5),
    "empty": np.zeros((0, 5), "u2"),
    "empty-inside": np.zeros((3, 0, 2), "i4"),
}


@pytest.fixture(params=CASES)
def saved(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> tuple[pathlib.Path, NDArray[Any]]:
    np.save(tmp_path / "a.npy", CASES[request.param])
    return tmp_path / "a.npy", CASES[request.param]


class TestNpy(SourceContract):
    @pytest.fixture
    def source(self, saved: tuple[pathlib.Path, NDArray[Any]]) -> Source:
        return open_source(saved[0])

    @pytest.fixture
    def oracle(self, saved: tuple[pathlib.Path, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return {"data": saved[1]}

    @pytest.fixture
    def reopen(self, saved: tuple[pathlib.Path, NDArray[Any]]) -> Any:
        return partial(open_source, saved[0])


class TestChunked(TestNpy):
    """Several chunks, the last of them ragged."""

    @pytest.fixture
    def saved(self, tmp_path: pathlib.Path) -> tuple[pathlib.Path, NDArray[Any]]:
        data = np.asfortranarray(np.arange(70, dtype=">i2").reshape(10, 7))
        np.save(tmp_path / "a.npy", data)
        return tmp_path / "a.npy", data

    @pytest.fixture
    def source(self, saved: tuple[pathlib.Path, NDArray[Any]]) -> Source:
        return open_source(saved[0], chunk_samples=4)

    @pytest.fixture
    def reopen(self, saved: tuple[pathlib.Path, NDArray[Any]]) -> Any:
        return partial(open_source, saved[0], chunk_samples=4)

    def test_chunks(self, source: Source) -> None:
        assert source.layout().arrays["data"].grid.chunks == (4, 7)
        assert not source.linkable


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=hnp.arrays(
        st.sampled_from(["u1", "<i4", ">i4", "<f4", ">f8", "?", "<c8"]), hnp.array_shapes(min_dims=1, max_dims=3, max_side=5)
    ),
    chunk=st.integers(1, 6),
)
def test_any_array(tmp_path: pathlib.Path, data: NDArray[Any], chunk: int) -> None:
    import tempfile

    root = pathlib.Path(tempfile.mkdtemp(dir=tmp_path))
    np.save(root / "a.npy", data)
    found = lay_out(open_source(root / "a.npy", chunk_samples=chunk), root / "out")["data"]
    np.testing.assert_array_equal(np.asarray(found[...]), data)


@given(st.lists(st.integers(0, 10_000), max_size=4), st.integers(1, 16))
def test_chunks_are_bounded(shape: list[int], itemsize: int) -> None:
    chunks = chunk_shape(tuple(shape), itemsize)
    assert all(1 <= chunk <= max(1, size) for chunk, size in zip(chunks, shape, strict=True))
    assert np.prod(chunks, dtype=float) * itemsize <= max(CHUNK_NBYTES, itemsize)
    cut = [axis for axis, (chunk, size) in enumerate(zip(chunks, shape, strict=True)) if chunk < size]
    assert all(chunks[axis] == 1 for axis in cut[:-1])


def test_chunks_of_about_four_mebibytes() -> None:
    assert chunk_shape((1000, 512, 512), 4) == (4, 512, 512)
    assert chunk_shape((10, 2**13, 2**13), 1) == (1, 512, 2**13)


@pytest.mark.parametrize("dtype", [[("a", "i4"), ("b", "f4")], "U5", "S3", "M8[ns]", "V4"])
def test_dtypes_that_cannot_be_stored(tmp_path: pathlib.Path, dtype: Any) -> None:
    np.save(tmp_path / "a.npy", np.zeros(3, dtype))
    with pytest.raises(SourceError, match="dtype"):
        open_source(tmp_path / "a.npy").layout()


def test_objects_are_never_unpickled(tmp_path: pathlib.Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(SourceError, match="plain numeric dtype"):
        open_source(tmp_path / "a.npy").layout()


@pytest.mark.parametrize("kept", [0, 3, 20, 200])
def test_truncated(tmp_path: pathlib.Path, kept: int) -> None:
    np.save(tmp_path / "a.npy", np.arange(100.0))
    data = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(data[:kept])
    with pytest.raises(SourceError, match=r"a\.npy"):
        open_source(tmp_path / "a.npy").layout()


def test_archive_by_the_wrong_name(tmp_path: pathlib.Path) -> None:
    with (tmp_path / "a.npy").open("wb") as file:
        np.savez(file, a=np.arange(3))
    with pytest.raises(SourceError, match="not one array"):
        open_source(tmp_path / "a.npy").layout()


def test_changed_after_the_scan(tmp_path: pathlib.Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(10))
    source = open_source(tmp_path / "a.npy")
    pickled, identity = pickle.dumps(source), source.identity()
    np.save(tmp_path / "a.npy", np.arange(11))
    with pytest.raises(SourceError, match="changed since the scan"):
        pickle.loads(pickled).read("data", 0)
    assert open_source(tmp_path / "a.npy").identity() != identity


def test_identity_hangs_on_location_and_option(tmp_path: pathlib.Path) -> None:
    for name in ("a.npy", "b.npy"):
        np.save(tmp_path / name, np.arange(10))
        os.utime(tmp_path / name, (1, 1))
    sources = [open_source(tmp_path / "a.npy"), open_source(tmp_path / "b.npy"), open_source(tmp_path / "a.npy", chunk_samples=2)]
    assert len({source.identity() for source in sources}) == 3


def test_gone(tmp_path: pathlib.Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(10))
    source = open_source(tmp_path / "a.npy")
    (tmp_path / "a.npy").unlink()
    with pytest.raises(NotFound):
        source.layout()
    with pytest.raises(NotFound):
        source.identity()


def test_options_that_cannot_be(tmp_path: pathlib.Path) -> None:
    np.save(tmp_path / "a.npy", np.array(1))
    with pytest.raises(ConfigError, match="0-d"):
        open_source(tmp_path / "a.npy", chunk_samples=2).layout()
    with pytest.raises(ConfigError, match="chunk_samples"):
        open_source(tmp_path / "a.npy", chunk_samples=0)


def test_it_travels_by_way_of_machines_that_have_not_got_the_file(tmp_path: pathlib.Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(6.0))
    travelling = pickle.dumps(open_source(tmp_path / "a.npy"))
    os.rename(tmp_path / "a.npy", tmp_path / "elsewhere.npy")
    arrived = pickle.loads(pickle.dumps(pickle.loads(travelling)))
    os.rename(tmp_path / "elsewhere.npy", tmp_path / "a.npy")
    assert arrived.read("data", 0) == open_source(tmp_path / "a.npy").read("data", 0)
