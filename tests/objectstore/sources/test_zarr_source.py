from __future__ import annotations

import json
import pathlib
import pickle
import shutil
import uuid
import warnings
from functools import partial
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, TransposeCodec, ZstdCodec

from gpuflow.errors import NotFound, SourceError
from gpuflow.objectstore.sources import Source, open_source
from gpuflow.objectstore.sources.zarr_source import ZarrSource

from .contract import SourceContract, lay_out

FIELD = np.random.default_rng(1).normal(size=(7, 10)).astype("f4")


def write_v2(root: Any, path: str, data: NDArray[Any], chunks: tuple[int, ...], **options: Any) -> zarr.Array:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        array = zarr.create_array(root, name=path, shape=data.shape, dtype=data.dtype, chunks=chunks, zarr_format=2, **options)
        array[...] = data
    return array


def edit(path: pathlib.Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def memory(url: str) -> Any:
    """The store behind a memory:// URL, as the source opens it."""
    from zarr.storage import FsspecStore

    return FsspecStore.from_url(url)


class ZarrContract(SourceContract):
    """`build(root)` writes a hierarchy and says what is in it."""

    def build(self, root: Any) -> dict[str, NDArray[Any]]:
        raise NotImplementedError

    @pytest.fixture
    def built(self, tmp_path: pathlib.Path) -> tuple[str, dict[str, NDArray[Any]]]:
        return str(tmp_path / "in"), self.build(str(tmp_path / "in"))

    @pytest.fixture
    def oracle(self, built: tuple[str, dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
        return built[1]

    @pytest.fixture
    def reopen(self, built: tuple[str, dict[str, NDArray[Any]]]) -> Any:
        return partial(open_source, built[0])

    @pytest.fixture
    def source(self, reopen: Any) -> Any:
        return reopen()


class TestV3(ZarrContract):
    def build(self, root: Any) -> dict[str, NDArray[Any]]:
        group = zarr.create_group(root, attributes={"title": "x"})
        sub = group.create_group("era/sub", attributes={"k": [1, None]})
        sub.create_array(
            "t2m", data=FIELD, chunks=(3, 4), dimension_names=("time", "x"), attributes={"units": "K"}, fill_value=np.nan
        )
        shards = group.create_array("sharded", shape=(9, 8), chunks=(2, 2), shards=(4, 8), dtype="i2", fill_value=-1)
        shards[:5] = 3
        group.create_array("scalar", data=np.array(2.5))
        group.create_array("empty", shape=(0, 4), chunks=(2, 2), dtype="u1")
        group.create_array(
            "chain",
            data=FIELD.astype("f8"),
            chunks=(4, 4),
            filters=[TransposeCodec(order=(1, 0))],
            serializer=BytesCodec(endian="big"),
            compressors=[BloscCodec(), Crc32cCodec()],
        )
        sparse = group.create_array("sparse", shape=(6,), chunks=(2,), dtype="i4", fill_value=7)
        sparse[2:4] = 1
        return {path: np.asarray(array[...]) for path, array in group.members(max_depth=None) if isinstance(array, zarr.Array)}

    def test_documents_are_kept(self, source: Source, built: tuple[str, dict[str, NDArray[Any]]]) -> None:
        layout = source.layout()
        for path, metadata in layout.arrays.items():
            assert metadata.document == json.loads(pathlib.Path(built[0], path, "zarr.json").read_text())
        assert layout.groups == {"": {"title": "x"}, "era": {}, "era/sub": {"k": [1, None]}}
        assert layout.notes == ()

    def test_absent_chunks(self, source: Source) -> None:
        assert [source.read("sparse", linear) is None for linear in range(3)] == [True, False, True]
        assert source.linkable

    def test_stored_objects_are_shards(self, source: Source) -> None:
        assert source.layout().arrays["sharded"].grid.chunks == (4, 8)


class TestV2(ZarrContract):
    def build(self, root: Any) -> dict[str, NDArray[Any]]:
        group = zarr.create_group(root, zarr_format=2, attributes={"title": "x"})
        group.create_group("era", attributes={"k": 1})
        data = {
            "era/t2m": (FIELD, (3, 4), {"compressors": numcodecs.Blosc(cname="zstd", shuffle=2)}),
            "fortran": (FIELD, (3, 4), {"order": "F", "compressors": numcodecs.Zstd(level=3)}),
            "big": (FIELD.astype(">f8"), (3, 4), {"compressors": numcodecs.GZip()}),
            "big-fortran": (FIELD.astype(">i2"), (3, 4), {"order": "F", "compressors": None}),
            "slash": (FIELD, (3, 4), {"chunk_key_encoding": {"name": "v2", "separator": "/"}}),
            "mask": (FIELD > 0, (7, 10), {}),
            "complex": (FIELD[0] + 1j, (4,), {}),
            "half": (FIELD[0].astype("f2"), (4,), {"fill_value": np.nan}),
            "scalar": (np.array(4, "i8"), (), {}),
            "empty": (np.zeros((0, 3), "f4"), (1, 3), {}),
        }
        for path, (values, chunks, options) in data.items():
            write_v2(root, path, values, chunks, **options)
        sparse = write_v2(root, "sparse", np.full(6, 7, "i4"), (2,), fill_value=7, compressors=None)
        sparse[3] = 1
        edit(pathlib.Path(root, "era/t2m/.zattrs"), _ARRAY_DIMENSIONS=["time", "x"], units="K")
        edit(pathlib.Path(root, "mask/.zarray"), filters=[])
        return {**{path: values for path, (values, _, _) in data.items()}, "sparse": np.asarray(sparse[...])}

    def test_dimension_names_leave_the_attributes(self, source: Source) -> None:
        metadata = source.layout().arrays["era/t2m"]
        assert metadata.dims == ("time", "x")
        assert metadata.attributes == {"units": "K"}
        assert source.layout().groups == {"": {"title": "x"}, "era": {"k": 1}}

    def test_all_is_taken_as_it_is(self, source: Source) -> None:
        assert source.linkable
        assert source.layout().notes == ()
        assert source.path("era/t2m", 1) == pathlib.Path(source.location, "era/t2m/0.1")
        assert source.path("slash", 1) == pathlib.Path(source.location, "slash/0/1")
        assert source.read("sparse", 0) is None


class TestV2Reencoded(ZarrContract):
    def build(self, root: Any) -> dict[str, NDArray[Any]]:
        zarr.create_group(root, zarr_format=2)
        data = {
            "lz4": (FIELD, (3, 4), {"compressors": numcodecs.LZ4()}),
            "zlib": (FIELD.astype(">f8"), (3, 4), {"compressors": numcodecs.Zlib(), "order": "F"}),
            "bz2": (FIELD > 0, (3, 4), {"compressors": numcodecs.BZ2()}),
            "delta": (np.arange(10, dtype="i4"), (4,), {"filters": [numcodecs.Delta(dtype="i4")]}),
            "scalar": (np.array(4, "i8"), (), {"compressors": numcodecs.Zlib()}),
            "plain": (np.arange(5), (2,), {}),
        }
        for path, (values, chunks, options) in data.items():
            write_v2(root, path, values, chunks, **options)
        sparse = write_v2(root, "sparse", np.full(6, 7, "i4"), (2,), fill_value=7, compressors=numcodecs.Zlib())
        sparse[3] = 1
        edit(pathlib.Path(root, "lz4/.zattrs"), _ARRAY_DIMENSIONS=["y", "x"])
        return {**{path: values for path, (values, _, _) in data.items()}, "sparse": np.asarray(sparse[...])}

    def test_said_and_not_linkable(self, source: Source) -> None:
        (note,) = source.layout().notes
        assert "bz2 (compressor bz2), delta (filter delta), lz4 (compressor lz4)" in note
        assert "plain" not in note
        assert not source.linkable
        assert source.path("lz4", 0) is None
        assert source.layout().arrays["lz4"].dims == ("y", "x")
        assert [source.read("sparse", linear) is None for linear in range(3)] == [True, False, True]

    def test_damaged_chunk_is_named(self, source: Source) -> None:
        source.layout()
        pathlib.Path(source.location, "zlib/0.1").write_bytes(b"not zlib")
        with pytest.raises(SourceError, match=r"chunk 1 of array 'zlib'"):
            source.read("zlib", 1)


class TestSingleArray(ZarrContract):
    def build(self, root: Any) -> dict[str, NDArray[Any]]:
        zarr.create_array(root, data=FIELD, chunks=(5, 5))
        return {"data": FIELD}


class TestSingleArrayV2(ZarrContract):
    def build(self, root: Any) -> dict[str, NDArray[Any]]:
        zarr.create_array(root, data=FIELD, chunks=(5, 5), zarr_format=2, compressors=numcodecs.Zlib())
        return {"data": FIELD}


class TestMemoryUrl(TestV3):
    @pytest.fixture
    def built(self, tmp_path: pathlib.Path) -> Any:
        pytest.importorskip("fsspec")
        url = f"memory://{uuid.uuid4()}/in"
        return url, self.build(memory(url))

    def test_documents_are_kept(self, source: Source, built: tuple[str, dict[str, NDArray[Any]]]) -> None:
        assert source.layout().groups == {"": {"title": "x"}, "era": {}, "era/sub": {"k": [1, None]}}
        assert source.layout().arrays["era/sub/t2m"].attributes == {"units": "K"}

    def test_absent_chunks(self, source: Source) -> None:
        assert [source.read("sparse", linear) is None for linear in range(3)] == [True, False, True]
        assert not source.linkable


class TestMemoryUrlV2Reencoded(ZarrContract):
    def build(self, root: Any) -> dict[str, NDArray[Any]]:
        zarr.create_group(root, zarr_format=2)
        write_v2(root, "a/lz4", FIELD, (3, 4), compressors=numcodecs.LZ4())
        write_v2(root, "a/b/zstd", FIELD, (3, 4))
        return {"a/lz4": FIELD, "a/b/zstd": FIELD}

    @pytest.fixture
    def built(self) -> Any:
        pytest.importorskip("fsspec")
        url = f"memory://{uuid.uuid4()}/in"
        return url, self.build(memory(url))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    dtype=st.sampled_from(["|b1", "|u1", "<u2", ">i4", "<i8", "<f2", ">f4", "<f8", "<c8", ">c16"]),
    shape=st.lists(st.integers(0, 7), max_size=3),
    chunk=st.integers(1, 4),
    order=st.sampled_from("CF"),
    separator=st.sampled_from("./"),
    codec=st.sampled_from([None, numcodecs.Zlib(), numcodecs.GZip(), numcodecs.Blosc(), numcodecs.LZ4(), numcodecs.Zstd()]),
    null=st.booleans(),
    seed=st.integers(0, 100),
)
def test_any_v2_array(
    tmp_path: pathlib.Path,
    dtype: str,
    shape: list[int],
    chunk: int,
    order: Any,
    separator: Any,
    codec: Any,
    null: bool,
    seed: int,
) -> None:
    root = tmp_path / str(uuid.uuid4())
    data = np.random.default_rng(seed).integers(0, 3, shape).astype(dtype)
    options = {"order": order, "compressors": codec, "chunk_key_encoding": {"name": "v2", "separator": separator}}
    write_v2(str(root / "in"), "a", data, (chunk,) * len(shape), **options)
    if not (root / "in" / ".zgroup").exists():
        (root / "in" / ".zgroup").write_text('{"zarr_format": 2}')
    if null and data.all():
        edit(root / "in" / "a" / ".zarray", fill_value=None)
    found = np.asarray(lay_out(open_source(root / "in"), root / "out")["a"][...])
    np.testing.assert_array_equal(found, data)
    assert found.dtype == data.dtype.newbyteorder("=")


@pytest.mark.parametrize("value", [None, 0, "NaN", "-Infinity", 1.5])
def test_v2_fill_values(tmp_path: pathlib.Path, value: Any) -> None:
    write_v2(str(tmp_path / "in"), "a", np.ones(4), (2,))
    (tmp_path / "in" / ".zgroup").write_text('{"zarr_format": 2}')
    edit(tmp_path / "in" / "a" / ".zarray", fill_value=value)
    (tmp_path / "in" / "a" / "0").unlink()
    found = np.asarray(lay_out(open_source(tmp_path / "in"), tmp_path / "out")["a"][:2])
    np.testing.assert_array_equal(found, np.full(2, float(value or 0)))


@pytest.mark.parametrize("shuffle", [-1, 0, 1, 2])
@pytest.mark.parametrize("cname", ["lz4", "lz4hc", "blosclz", "zstd", "zlib"])
def test_v2_blosc(tmp_path: pathlib.Path, shuffle: int, cname: str) -> None:
    zarr.create_array(
        tmp_path / "in", data=FIELD, chunks=(4, 4), zarr_format=2, compressors=numcodecs.Blosc(cname=cname, shuffle=shuffle)
    )
    source = open_source(tmp_path / "in")
    assert source.linkable
    np.testing.assert_array_equal(np.asarray(lay_out(source, tmp_path / "out")["data"][...]), FIELD)


def test_v2_strings_of_any_length(tmp_path: pathlib.Path) -> None:
    words = np.array(["a", "", "übermut", "x" * 99], dtype=object)
    zarr.create_group(tmp_path / "in", zarr_format=2)
    array = zarr.create_array(tmp_path / "in", name="s", shape=(4,), chunks=(3,), dtype=str, zarr_format=2)
    array[...] = words
    source = open_source(tmp_path / "in")
    assert source.layout().arrays["s"].document["data_type"] == "string"
    assert lay_out(source, tmp_path / "out")["s"][...].tolist() == words.tolist()


def test_v2_times(tmp_path: pathlib.Path) -> None:
    times = np.array(["2020-01-01", "2021-05-06"], "M8[ns]")
    write_v2(str(tmp_path / "in"), "time", times, (1,))
    (tmp_path / "in" / ".zgroup").write_text('{"zarr_format": 2}')
    np.testing.assert_array_equal(np.asarray(lay_out(open_source(tmp_path / "in"), tmp_path / "out")["time"][...]), times)


NO_FORM = ["S3", [("a", "i4"), ("b", "f4")], *(["U5"] if zarr.__version__ < "3.4" else [])]  # 3.4 knows fixed-length text


@pytest.mark.parametrize("dtype", NO_FORM)
def test_v2_dtypes_without_a_form_in_v3(tmp_path: pathlib.Path, dtype: Any) -> None:
    write_v2(str(tmp_path), "odd", np.zeros(3, dtype), (2,))
    write_v2(str(tmp_path), "fine", np.zeros(3), (2,))
    (tmp_path / ".zgroup").write_text('{"zarr_format": 2}')
    with pytest.raises(SourceError, match=r"array 'odd'.*dtype.*Zarr v3; .*arrays="):
        open_source(tmp_path).layout()
    assert list(open_source(tmp_path, arrays=["fine"]).layout().arrays) == ["fine"]


def test_v2_pickled_objects_are_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / ".zgroup").write_text('{"zarr_format": 2}')
    document = {"zarr_format": 2, "shape": [2], "chunks": [2], "dtype": "|O", "fill_value": None, "order": "C"}
    (tmp_path / "a" / ".zarray").write_text(json.dumps({**document, "filters": [{"id": "pickle"}], "compressor": None}))
    with pytest.raises(SourceError, match=r"array 'a': dtype \|O"):
        open_source(tmp_path).layout()


def test_v2_codec_that_nobody_knows(tmp_path: pathlib.Path) -> None:
    zarr.create_array(tmp_path, data=FIELD, chunks=(4, 4), zarr_format=2)
    edit(tmp_path / ".zarray", compressor={"id": "from-mars"})
    with pytest.raises(SourceError, match=r"array 'data'.*from-mars.*install"):
        open_source(tmp_path).layout()


def test_v2_chunk_of_zero(tmp_path: pathlib.Path) -> None:
    zarr.create_array(tmp_path / "in", shape=(0,), chunks=(1,), dtype="f4", zarr_format=2)
    edit(tmp_path / "in" / ".zarray", chunks=[0])
    assert lay_out(open_source(tmp_path / "in"), tmp_path / "out")["data"].shape == (0,)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"codecs": [{"name": "bytes"}, {"name": "from-mars"}]}, r"codecs bytes, from-mars.*install"),
        ({"data_type": "float13"}, r"data type float13.*install"),
        ({"chunk_grid": {"name": "rectangular", "configuration": {}}}, "'rectangular', not regular"),
        ({"chunk_key_encoding": {"name": "fanout"}}, "'fanout'"),
        ({"fill_value": "soup"}, "zarr says"),
        ({"shape": "soup"}, "array 'data'"),
        ({"codecs": []}, "array 'data'"),
    ],
)
def test_v3_documents_that_are_refused(tmp_path: pathlib.Path, changes: dict[str, Any], says: str) -> None:
    zarr.create_array(tmp_path, data=FIELD, chunks=(4, 4))
    edit(tmp_path / "zarr.json", **changes)
    with pytest.raises(SourceError, match=says) as caught:
        open_source(tmp_path).layout()
    assert "array 'data'" in str(caught.value)


