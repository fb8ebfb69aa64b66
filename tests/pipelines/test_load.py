"""Files become specs, or one error that says everything: where, what, and what to do."""

from __future__ import annotations

import os
import pickle
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpuflow.errors import ConfigError
from gpuflow.pipelines.load import MAX_FILE_NBYTES, any_from_dict, any_from_text, from_dict, load_pipeline, load_text
from gpuflow.pipelines.spec import PipelineSpec
from gpuflow.pipelines.yaml_text import dump_yaml, parse_yaml
from gpuflow.steps.cast import Cast
from gpuflow.steps.clip import Clip
from gpuflow.steps.map import Map
from gpuflow.steps.standardize import Standardize

from .wrong_cases import GOOD, MANY, MANY_PLACES, SECTIONS, STATISTICS, STEPS, STRUCTURE, VARIABLES

WRONG = STRUCTURE | VARIABLES | SECTIONS | STATISTICS | STEPS
NOISE = ("pydantic", "Input should", "type=", "errors.", "Traceback", "loc", "<byte string>", "unicode string")


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_is_explained(name: str) -> None:
    text, expected = WRONG[name]
    started = time.perf_counter()
    with pytest.raises(ConfigError) as caught:
        load_text(text, "p.yaml")
    assert time.perf_counter() - started < 3
    lines = str(caught.value).splitlines()
    assert len(lines) == len(expected), lines
    for line, part in zip(lines, expected, strict=True):
        assert part in line
        assert line.startswith("p.yaml:")
    assert not any(noise in str(caught.value) for noise in NOISE)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert caught.value.__cause__ is None


def test_the_corpus_is_large() -> None:
    assert len(WRONG) >= 60


def test_all_problems_come_at_once_in_the_order_of_the_file() -> None:
    with pytest.raises(ConfigError) as caught:
        load_text(MANY)
    assert [(problem.line, problem.column) for problem in caught.value.problems] == MANY_PLACES
    assert all(problem.hint for problem in caught.value.problems if "must be" not in problem.message)


def test_a_good_file() -> None:
    spec = load_text(GOOD)
    assert (spec.source.dataset, spec.source.arrays) == ("photos", None)
    assert spec.steps == (Standardize(per="channel"), Clip(min=-3, max=3), Cast(dtype="float16"))
    assert (spec.output.dataset, spec.output.in_place, spec.output.compressor) == ("photos-train", False, "zstd")
    assert (spec.run.device, spec.run.workers) == ("auto", None)


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ("clip: [-3, 3]", "clip: {min: -3, max: 3}"),
        ("clip: [~, 3]", "clip: {max: 3}"),
        ("map: x * 2", "map: {expression: x * 2}"),
        ("map: >\n      where(x > 0,\n      x, 0)", "map: {expression: 'where(x > 0, x, 0)'}"),
        ("cast: float16", "cast: {dtype: float16}"),
        ("standardize: channel", "standardize: {per: channel}"),
        ("standardize: [channel, 0]", "standardize: {per: [channel, 0]}"),
        ("standardize: 1", "standardize: {per: 1}"),
        ("standardize", "standardize: {}"),
        ("standardize:", "standardize: {per: null}"),
    ],
)
def test_shorthands(short: str, long: str) -> None:
    specs = [load_text(f"source: a\nsteps:\n  - {text}\noutput: b\n") for text in (short, long)]
    assert specs[0] == specs[1]


def test_sections_in_short_and_long() -> None:
    text = "source: {dataset: a, arrays: image}\noutput: {dataset: b}\nrun: {device: 'cuda:1', workers: 2}"
    spec = load_text(text)
    assert spec.source.arrays == ("image",)
    assert spec.to_dict() == {
        "source": {"dataset": "a", "arrays": ["image"]},
        "steps": [],
        "output": "b",
        "run": {"device": "cuda:1", "workers": 2},
    }
    assert load_text("source: a\nsteps:\nrun:\noutput: b").to_dict() == {"source": "a", "steps": [], "output": "b"}
    assert load_text("source: a\nsteps: [standardize]\noutput: {in_place: true}").to_dict()["output"] == {"in_place": True}


def test_aliases_stand_for_their_values() -> None:
    spec = load_text("source: a\nsteps:\n  - clip: &range [0, 1]\n  - cast: int8\n  - clip: *range\noutput: b\n")
    assert spec.steps[0] == spec.steps[2] == Clip(min=0, max=1)


