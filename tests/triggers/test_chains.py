"""Which pipelines can be watched together, and what is gathered for the next run."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from gpuflow.errors import ClusterError, ConfigError
from gpuflow.pipelines.load import any_from_text, from_dict
from gpuflow.pipelines.spec import OnSpec, PipelineSpec
from gpuflow.triggers.chains import in_order
from gpuflow.triggers.gathering import LEAST_WAIT_SECONDS, Gathering, parts, wait_after
from gpuflow.triggers.lasting import lasting
from tests.cli.commands import command


def _spec(source: str, target: str | None) -> tuple[str, PipelineSpec]:
    output = {"dataset": target} if target else {"in_place": True}
    return f"{source}-{target}.yaml", from_dict({"source": source, "steps": [{"map": "x + 1"}], "output": output})


def test_each_after_what_it_reads() -> None:
    found = in_order([_spec("c", "d"), _spec("a", "b"), _spec("b", "c"), _spec("a", None)])
    names = [file for file, _ in found]
    assert names.index("a-None.yaml") < names.index("a-b.yaml") < names.index("b-c.yaml") < names.index("c-d.yaml")


def test_circles_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"go round in a circle: b -> c -> a -> b .*leave one of them out"):
        in_order([_spec("x", "y"), _spec("a", "b"), _spec("b", "c"), _spec("c", "a")])


def test_two_that_write_one_dataset_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"a-c.yaml and b-c.yaml both write dataset 'c'; watch one of them"):
        in_order([_spec("a", "c"), _spec("b", "c")])
    with pytest.raises(ConfigError, match=r"a-b.yaml and b-None.yaml both write dataset 'b'"):
        in_order([_spec("a", "b"), _spec("b", None)])


def test_one_that_comes_alone_is_dealt_with_at_once_and_a_burst_is_gathered() -> None:
    gathering = Gathering(OnSpec(dataset="a", batch_seconds=2.0, batch_chunks=3))
    assert gathering.wait_seconds(100.0) is None
    gathering.add("x", 1)
    assert gathering.wait_seconds(100.0) == 0
    (batch,) = gathering.batch(100.0)
    assert batch == {"x": {1}}
    gathering.succeeded(batch)
    gathering.ended(100.1, False)
    for chunk in (5, 4, 4, 6, 7):
        gathering.add("x", chunk)
    assert gathering.wait_seconds(100.5) == 1.5
    assert gathering.batch(102.0) == [{"x": {4, 5, 6}}, {"x": {7}}]


def test_what_failed_waits_longer_each_time_and_what_is_new_does_not() -> None:
    gathering = Gathering(OnSpec(dataset="a", batch_seconds=0.0))
    gathering.add("x", 1)
    gathering.batch(0.0)
    gathering.ended(0.0, True)
    assert gathering.wait_seconds(0.0) == LEAST_WAIT_SECONDS
    gathering.add("x", 2)
    assert gathering.wait_seconds(0.0) == 0
    (batch,) = gathering.batch(0.0)
    assert batch == {"x": {2}}
    gathering.succeeded(batch)
    assert gathering.left == {"x": {1}}
    assert gathering.batch(9.0) == [{"x": {1}}]
    gathering.succeeded({"x": {1}})
    assert gathering.is_idle
    assert [wait_after(number) for number in (0, 1, 2, 3, 99)] == [0, 0.5, 1, 2, 60]
    assert list(parts({}, 3)) == []


WRONG = {
    "on: other": "on.dataset: watches 'other', which is not the source 'raw'; write `on: raw`",
    "on: {dataset: raw, batch_seconds: -1}": "must be at least 0",
    "on: {dataset: raw, batch_seconds: soon}": "on.batch_seconds: must be a number",
    "on: {dataset: raw, batch: 1}": "unknown key `batch`; did you mean `batch_chunks`?",
    "on:": "`on` is empty",
    "on: {batch_seconds: 1}": "`dataset` is missing",
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_wrong_is_said_with_its_line(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        any_from_text(f"source: raw\nsteps: [map: x + 1]\noutput: out\n{text}\n", "p.yaml")
    assert str(caught.value).startswith("p.yaml:")
    assert WRONG[text].split("; ")[0] in str(caught.value)
    with pytest.raises(ConfigError, match="only a pipeline that writes a dataset can be watched"):
        any_from_text("source: raw\nstatistics: {}\non: raw\n")


def test_the_short_form_and_the_way_back() -> None:
    spec = from_dict({"source": "raw", "steps": [{"map": "x"}], "output": "o", "on": "raw"})
    assert spec.to_dict()["on"] == "raw"
    longer = from_dict({**spec.to_dict(), "on": {"dataset": "raw", "batch_seconds": 0.5, "tries": 2}})
    assert from_dict(longer.to_dict()) == longer


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    text = "source: {}\nsteps: [map: x + 1]\noutput: {}\n"
    (tmp_path / "a.yaml").write_text(text.format("one", "two"))
    (tmp_path / "b.yaml").write_text(text.format("two", "one"))
    assert "there is nothing to watch" in command("watch", root=tmp_path, status=2)
    assert "in a circle: two -> one -> two" in command("watch", tmp_path / "a.yaml", tmp_path / "b.yaml", root=tmp_path, status=2)
    assert "there is no such file" in command("watch", tmp_path / "c.yaml", root=tmp_path, status=2)
    assert "watched by" in command("watch", "--status", root=tmp_path)
    assert command("watch", "--status", "--json", root=tmp_path) == "[]\n"


def test_what_is_lost_is_begun_again_and_what_never_was_is_an_error() -> None:
    asked, said = list[int](), list[str]()

    def connect() -> Any:
        asked.append(1)
        if len(asked) == 2:
            raise ClusterError("not back yet")
        return nullcontext()

    def work(connection: object) -> None:
        if len(asked) == 1:
            raise OSError("gone")

    stop = threading.Event()
    stop.wait = lambda seconds=None: False  # type: ignore[method-assign]
    lasting(connect, work, stop, said.append)
    assert len(asked) == 3
    assert [text.split(";")[0] for text in said] == ["the cluster is lost (gone)", "the cluster is lost (not back yet)"]
    asked[:] = [1]
    with pytest.raises(ClusterError, match="not back yet"):
        lasting(connect, work, stop, said.append)
