"""The schema that editors use takes what the loader takes, and finds the usual mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from jsonschema import Draft7Validator

from gpuflow.errors import ConfigError
from gpuflow.pipelines.load import from_dict
from gpuflow.pipelines.schema import pipeline_schema
from gpuflow.pipelines.spec import PipelineSpec
from gpuflow.pipelines.yaml_text import parse_yaml
from gpuflow.steps.registry import STEPS
from tests.cli.commands import command

from .test_load import specs
from .wrong_cases import SECTIONS
from .wrong_cases import STEPS as WRONG_STEPS

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
SCHEMA = pipeline_schema()
VALIDATOR = Draft7Validator(SCHEMA)


def pipeline(step: Any) -> dict[str, Any]:
    return {"source": "a", "steps": [step], "output": "b"}


def test_it_is_a_schema_without_references() -> None:
    Draft7Validator.check_schema(SCHEMA)
    assert "$ref" not in json.dumps(SCHEMA)
    assert json.loads(command("schema", root=Path())) == SCHEMA


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_configs_fit(path: Path) -> None:
    data = parse_yaml(path.read_text()).data
    assert [error.message for error in VALIDATOR.iter_errors(data)] == []


@pytest.mark.parametrize("kind", STEPS)
def test_every_step_is_described_with_examples_that_work(kind: str) -> None:
    step = SCHEMA["properties"]["steps"]["anyOf"][0]["items"]["anyOf"][0]["properties"][kind]
    assert step["description"]
    assert all(field["description"] for field in step["anyOf"][0].get("properties", {}).values())
    assert STEPS[kind].examples
    for example in STEPS[kind].examples:
        VALIDATOR.validate(pipeline({kind: example}))
        if kind != "apply":  # its examples are of a module that is not there
            assert from_dict(pipeline({kind: example})).steps[0].kind == kind


@settings(deadline=None, max_examples=60)
@given(specs())
def test_what_the_loader_takes_fits(spec: PipelineSpec) -> None:
    VALIDATOR.validate(json.loads(json.dumps(spec.to_dict())))


def test_statistics_in_place_of_an_output() -> None:
    full = {"per": "y", "where": "x > 0", "quantiles": [0.5], "histogram": {"bins": 9, "range": [0, 1]}}
    for statistics in (full, {"histogram": 9}, {"weights": "cos(radians(lat))"}, {}, None):
        VALIDATOR.validate({"source": "a", "statistics": statistics})
    assert not VALIDATOR.is_valid({"source": "a", "statistics": {}, "output": "b"})
    assert not VALIDATOR.is_valid({"source": "a", "statistics": {"histogram": {"bin": 9}}})
    assert not VALIDATOR.is_valid({"source": "a", "statistics": {"weights": 3}})


def test_variables_may_stand_for_numbers() -> None:
    text = "source: ${A}\nsteps:\n- clip:\n    min: ${LOW}\n    max: 3\n- cast: ${TYPE:-float16}\noutput: b\nrun:\n  workers: ${N:-2}\n"
    VALIDATOR.validate(parse_yaml(text).data)


def test_it_finds_most_of_what_the_loader_finds() -> None:
    """Not what needs arithmetic, such as bounds that do not rise."""
    missed = []
    wrong = {name: parse_yaml(text).data for name, (text, _) in (SECTIONS | WRONG_STEPS).items()}
    for name, data in wrong.items():
        with pytest.raises(ConfigError):
            from_dict(data)
        if VALIDATOR.is_valid(json.loads(json.dumps(data))):
            missed.append(name)
    assert len(missed) < 0.5 * len(wrong), missed