def test_a_problem_behind_an_alias_has_a_place() -> None:
    with pytest.raises(ConfigError) as caught:
        load_text("source: a\nsteps:\n  - clip: &range {min: 2, max: x}\n  - clip: *range\noutput: b\n")
    assert [(problem.line, problem.path) for problem in caught.value.problems] == [
        (3, "steps[0].clip.max"),
        (3, "steps[1].clip.max"),
    ]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0o17", 15), ("0x1F", 31), ("017", 17), ("-0", 0), ("1e3", 1000.0), (".5", 0.5), ("+1.", 1.0), ("-.inf", float("-inf")),
        ("yes", "yes"), ("off", "off"), ("1_000", "1_000"), ("12:30", "12:30"), ("2001-01-01", "2001-01-01"), ("0b1", "0b1"),
        ("'3'", "3"), ('"true"', "true"), ("TRUE", True), ("Null", None), ("", None), ("|-\n  3", "3"), ("<<", "<<"), ("=", "="),
    ],
)  # fmt: skip
def test_scalars_follow_the_core_schema_of_yaml_1_2(text: str, value: Any) -> None:
    found = parse_yaml(f"a: {text}\n").data["a"]
    assert found == value
    assert type(found) is type(value)


def test_a_yaml_1_1_directive_changes_nothing() -> None:
    assert parse_yaml("%YAML 1.1\n---\na: yes\n").data == {"a": "yes"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${N}", 3), ("'${N}'", "3"), ("x${N}", "x3"), ("-${N}.5", -3.5), ("${NONE:-2}", 2), ("${EMPTY:-2}", 2), ("${EMPTY}", None),
        ("$${N}", "${N}"), ("$N", "$N"), ("'a $ {b}'", "a $ {b}"), ("${YAML}", "[1, {a: b}]"), ("${NONE:-}", None), ("$$${N}", "$${N}"),
        ("${DOLLAR}", "${N}"),
    ],
)  # fmt: skip
def test_variables_are_put_into_values(text: str, value: Any) -> None:
    variables = {"N": "3", "EMPTY": "", "YAML": "[1, {a: b}]", "DOLLAR": "${N}"}
    found = parse_yaml(f"a:\n  b: {text}\n", variables=variables)
    assert not found.problems
    assert found.data["a"]["b"] == value
    assert type(found.data["a"]["b"]) is type(value)


def test_a_file_takes_them_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIZE", "4")
    spec = load_text(
        "source: ${NAME:-photos}\nsteps:\n- clip: {min: 0, max: 9}\noutput: '${NAME:-x}-${SIZE}'\nrun:\n  workers: ${SIZE}\n"
    )
    assert (spec.source.dataset, spec.output.dataset, spec.run.workers) == ("photos", "x-4", 4)


def test_a_pipeline_of_statistics() -> None:
    text = "source: a\nsteps: [{clip: [0, 1]}]\nstatistics: {per: y, quantiles: 0.5, histogram: {bins: 9, range: [0, 1]}, where: x > 0}\n"
    pipeline = any_from_text(text)
    assert any_from_dict(pipeline.to_dict()) == any_from_text(dump_yaml(pipeline.to_dict())) == pipeline
    assert any_from_text("source: a\nstatistics:\n").to_dict() == {"source": "a", "statistics": {}}
    with pytest.raises(ConfigError, match="statistics: this pipeline computes statistics, and writes no dataset"):
        load_text(text, "p.yaml")


