"""Whatever a pipeline's file holds, the command line says one clear thing: data that looks like the schema's, and damaged good files."""

from __future__ import annotations

import io
import json
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpuflow.cli import main
from gpuflow.pipelines.schema import pipeline_schema

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
SCHEMA = pipeline_schema()
FUZZED = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)

WRONG = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=6), st.just([]), st.just({}))
WORDS = st.sampled_from(["x", "x > 0", "photos", "y", "float16", "1GiB", "${HOME}", "${", "../a", "sys:exit"])


def like(schema: Any) -> st.SearchStrategy[Any]:
    """Data that the schema takes, or nearly."""
    if "anyOf" in schema:
        return st.one_of(*map(like, schema["anyOf"]), WRONG)
    if "enum" in schema or "const" in schema:
        return st.sampled_from(schema.get("enum", [schema.get("const")]))
    kinds: dict[str, st.SearchStrategy[Any]] = {
        "string": st.one_of(WORDS, st.text(max_size=5)),
        "integer": st.integers(-3, 10**6),
        "number": st.floats(),
        "boolean": st.booleans(),
        "null": st.none(),
    }
    if schema.get("type") == "array":
        items = schema.get("items", {})
        if isinstance(items, list):
            return st.tuples(*map(like, items)).map(list)
        return st.lists(like(items), max_size=3)
    if schema.get("type") == "object":
        properties = {name: like(value) for name, value in schema.get("properties", {}).items()}
        if schema.get("maxProperties") == 1:
            return st.one_of(*(st.fixed_dictionaries({name: value}) for name, value in properties.items()))
        required = {name: properties[name] for name in schema.get("required", [])}
        others = {name: value for name, value in properties.items() if name not in required}
        return st.fixed_dictionaries(required, optional={**others, "odd": WRONG})
    return kinds.get(schema.get("type", ""), WRONG)


def validate(path: Path) -> None:
    """Status 0 and one line, or 2 and an error with the file's name: never a traceback, which would come out of `main`."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["gpuflow", "validate", str(path)])
        with pytest.raises(SystemExit) as ended:
            main()
    shown = out.getvalue() + err.getvalue()
    assert ended.value.code in (0, None, 2), shown
    assert path.name in shown
    assert "Traceback" not in shown
    assert "pydantic" not in shown


@FUZZED
@given(like(SCHEMA))
def test_data_of_the_schemas_form(tmp_path: Path, data: Any) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(json.dumps(data))  # which is YAML too
    validate(path)


DAMAGE = st.tuples(st.integers(0, 4000), st.integers(0, 3), st.binary(max_size=3))


@FUZZED
@given(st.sampled_from(CONFIGS), st.lists(DAMAGE, min_size=1, max_size=4))
def test_damaged_files(tmp_path: Path, config: Path, damage: list[tuple[int, int, bytes]]) -> None:
    data = config.read_bytes()
    for place, length, instead in damage:
        place %= len(data) + 1
        data = data[:place] + instead + data[place + length :]
    path = tmp_path / "p.yaml"
    path.write_bytes(data)
    validate(path)
