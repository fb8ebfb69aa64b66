from __future__ import annotations

import pathlib
import subprocess
import sys

import numpy as np
import pytest
import zarr
from PIL import Image

from gpuflow.errors import ConfigError, NotFound, SourceError
from gpuflow.objectstore.sources import open_source
from gpuflow.objectstore.sources.base import with_parents


def test_kind_is_seen_not_told(tmp_path: pathlib.Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(3))
    (tmp_path / "a.npy").rename(tmp_path / "odd-name")
    zarr.create_group(tmp_path / "pictures")
    (tmp_path / "looks-like.zarr").mkdir()
    kinds = {name: type(open_source(tmp_path / name)).__name__ for name in ("odd-name", "pictures", "looks-like.zarr")}
    assert kinds == {"odd-name": "NpySource", "pictures": "ZarrSource", "looks-like.zarr": "ImageSource"}
    assert type(open_source("s3://bucket/data.zarr")).__name__ == "ZarrSource"


def test_location_is_absolute(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "a.npy", np.arange(3))
    monkeypatch.chdir(tmp_path)
    assert open_source("a.npy").location == str(tmp_path / "a.npy")
    assert open_source((tmp_path / "a.npy").as_uri()).identity() == open_source("a.npy").identity()


def test_nothing_there(tmp_path: pathlib.Path) -> None:
    with pytest.raises(NotFound, match=r"no source .*missing.*scheme|no source .*missing.*URL"):
        open_source(tmp_path / "missing")


def test_unknown_kind_says_what_is_supported(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.csv").write_text("1,2")
    with pytest.raises(SourceError, match=r"a\.csv.*Zarr.*\.npy.*images"):
        open_source(tmp_path / "a.csv")


def test_options_of_another_kind(tmp_path: pathlib.Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(3))
    zarr.create_group(tmp_path / "z")
    with pytest.raises(ConfigError, match=r"tile.*does not apply[^\n]*Zarr[^\n]*\n.*skip_bad"):
        open_source(tmp_path / "z", tile=(2, 2), skip_bad=True)
    with pytest.raises(ConfigError, match="color"):
        open_source(tmp_path / "a.npy", color="gray")
    with pytest.raises(ConfigError, match="arrays"):
        open_source(tmp_path, arrays=["x"])


def test_image_options(tmp_path: pathlib.Path) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(ConfigError, match="exclude each other"):
        open_source(tmp_path, tile=(2, 2), size=(2, 2))
    with pytest.raises(ConfigError, match="did you mean gray"):
        open_source(tmp_path, color="grey")
    with pytest.raises(ConfigError, match="height, width"):
        open_source(tmp_path, tile=(0, 2))
    with pytest.raises(ConfigError, match="chunk_samples"):
        open_source(tmp_path, chunk_samples=0)


def test_parents_are_completed() -> None:
    groups = with_parents({"a/b": {"k": 1}}, ["x/y/z", "t"])
    assert groups == {"": {}, "a": {}, "a/b": {"k": 1}, "x": {}, "x/y": {}}


def test_opening_imports_nothing_heavy(tmp_path: pathlib.Path) -> None:
    code = "import sys, gpuflow.objectstore.sources; print({'zarr', 'PIL', 'fsspec', 'dask', 'distributed'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == "set()"
