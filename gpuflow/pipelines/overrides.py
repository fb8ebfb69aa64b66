"""Values that are given beside a pipeline file and take the place of what it says: `steps[0].clip.max=5`.

Pure. The document that is given stays as it was."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from gpuflow.errors import ConfigError, Problem
from gpuflow.pipelines.yaml_text import Document, Path, format_path, parse_yaml
from gpuflow.steps.parameters import describe

_NAME = r"[^.\[\]=\s]+"
_SETTING = re.compile(rf"\s*({_NAME}(?:\.{_NAME}|\[[0-9]+\])*)\s*=(.*)", re.DOTALL)
_FORM = "write section.key=value or steps[0].name.parameter=value, the value as in YAML"


def override(document: Document, settings: Sequence[str]) -> Document:
    """The document with each `path=value` set, in order. Mappings that are not there are made; lists keep their length.

    ConfigError, naming the setting, when it is not of that form, its value is not YAML, or its path leads nowhere."""
    data, values, keys = document.data, document.values, document.keys
    for setting in settings:
        path, value = _parse(setting)
        data = _put(data, path, value, (), setting)
        values, keys = ({p: place for p, place in places.items() if p[: len(path)] != path} for places in (values, keys))
    return replace(document, data=data, values=values, keys=keys)


def _parse(setting: str) -> tuple[Path, Any]:
    found = _SETTING.fullmatch(setting)
    if found is None:
        raise _wrong(setting, "this is not a path and a value", _FORM)
    path = tuple(int(part) if part.isdecimal() else part for part in re.findall(r"[^.\[\]]+", found[1]))
    text = found[2].strip()
    if not text:
        return path, None
    try:
        value = parse_yaml(text)
    except ConfigError as error:
        raise _wrong(setting, error.problems[0].message, error.problems[0].hint) from None
    if value.problems:
        raise _wrong(setting, value.problems[0].message, value.problems[0].hint)
    return path, value.data


def _put(node: Any, path: Path, value: Any, above: Path, setting: str) -> Any:
    """`node`, which stands at `above`, with `value` at `path` below it."""
    if not path:
        return value
    head, below = path[0], (*above, path[0])
    if isinstance(node, str) and above in (("source",), ("output",)):
        node = {"dataset": node}
    elif isinstance(node, str) and len(above) == 2 and above[0] == "steps":
        node = {node: None}  # a step without parameters
    if isinstance(node, list | tuple):
        if not isinstance(head, int) or head >= len(node):
            length = f"has {len(node)} entries, numbered from 0" if node else "is empty"
            hint = f"set it whole: {format_path(above)}=[...]"
            raise _wrong(setting, f"`{format_path(above)}` is a list and {length}", hint)
        return [*node[:head], _put(node[head], path[1:], value, below, setting), *node[head + 1 :]]
    if node is None or isinstance(node, Mapping):
        known = node or {}
        return {**known, head: _put(known.get(head), path[1:], value, below, setting)}
    raise _wrong(setting, f"`{format_path(above)}` is {describe(node)}, which has nothing below it", _FORM)


def _wrong(setting: str, message: str, hint: str) -> ConfigError:
    shown = setting if len(setting) <= 60 else f"{setting[:60]}..."
    return ConfigError([Problem(message, f"--set {shown}", hint=hint)])
