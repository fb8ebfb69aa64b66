"""The Python twin says the same as the file, in the same words."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from pydantic import ValidationError

from gpuflow.errors import ConfigError
from gpuflow.pipelines.load import any_from_text, from_dict, load_text
from gpuflow.pipelines.pipeline import Pipeline, Statistics
from gpuflow.pipelines.spec import Compressor, OutputSpec, PipelineSpec, RunSpec, SourceSpec, check_dataset_name
from gpuflow.pipelines.yaml_text import dump_yaml

from .wrong_cases import GOOD


def test_it_is_the_twin_of_the_file(tmp_path: Path) -> None:
    pipeline = Pipeline("photos").standardize(per="channel").clip(-3, 3).cast("float16").to("photos-train")
    assert pipeline.spec == load_text(GOOD)
    (tmp_path / "p.yaml").write_text(GOOD)
    assert Pipeline.from_yaml(tmp_path / "p.yaml").spec == pipeline.spec


@pytest.mark.parametrize(
    "pipeline",
    [
        Pipeline("a").to("b"),
        Pipeline("a", arrays="t*").map("x*2").to("b", compressor="none"),
        Pipeline("a", ["image", "t*"]).standardize(["y", 0], mean=[[1, 2]], std=0.5).in_place(),
        Pipeline("a").unpack(0.01, 5, missing=-1).normalize("band", range=(-1, 1)).fill_nan(-1).to("b"),
        Pipeline("a").standardize("time", weights="cos(radians(lat))", refit="always").to("b"),
        Pipeline("a").normalize(min=0, max=[255]).to("b"),
        Pipeline("a").where("x > 0").mask("x == 255", 3).normalize("band", quantiles=(0.01, 0.99)).to("b"),
        Pipeline("a").exec(["prog", "--level", "3"], via="pipe", format="raw", timeout_seconds=2, memory="2GiB").to("b"),
        Pipeline("a").exec("prog", returns=np.uint8, program_version="2").to("b"),
        Pipeline("a", "${x}*").step("clip", min=3).cast("uint8", strict=True).to("b"),
        Pipeline("a").clip(max=3).cast(np.float16).to("b").on("cuda:0").on(workers=2),
        Pipeline("a").clip(max=3).to("b").on(memory="2GiB", cache="1GiB", on_error="stop"),
        Pipeline("a").to("c").in_place().cast("int8"),
        Pipeline("a").cast("int8").in_place(snapshot="before"),
    ],
)
def test_round_trips(pipeline: Pipeline, tmp_path: Path) -> None:
    spec = pipeline.spec
    assert Pipeline.from_spec(spec).spec == spec
    assert load_text(pipeline.to_yaml()) == spec
    (tmp_path / "p.yaml").write_text(pipeline.to_yaml(), "utf-8")
    assert Pipeline.from_yaml(tmp_path / "p.yaml").to_yaml() == pipeline.to_yaml()
    assert pickle.loads(pickle.dumps(pipeline)).spec == spec


def test_statistics_round_trip() -> None:
    pipeline = Pipeline("a", "t*").clip(0, 1).on(workers=2).statistics(["y", 2], where="x > 0", quantiles=[0.5], histogram=9)
    assert any_from_text(pipeline.to_yaml()) == pipeline.spec
    assert Statistics.from_spec(pipeline.spec).spec == pipeline.spec
    assert Statistics.from_spec(pipeline.spec).to_yaml() == pipeline.to_yaml()
    weighted = Pipeline("a").statistics(over="y", weights="cos( radians(y) )", histogram=9)
    assert any_from_text(weighted.to_yaml()) == weighted.spec == Statistics.from_spec(weighted.spec).spec
    assert "weights: cos( radians(y) )" in weighted.to_yaml()
    with pytest.raises(ConfigError, match="has `output` or `statistics`, not both"):
        _ = Pipeline("a").to("b").statistics().spec


def test_the_yaml_reads_like_a_file() -> None:
    text = Pipeline("photos", "image").standardize("channel").map("x * 2").to("train").on(workers=2).to_yaml()
    assert text == (
        "source:\n  dataset: photos\n  arrays:\n  - image\nsteps:\n- standardize:\n    per: channel\n"
        "- map:\n    expression: x * 2\noutput: train\nrun:\n  workers: 2\n"
    )


def test_every_call_makes_a_new_pipeline() -> None:
    base = Pipeline("a").clip(0, 1)
    one, other = base.cast("int8").to("b"), base.to("c")
    assert len(one.spec.steps) == 2
    assert len(other.spec.steps) == 1
    assert base.output is None
    with pytest.raises(AttributeError):
        base.source = "z"  # type: ignore[misc]


def test_what_is_left_out_of_on_stays() -> None:
    spec = Pipeline("a").to("b").on("cpu").on(workers=3).spec
    assert (spec.run.device, spec.run.workers) == ("cpu", 3)


def test_errors_have_the_words_of_the_file() -> None:
    pipeline = Pipeline("my photos", arrays=[]).clip("3").clip(3, 1).map("y").cast("floot16").on("gpu", 0)  # type: ignore[arg-type]
    with pytest.raises(ConfigError) as caught:
        _ = pipeline.spec
    lines = str(caught.value).splitlines()
    expected = [
        "source.dataset: 'my photos' cannot be the name of a dataset",
        "source.arrays: names no array",
        "steps[0].clip.min: must be a number, not the text '3'",
        "steps[1].clip: `min` 3 is greater than `max` 1; swap them",
        "steps[2].map.expression: unknown name `y`",
        "steps[3].cast.dtype: unknown dtype `floot16`; did you mean `float16`?",
        "`output` is missing",
        "run.device: there is no device 'gpu'",
        "run.workers: must be at least 1, not 0",
    ]
    assert len(lines) == len(expected), lines
    for line, start in zip(lines, expected, strict=True):
        assert line.startswith(start)


@pytest.mark.parametrize("name", ["a", "A1", "0.b_c-d", "x" * 100])
def test_good_dataset_names(name: str) -> None:
    assert check_dataset_name(name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", "-a", "_a", ".hidden", "a b", "a/b", "a\n", "\u00e9", "x" * 101, "x" * 10**6, "a\x00", None, 3]
)
def test_bad_dataset_names(name: object) -> None:
    with pytest.raises(ValueError, match="cannot be the name of a dataset; use at most 100 letters") as caught:
        check_dataset_name(name)  # type: ignore[arg-type]
    assert len(str(caught.value)) < 250


def test_the_compressors_are_those_of_the_store() -> None:
    from gpuflow.storage.metadata import COMPRESSORS

    assert set(get_args(Compressor)) == {"auto", *COMPRESSORS}


def test_a_spec_made_by_hand_is_checked_too() -> None:
    source = SourceSpec(dataset="a", arrays=("t*", "image"))
    assert [source.selects(name) for name in ("time", "image", "Time", "x/t")] == [True, True, False, False]
    assert SourceSpec(dataset="a").selects("anything")
    with pytest.raises(ValidationError, match="is the source"):
        PipelineSpec(source=source, output=OutputSpec(dataset="a"))
    with pytest.raises(ValidationError, match="nothing to do"):
        PipelineSpec(source=source, output=OutputSpec(in_place=True))
    with pytest.raises(ValidationError):
        RunSpec().device = "cpu"  # type: ignore[misc]


def test_importing_it_is_light() -> None:
    code = "import sys, gpuflow.pipelines.pipeline; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {"zarr", "distributed", "dask", "numba", "numcodecs", "cupy", "torch"} & set(loaded)


SHAPED = (
    Pipeline("d")
    .crop(y=224, time=[0, None], only="t*")
    .pad("reflect", y=8, x=[0, 16])
    .transpose("time", "x", "y")
    .resize("box", y=4, x=5)
    .gaussian({"y": 1.5}, truncate=3)
    .median({"y": 3}, mode="nearest")
    .minimum({"y": 3})
    .maximum({"y": 3}, mode="constant", value=2)
    .rolling({"time": 7})
    .difference({"time": 1})
    .one_hot(5, dim="kind", only=["label"])
    .derive(wind="sqrt(u**2 + v**2)")
    .stack("u", "v", "wind", along="variable", axis=0, name="fields")
    .select("fields")
    .drop("nothing*")
)


def test_what_shapes_arrays_is_the_same_in_yaml() -> None:
    spec = SHAPED.to("e", chunks={"time": 1}, shards=[8, 4, 4]).spec
    assert len(spec.steps) == len(SHAPED.steps) == 15
    again = Pipeline.from_spec(load_text(dump_yaml(spec.to_dict())))
    assert again.spec == spec
    assert from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
