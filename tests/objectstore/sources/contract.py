"""What every `Source` must do. A kind's test class subclasses `SourceContract` and gives a source and what it should hold."""

from __future__ import annotations

import json
import os
import pathlib
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

from gpuflow.errors import NotFound
from gpuflow.objectstore.sources import Source, open_source
from gpuflow.storage.codecs import ArrayCodec


def lay_out(source: Source, root: str | os.PathLike[str]) -> zarr.Group:
    """Writes everything a source gives as a plain Zarr v3 tree under `root`, and opens it with zarr, warnings being errors."""
    layout = source.layout()
    for path, attributes in layout.groups.items():
        document = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
        _write(pathlib.Path(root, path, "zarr.json"), json.dumps(document).encode())
    for path, metadata in layout.arrays.items():
        _write(pathlib.Path(root, path, "zarr.json"), metadata.to_json())
        for linear in range(metadata.grid.size):
            data = source.read(path, linear)
            if data is not None:
                _write(pathlib.Path(root, path, metadata.key(linear)), data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return zarr.open_group(str(root), mode="r")


def _write(path: pathlib.Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


class SourceContract:
    """Subclasses define fixtures `source`, `oracle` (array path -> NumPy array) and `reopen` (() -> an equal source)."""

    def test_layout_is_json(self, source: Source) -> None:
        layout = source.layout()
        for metadata in layout.arrays.values():
            assert json.loads(metadata.to_json()) == dict(metadata.document)
        assert json.loads(json.dumps(layout.groups)) == layout.groups
        assert all(isinstance(note, str) for note in layout.notes)

    def test_every_parent_is_a_group(self, source: Source) -> None:
        layout = source.layout()
        assert "" in layout.groups
        for path in (*layout.arrays, *layout.groups):
            parts = path.split("/")
            assert all("/".join(parts[:depth]) in layout.groups for depth in range(1, len(parts)))

    def test_holds_the_oracle(self, source: Source, oracle: dict[str, NDArray[Any]], tmp_path: pathlib.Path) -> None:
        group = lay_out(source, tmp_path / "laid-out")
        assert set(source.layout().arrays) == set(oracle)
        for path, expected in oracle.items():
            found = np.asarray(group[path][...])
            assert found.dtype == expected.dtype.newbyteorder("=")
            np.testing.assert_array_equal(found, expected)

    def test_codec_decodes_what_is_read(self, source: Source, oracle: dict[str, NDArray[Any]]) -> None:
        for path, metadata in source.layout().arrays.items():
            if metadata.dtype is None:
                continue
            for linear in range(metadata.grid.size):
                data = source.read(path, linear)
                codec = ArrayCodec(metadata)
                block = codec.filled() if data is None else codec.decode(data)
                valid = block[tuple(slice(0, size) for size in metadata.grid.extent(linear))]
                np.testing.assert_array_equal(valid, oracle[path][metadata.grid.region(linear)])

    def test_pickles_and_reads_the_same(self, source: Source) -> None:
        copy: Source = pickle.loads(pickle.dumps(source))
        assert all_bytes(copy, source) == all_bytes(source, source)
        assert copy.location == source.location
        assert copy.identity() == source.identity()
        assert copy.linkable == source.linkable
        assert {name: meta.document for name, meta in copy.layout().arrays.items()} == {
            name: meta.document for name, meta in source.layout().arrays.items()
        }

    def test_pickles_small(self, source: Source) -> None:
        assert len(pickle.dumps(source)) < 10_000

    def test_reading_twice_is_identical(self, source: Source) -> None:
        assert all_bytes(source, source) == all_bytes(source, source)

    def test_threads_agree(self, source: Source) -> None:
        copy: Source = pickle.loads(pickle.dumps(source))
        with ThreadPoolExecutor(4) as pool:
            results = list(pool.map(lambda _: all_bytes(copy, source), range(4)))
        assert all(result == all_bytes(source, source) for result in results)

    def test_out_of_the_grid(self, source: Source) -> None:
        for path, metadata in source.layout().arrays.items():
            for linear in (-1, metadata.grid.size):
                with pytest.raises(IndexError):
                    source.read(path, linear)
                with pytest.raises(IndexError):
                    source.path(path, linear)

    def test_unknown_array(self, source: Source) -> None:
        with pytest.raises(NotFound, match="there is"):
            source.read("no-such-array", 0)

    def test_path_holds_what_is_read(self, source: Source) -> None:
        for path, metadata in source.layout().arrays.items():
            for linear in range(metadata.grid.size):
                file = source.path(path, linear)
                data = source.read(path, linear)
                if file is not None:
                    assert file.read_bytes() == data
                elif source.linkable:
                    assert data is None

    def test_identity_is_stable(self, source: Source, reopen: Any) -> None:
        other = reopen()
        assert other is not source
        assert other.identity() == source.identity()
        assert source.location in source.identity()
        assert open_source(source.location, **json.loads(json.dumps(source.options))).identity() == source.identity()


def all_bytes(source: Source, of: Source) -> dict[tuple[str, int], bytes | None]:
    """Every stored object that `of` has, read from `source`."""
    return {
        (path, linear): source.read(path, linear)
        for path, metadata in of.layout().arrays.items()
        for linear in range(metadata.grid.size)
    }