def test_line_ends_and_a_byte_order_mark_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    assert load_pipeline(path) == load_pipeline(str(path)) == load_text(GOOD)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x89PNG\r\n\x1a\n\x00", "this is not UTF-8 text"),
        (GOOD.encode("utf-16"), "this is not UTF-8 text"),
        (b"source: caf\xe9\n", "1: this is not UTF-8 text"),
        (b"source: a\x00\n", "1:10: the character U+0000 is not text"),
        (b"# " + b"x" * MAX_FILE_NBYTES, "the file is larger than 1 MiB"),
        (b"", "the file is empty"),
    ],
)
def test_files_that_are_no_pipelines(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "p.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_pipeline(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(path))


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, message in [(".", "this is a directory"), ("none.yaml", "there is no such file"), ("pipe", "not a regular file")]:
        with pytest.raises(ConfigError, match=message):
            load_pipeline(tmp_path / name)
    for name in ("a\x00b", "x" * 5000):
        with pytest.raises(ConfigError):
            load_pipeline(name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(GOOD)
    path.chmod(0)
    with pytest.raises(ConfigError, match="cannot be read: Permission denied"):
        load_pipeline(path)


@pytest.mark.parametrize("data", [None, [], "a", 3, {1: 2}, {"source": {1: 2}, "output": {"dataset": None}}, {"steps": {1, 2}}])
def test_wrong_data_from_python(data: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        from_dict(data)
    assert all(problem.line is None for problem in caught.value.problems)


names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
numbers = st.one_of(st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False, allow_infinity=False))
positive = st.floats(min_value=1e-300, allow_infinity=False, allow_nan=False)
per = st.one_of(
    st.none(),
    st.integers(-9, 9),
    st.text(min_size=1),
    st.lists(st.one_of(st.integers(0, 5), st.text(min_size=1)), max_size=3, unique=True),
)
standardize = st.one_of(
    st.builds(Standardize, per=per),
    st.builds(Standardize, per=per, mean=st.one_of(numbers, st.lists(numbers)), std=st.one_of(positive, st.lists(positive))),
    st.builds(Standardize, per=per, mean=st.lists(st.tuples(numbers, numbers), max_size=2), std=positive),
)
clip = st.one_of(
    st.builds(Clip, min=numbers),
    st.builds(Clip, max=numbers),
    st.tuples(numbers, numbers).map(lambda pair: Clip(min=min(pair), max=max(pair))),
)
steps = st.one_of(
    standardize,
    clip,
    st.sampled_from(["bool", "float16", "complex64"]).map(lambda name: Cast(dtype=name)),
    st.sampled_from(["x", "x * 2", "(x > 0) & (x < 1)", "-x", "~x", "where(x==0, 1, x)"]).map(lambda text: Map(expression=text)),
)


@st.composite
def specs(draw: st.DrawFn) -> PipelineSpec:
    chosen = tuple(draw(st.lists(steps, max_size=4)))
    dataset = draw(names)
    text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
    arrays = draw(st.one_of(st.none(), st.lists(text, min_size=1, max_size=3, unique=True)))
    compressor = draw(st.sampled_from(["auto", "none", "zstd", "gzip", "blosc", "lz4"]))
    sizes = st.lists(st.integers(1, 999), min_size=1, max_size=4).map(tuple)
    chunks = draw(st.one_of(st.sampled_from(["auto", "whole"]), sizes))
    in_place = bool(chosen) and draw(st.booleans())
    output = (
        {"in_place": True}
        if in_place
        else {"dataset": draw(names.filter(lambda name: name != dataset)), "compressor": compressor, "chunks": chunks}
    )
    run = {
        "device": draw(st.sampled_from(["auto", "cpu", "cuda", "cuda:0", "cuda:12"])),
        "workers": draw(st.one_of(st.none(), st.integers(1, 99))),
        "memory": draw(st.one_of(st.none(), st.integers(2**20, 2**50))),
        "cache": draw(st.one_of(st.sampled_from(["auto", "off"]), st.integers(2**20, 2**50))),
        "on_error": draw(st.sampled_from(["continue", "stop"])),
    }
    source = {"dataset": dataset, "arrays": arrays}
    return PipelineSpec.model_validate({"source": source, "steps": chosen, "output": output, "run": run})


@settings(deadline=None)
@given(specs())
@example(
    PipelineSpec.model_validate(
        {"source": {"dataset": "a", "arrays": ["\x85", "\u2028\n", "\ufeff", "\xe9"]}, "output": {"dataset": "b"}}
    )
)
def test_spec_dict_and_yaml_round_trip_exactly(spec: PipelineSpec) -> None:
    data = spec.to_dict()
    assert from_dict(data) == spec
    again = load_text(dump_yaml(data))
    assert again == spec
    assert again.to_dict() == data
    assert repr(again.to_dict()) == repr(data), "1 and 1.0 are equal, but not the same"
    assert pickle.loads(pickle.dumps(spec)) == spec


@settings(max_examples=250, deadline=None)
@given(
    st.one_of(
        st.text(max_size=80),
        st.text("sourcetpn: \n-[]{},&*!|>'\"%@#?~0.<=\\x\t", max_size=60).map(lambda text: f"source: {text}"),
    )
)
def test_any_text_is_a_pipeline_or_an_error(text: str) -> None:
    try:
        spec = load_text(text, "p.yaml")
    except ConfigError as error:
        assert str(error).startswith("p.yaml")  # noqa: PT017
        return
    assert load_text(dump_yaml(spec.to_dict())) == spec


KEYS = ["dataset", "min", "per", "mean", "std", "clip", "x"]
KINDS = ["clip", "cast", "map", "standardize"]
json_like = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(KEYS), inner, max_size=3)),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=250, deadline=None)
@given(
    st.fixed_dictionaries(
        {"source": st.one_of(st.just("a"), json_like), "output": st.one_of(st.just("b"), json_like)},
        optional={
            "steps": st.one_of(json_like, st.lists(st.dictionaries(st.sampled_from(KINDS), json_like, max_size=2), max_size=3)),
            "run": json_like,
        },
    )
)  # fmt: skip
def test_any_data_is_a_pipeline_or_an_error(data: dict[str, Any]) -> None:
    try:
        spec = from_dict(data)
    except ConfigError as error:
        assert str(error)  # noqa: PT017
        return
    assert from_dict(spec.to_dict()) == spec
