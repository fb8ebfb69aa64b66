"""Steps of other distributions are found by name, and what is wrong with them is said with the distribution's name."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpuflow.errors import ConfigError
from gpuflow.pipelines.load import load_text
from gpuflow.pipelines.pipeline import Pipeline
from gpuflow.pipelines.plan import steps_as_data, steps_from
from gpuflow.pipelines.schema import pipeline_schema
from gpuflow.steps import registry
from gpuflow.steps.clip import Clip

from .distribution import install


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    """What is installed is looked up once a process."""
    registry._installed.cache_clear()
    yield
    registry._installed.cache_clear()
    registry._load.cache_clear()
    sys.modules.pop("halving", None)


def pipeline(step: str) -> str:
    return f"source: a\nsteps:\n  - {step}\noutput: b\n"


def test_it_is_a_step_like_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(install(tmp_path / "site"))
    spec = load_text(pipeline("halve: 3"))
    assert (spec.steps[0].kind, spec.to_dict()["steps"]) == ("halve", [{"halve": {"times": 3}}])
    assert Pipeline("a").step("halve", times=3).to("b").spec == spec
    assert steps_from(steps_as_data(spec.steps)) == spec.steps
    known = pipeline_schema()["properties"]["steps"]["anyOf"][0]["items"]["anyOf"][0]["properties"]
    assert known["halve"]["description"] == "Divide by two."
    with pytest.raises(ConfigError, match="unknown step `halv`; did you mean `halve`"):
        load_text(pipeline("halv"))
    with pytest.raises(ConfigError, match="unknown key `time`; did you mean `times`"):
        load_text(pipeline("halve: {time: 3}"))


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (
            "halve = halving_gone:Halve",
            "the step `halve` of halving 1.0 cannot be loaded: ModuleNotFoundError: No module named",
        ),
        ("halve = halving:Third", "cannot be loaded: AttributeError"),
        (
            "third = halving:Halve",
            "the step `third` of halving 1.0 cannot be used: halving:Halve is no gpuflow.steps.base.Step or Join of that",
        ),
        ("halve = halving:ClassVar", "cannot be used"),
    ],
)
def test_one_that_is_broken_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, points: str, message: str) -> None:
    monkeypatch.syspath_prepend(install(tmp_path / "site", points=points))
    name = points.partition(" ")[0]
    with pytest.raises(ConfigError) as caught:
        load_text(pipeline(name), "p.yaml")
    assert message in str(caught.value)
    assert str(caught.value).startswith("p.yaml:3:5")
    assert "mend or uninstall" in str(caught.value)
    assert pipeline_schema()  # it is for what works too


def test_two_of_one_name_are_refused_and_ours_cannot_be_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(install(tmp_path / "one", points="halve = halving:Halve\nclip = halving:Halve"))
    monkeypatch.syspath_prepend(install(tmp_path / "two", name="thirds", points="halve = thirds:Halve"))
    with pytest.raises(ConfigError, match=r"the step `halve` is in halving 1.0 and thirds 1.0; uninstall all but one"):
        load_text(pipeline("halve"))
    assert registry.find("clip") is Clip


def test_the_command_line_finds_it(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(pipeline("halve: 3"))
    command = [sys.executable, "-m", "gpuflow", "validate", "p.yaml"]
    site = str(install(tmp_path / "site"))
    done = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": site, "PATH": ""}, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    done = subprocess.run(command, cwd=tmp_path, env={"PATH": ""}, capture_output=True, text=True)
    assert done.returncode == 2
    assert "unknown step `halve`" in done.stderr
