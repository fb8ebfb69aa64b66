"""The JSON Schema of pipeline files, for editors: what may stand where, in which form, with a word on each key and an example.

Draft 7, which the YAML language server reads best. It takes every file that `load` takes, and refuses most that it does not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any

from pydantic import BaseModel

from gpuflow.pipelines.spec import OnSpec, OutputSpec, RunSpec, SourceSpec
from gpuflow.pipelines.statistics import StatisticsSpec
from gpuflow.steps.base import Operation
from gpuflow.steps.parameters import StepError, plain
from gpuflow.steps.registry import find, known

Schema = dict[str, Any]

_VARIABLE: Schema = {
    "type": "string",
    "pattern": r"\$\{[A-Za-z_]",
    "description": "A variable of the environment: ${NAME} or ${NAME:-default}.",
}


def pipeline_schema() -> Schema:
    """As plain data. Steps of installed distributions are in it; one that cannot be loaded may stand with anything."""
    steps = {kind: _step(kind) for kind in known()}
    bare = {"enum": sorted(steps), "description": "A step without parameters."}
    named = {"type": "object", "properties": steps, "additionalProperties": False, "minProperties": 1, "maxProperties": 1}
    source, output = _section(SourceSpec, "dataset"), _section(OutputSpec, "dataset")
    properties: dict[str, Schema] = {
        "source": {**source, "description": "The dataset that is read: its name, or its name and which of its arrays."},
        "steps": {
            "description": "What is done to each chunk of each array, in this order.",
            "anyOf": [{"type": "array", "items": {"anyOf": [named, bare]}}, {"type": "null"}],
        },
        "output": {**output, "description": "The new dataset that is written, or in_place: true to change the source itself."},
        "statistics": {"anyOf": [_section(StatisticsSpec), {"type": "null"}], "description": StatisticsSpec.about},
        "run": {"anyOf": [_section(RunSpec), {"type": "null"}], "description": "On what, and how carefully, it runs."},
        "on": {**_section(OnSpec, "dataset"), "description": "When `gpuflow watch` runs it: on changes of the source."},
    }
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "gpuflow pipeline",
        "description": "What is done to a Zarr dataset where its chunks lie: source, steps, output.",
        "type": "object",
        "properties": properties,
        "required": ["source"],
        "oneOf": [{"required": ["output"]}, {"required": ["statistics"]}],
        "additionalProperties": False,
    }


def _step(kind: str) -> Schema:
    """What may stand after the step's name."""
    try:
        step = find(kind)
    except StepError as error:
        return {"description": str(error)}
    fields = _fields(step)
    whole: Schema = {
        "type": "object",
        "properties": fields,
        "additionalProperties": step.takes_more,
        "required": _required(step),
    }
    forms = [whole, *_short(step, fields), *step.further_forms]
    if not whole["required"]:
        forms.append({"type": "null"})
    return {
        "description": step.about,
        "anyOf": forms,
        "examples": [plain(example) for example in step.examples],
        "defaultSnippets": [{"label": kind, "body": plain(step.examples[0])}] if step.examples else [],
    }


def _short(step: type[Operation], fields: Mapping[str, Schema]) -> Iterable[Schema]:
    """The forms of its shorthand."""
    if len(step.shorthand) == 1:
        yield fields[step.shorthand[0]]
    elif step.shorthand:
        items = [fields[name] for name in step.shorthand]
        about = f"[{', '.join(step.shorthand)}]"
        yield {"type": "array", "items": items, "minItems": len(items), "maxItems": len(items), "description": about}


def _section(model: type[BaseModel], short: str = "") -> Schema:
    """A section of the file; short: the key whose value may stand for the whole."""
    fields = _fields(model)
    whole = {
        "type": "object",
        "properties": fields,
        "additionalProperties": False,
        "required": _required(model),
    }
    return {"anyOf": [{**fields[short], "type": "string"}, whole]} if short else whole


def _fields(model: type[BaseModel]) -> dict[str, Schema]:
    """By name. pydantic's own form, made plain: no references, no titles, and a variable where text is not allowed anyway."""
    found = model.model_json_schema(mode="validation")
    shared = found.get("$defs", {})
    outer = {name: value for name, value in found["properties"].items() if not value.get("internal")}
    fields: dict[str, Schema] = {name: _plain(value, shared) for name, value in outer.items()}
    return {name: _or_variable(value) for name, value in fields.items()}


def _required(model: type[BaseModel]) -> list[str]:
    return [name for name, field in model.model_fields.items() if field.is_required()]


def _plain(value: Any, shared: Mapping[str, Any]) -> Any:
    if isinstance(value, list):
        return [_plain(item, shared) for item in value]
    if not isinstance(value, dict):
        return value
    if "$ref" in value:
        target = shared[value["$ref"].rpartition("/")[2]]
        return _plain({**deepcopy(target), **{key: one for key, one in value.items() if key != "$ref"}}, shared)
    kept = {key: one for key, one in value.items() if key != "title" or isinstance(one, dict)}
    plain = {key: _plain(one, shared) for key, one in kept.items()}
    if isinstance(plain.get("items"), dict):
        plain["items"] = _or_variable(plain["items"])
    return plain


def _takes_text(value: Schema) -> bool:
    forms = value.get("anyOf", [value])
    anything = not {"type", "anyOf", "enum", "const"} & set(value)
    return anything or any(form.get("type") == "string" and not {"enum", "const"} & set(form) for form in forms)


def _or_variable(value: Schema) -> Schema:
    """Also a variable, where text would not be taken."""
    if _takes_text(value):
        return value
    about: Schema = {key: value[key] for key in ("description", "default", "examples") if key in value}
    form = {key: one for key, one in value.items() if key not in about}
    forms = form["anyOf"] if set(form) == {"anyOf"} else [form]
    return {**about, "anyOf": [*forms, _VARIABLE]}