def test_v3_short_names(tmp_path: pathlib.Path) -> None:
    data = np.arange(5, dtype="u1")
    zarr.create_array(tmp_path / "in", data=data, chunks=(2,), compressors=None)
    edit(tmp_path / "in" / "zarr.json", codecs=["bytes"], chunk_key_encoding="default")
    found = lay_out(open_source(tmp_path / "in"), tmp_path / "out")["data"]
    np.testing.assert_array_equal(np.asarray(found[...]), data)


def test_v3_numcodecs_stays_as_it_is(tmp_path: pathlib.Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from zarr.codecs.numcodecs import Zlib

        zarr.create_array(tmp_path, data=FIELD, chunks=(4, 4), compressors=[Zlib()])
    document = open_source(tmp_path).layout().arrays["data"].document
    assert document["codecs"][1]["name"] == "numcodecs.zlib"


@pytest.mark.parametrize("compressor", [GzipCodec(), ZstdCodec(), BloscCodec(), None])
def test_v3_bytes_are_verbatim(tmp_path: pathlib.Path, compressor: Any) -> None:
    zarr.create_array(tmp_path, data=FIELD, chunks=(4, 4), compressors=compressor)
    assert open_source(tmp_path).read("data", 4) == (tmp_path / "c/1/1").read_bytes()


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_consolidated_metadata_does_not_travel(tmp_path: pathlib.Path, zarr_format: Any) -> None:
    pytest.importorskip("fsspec")
    url = f"memory://{uuid.uuid4()}/in"
    for root, store in ((str(tmp_path), str(tmp_path)), (url, memory(url))):
        group = zarr.create_group(store, zarr_format=zarr_format, attributes={"k": 1})
        group.create_group("g", attributes={"m": 2}).create_array("a", data=FIELD, chunks=(4, 4), attributes={"n": 3})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            zarr.consolidate_metadata(store)
        layout = open_source(root).layout()
        assert layout.groups == {"": {"k": 1}, "g": {"m": 2}}
        assert layout.arrays["g/a"].attributes == {"n": 3}
        assert "consolidated" not in str(layout)
    # On disk it may be stale, and looking is cheap.
    zarr.create_array(str(tmp_path), name="later", data=FIELD, chunks=(4, 4), zarr_format=zarr_format)
    assert list(open_source(tmp_path).layout().arrays) == ["g/a", "later"]


def test_scan_asks_for_metadata_only(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpuflow.objectstore.sources import zarr_tree

    group = zarr.create_group(tmp_path)
    for name in "abc":
        group.create_array(name, data=np.arange(50), chunks=(1,))
    asked: list[str] = []
    get = zarr_tree.LocalTree.get
    monkeypatch.setattr(zarr_tree.LocalTree, "get", lambda self, key: asked.append(key) or get(self, key))
    assert len(open_source(tmp_path).layout().arrays) == 3
    assert len(asked) <= 5


class TestChoice:
    @pytest.fixture
    def root(self, tmp_path: pathlib.Path) -> pathlib.Path:
        group = zarr.create_group(tmp_path)
        for path in ("era/t2m", "era/deep/u", "other/x"):
            group.create_array(path, data=FIELD, chunks=(4, 4))
        return tmp_path

    def test_arrays_and_groups(self, root: pathlib.Path) -> None:
        layout = open_source(root, arrays=["era/deep", "other/x"]).layout()
        assert list(layout.arrays) == ["era/deep/u", "other/x"]
        assert list(layout.groups) == ["", "era", "era/deep", "other"]

    def test_unknown(self, root: pathlib.Path) -> None:
        with pytest.raises(NotFound, match=r"no array 'era/t3m'; there is: era/deep/u"):
            open_source(root, arrays=["era/t3m"]).layout()

    def test_identity(self, root: pathlib.Path) -> None:
        identities = {open_source(root).identity(), open_source(root, arrays=["era"]).identity()}
        shutil.copytree(root, root / "copy")
        identities.add(open_source(root / "copy").identity())
        edit(root / "zarr.json", attributes={"changed": 1})
        identities.add(open_source(root).identity())
        assert len(identities) == 4


def test_attributes_do_not_travel_with_tasks(tmp_path: pathlib.Path) -> None:
    zarr.create_array(tmp_path, data=FIELD, chunks=(4, 4), attributes={"long": "x" * 50_000})
    copy = pickle.loads(data := pickle.dumps(open_source(tmp_path)))
    assert len(data) < 5000
    assert copy.read("data", 0) is not None
    assert copy.layout().arrays["data"].attributes == {"long": "x" * 50_000}


def test_no_array(tmp_path: pathlib.Path) -> None:
    zarr.create_group(tmp_path)
    with pytest.raises(SourceError, match="holds no array"):
        open_source(tmp_path).layout()


def test_torn_metadata(tmp_path: pathlib.Path) -> None:
    zarr.create_group(tmp_path).create_array("a", data=FIELD, chunks=(4, 4))
    (tmp_path / "a" / "zarr.json").write_text('{"zarr_form')
    with pytest.raises(SourceError, match=r"a/zarr\.json is not JSON"):
        open_source(tmp_path).layout()


def test_urls_that_lead_nowhere() -> None:
    pytest.importorskip("fsspec")
    with pytest.raises(NotFound, match="no source"):
        ZarrSource(f"memory://{uuid.uuid4()}/x").layout()
    with pytest.raises(SourceError, match="scheme"):
        ZarrSource("nonsense://x/y").layout()
