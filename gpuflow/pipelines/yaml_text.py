"""YAML text to plain data that remembers where everything stands.

YAML 1.2 core schema, and less: no tags, one document, text keys. Works on the event stream and counts as it goes, so that an
alias bomb or deep nesting is refused before it costs anything. All that is wrong comes out with line and column. Variables are put in
after parsing, so that what they hold is never taken for YAML of its own."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
    SequenceStartEvent,
)
from ruamel.yaml.events import CollectionEndEvent as EndEvent

from gpuflow.errors import ConfigError, Problem
from gpuflow.pipelines.variables import VariableError, escape, substitute

Place = tuple[int, int]
"""Line and column, both from 1."""
Path = tuple[str | int, ...]

MAX_NODES = 10_000
MAX_DEPTH = 50
"""Limits on one file, aliases expanded: far above any pipeline, far below Python's recursion limit."""

_INT = re.compile(r"[-+]?[0-9]{1,25}|0o[0-7]{1,25}|0x[0-9a-fA-F]{1,25}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS: dict[str, Any] = {"": None, "~": None} | dict.fromkeys(("null", "Null", "NULL"))
_WORDS |= dict.fromkeys(("true", "True", "TRUE"), True) | dict.fromkeys(("false", "False", "FALSE"), False)
_WORDS |= {f"{sign}.{inf}": float(f"{sign}inf") for sign in ("", "+", "-") for inf in ("inf", "Inf", "INF")}
_WORDS |= dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan"))
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")

_PLAIN_WORDS = (
    ("'\\t'", "a tab cannot begin anything here", "indent with spaces"),
    ("mapping values are not allowed", "a `:` is not expected here", "check the indentation, or put the text in quotes"),
    ("expected <block end>", "this line does not fit the lines above it", "check the indentation and that brackets are closed"),
    ("expected ',' or", "a bracket is not closed, or a comma is missing", "check the brackets above"),
    ("could not find expected ':'", "a key is not followed by `:`", "write `key: value`, with a space after the colon"),
    ("found unexpected end of stream", "the file ends inside quotes", "close the quotes"),
    (
        "undefined alias",
        "the alias `*` names an anchor `&` that is not there",
        "define the anchor above it, or put the text in quotes",
    ),
    ("cannot start any token", "a character such as % @ ` cannot begin a value", "put the text in quotes"),
)


@dataclass(frozen=True)
class Document:
    """`values` and `keys`: the places of values, and of the keys they stand under, by path."""

    data: Any
    values: dict[Path, Place] = field(default_factory=dict)
    keys: dict[Path, Place] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    unset: set[Place] = field(default_factory=set)
    """Places of values whose variables are not set; it is among the problems."""

    def place(self, path: Path, *, key: bool = False) -> tuple[int | None, int | None]:
        """Where `path` stands; the nearest thing around it when it is not there itself; Nones without text."""
        if key and path in self.keys:
            return self.keys[path]
        while path and path not in self.values:
            path = path[:-1]
        return self.values.get(path, (None, None))


@dataclass
class _Node:
    place: Place
    value: Any = None
    unset: VariableError | None = None
    children: list[_Node] | None = None
    is_mapping: bool = False
    is_open: bool = False
    tag: str | None = None
    size: int = 1
    height: int = 1


def parse_yaml(text: str, file: str | None = None, variables: Mapping[str, str] | None = None) -> Document:
    """The one document in `text`. ConfigError when it is not YAML; slips inside good YAML are the document's `problems`.

    variables: what `${NAME}` stands for, also as a number when it is not in quotes; None leaves it as it is written."""
    control = _CONTROL.search(text)
    if control:
        line, column = text.count("\n", 0, control.start()) + 1, control.start() - text.rfind("\n", 0, control.start())
        problem = Problem(
            f"the character U+{ord(control[0]):04X} is not text", line=line, column=column, hint="save it as UTF-8 text"
        )
        raise ConfigError([problem], file)
    root = _compose(text, file, variables)
    if root is None or (root.children is None and root.value is None):
        hint = "write source, steps and output"
        raise ConfigError([Problem("the file is empty", hint=hint)], file)
    document = Document(None)
    return replace(document, data=_convert(root, (), document))


def _compose(text: str, file: str | None, variables: Mapping[str, str] | None) -> _Node | None:
    try:
        return _Composer(file, variables).compose(YAML(typ="safe", pure=True).parse(text))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        found = str(error.problem or error.context or "it cannot be read")
        words = next(((message, hint) for part, message, hint in _PLAIN_WORDS if part in found), (found, ""))
        line, column = (mark.line + 1, mark.column + 1) if mark is not None else (None, None)
        if line is not None and "${" in "".join(text.split("\n")[line - 1 : line]):
            words = words[0], 'inside [ ] and { }, put "${...}" in quotes'
        raise ConfigError([Problem(f"not valid YAML: {words[0]}", "", line, column, words[1])], file) from None
    except ConfigError:
        raise
    except (YAMLError, ValueError, LookupError, TypeError, AttributeError, AssertionError, RuntimeError, ArithmeticError):
        # The reader itself trips over some malformed escapes and directives; the text is at fault all the same.
        raise ConfigError([Problem("not valid YAML", hint="check quotes, escapes and lines that begin with %")], file) from None


class _Composer:
    """Builds the tree from events, iteratively."""

    def __init__(self, file: str | None, variables: Mapping[str, str] | None) -> None:
        self.file, self.variables = file, variables
        self.stack: list[_Node] = []
        self.anchors: dict[str, _Node] = {}
        self.root: _Node | None = None
        self.count = self.documents = 0

    def compose(self, events: Iterable[Any]) -> _Node | None:
        for event in events:
            place = (event.start_mark.line + 1, event.start_mark.column + 1)
            if isinstance(event, DocumentStartEvent):
                self.documents += 1
                if self.documents > 1:
                    raise self._error(
                        "there is more than one document", place, "keep one pipeline per file, without a second `---`"
                    )
            elif isinstance(event, NodeEvent):
                self._node(event, place)
            elif isinstance(event, EndEvent):
                node = self.stack.pop()
                node.is_open = False
                self._attach(node)
        return self.root

    def _node(self, event: Any, place: Place) -> None:
        node = self._alias(event, place) if isinstance(event, AliasEvent) else _Node(place, tag=event.tag)
        self.count += node.size
        if self.count > MAX_NODES:
            raise self._error(f"the file has more than {MAX_NODES} values, aliases expanded", place, "write a shorter pipeline")
        if len(self.stack) + node.height > MAX_DEPTH:
            raise self._error(f"it is nested more than {MAX_DEPTH} deep", place, "a pipeline is a few levels deep")
        if event.anchor is not None and not isinstance(event, AliasEvent):
            self.anchors[event.anchor] = node
        if isinstance(event, SequenceStartEvent | MappingStartEvent):
            node.children, node.is_open, node.is_mapping = [], True, isinstance(event, MappingStartEvent)
            self.stack.append(node)
            return
        if isinstance(event, ScalarEvent):
            self._scalar(node, event.value, plain=not event.style)
        self._attach(node)

    def _scalar(self, node: _Node, text: str, *, plain: bool) -> None:
        try:
            node.value = text if self.variables is None else substitute(text, self.variables)
        except VariableError as error:
            node.value, node.unset = text, error
        if plain:
            node.value = _plain_scalar(node.value)

    def _alias(self, event: Any, place: Place) -> _Node:
        target = self.anchors.get(event.anchor)
        if target is None:
            raise self._error(
                f"the alias *{event.anchor} has no anchor &{event.anchor} above it", place, "define it, or use quotes"
            )
        if target.is_open:
            raise self._error(f"the alias *{event.anchor} stands inside its own anchor", place, "write the value out")
        return replace(target, place=place)

    def _attach(self, node: _Node) -> None:
        if not self.stack:
            self.root = node
            return
        parent = self.stack[-1]
        assert parent.children is not None
        parent.children.append(node)
        parent.size += node.size
        parent.height = max(parent.height, node.height + 1)

    def _error(self, message: str, place: Place, hint: str) -> ConfigError:
        return ConfigError([Problem(message, "", *place, hint=hint)], self.file)


def _plain_scalar(text: str) -> Any:
    """The value of an unquoted scalar by the core schema (YAML 1.2.2, section 10.3.2)."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
    return float(text) if _FLOAT.fullmatch(text) else text


def _convert(node: _Node, path: Path, document: Document) -> Any:
    document.values[path] = node.place
    if node.tag is not None:
        _note(document, f"the tag `{str(node.tag)[:60]}` is not allowed", path, node.place, "write plain values, without !")
    if node.unset is not None:
        document.unset.add(node.place)
        _note(document, node.unset.message, path, node.place, node.unset.hint)
    if node.children is None:
        return node.value
    if not node.is_mapping:
        return [_convert(child, (*path, position), document) for position, child in enumerate(node.children)]
    mapping: dict[str, Any] = {}
    for key, value in _pairs(node.children):
        if key.children is not None or not isinstance(key.value, str):
            what = "a list or mapping" if key.children is not None else f"`{'null' if key.value is None else key.value}`"
            _note(document, f"a key has to be text, not {what}", path, key.place, "put it in quotes if it is meant as text")
            continue
        below = (*path, key.value)
        if key.tag is not None:
            _note(document, f"the tag `{str(key.tag)[:60]}` is not allowed", below, key.place, "write plain keys, without !")
        if key.value in mapping:
            first = document.keys[below][0]
            _note(document, f"the key `{key.value}` is there twice", below, key.place, f"the first is on line {first}; keep one")
            continue
        document.keys[below] = key.place
        mapping[key.value] = _convert(value, below, document)
        if mapping[key.value] is None:
            document.values[below] = key.place  # what is not written would stand where the next thing stands
    return mapping


def _pairs(children: list[_Node]) -> Iterator[tuple[_Node, _Node]]:
    return zip(children[::2], children[1::2], strict=True)


def _note(document: Document, message: str, path: Path, place: Place, hint: str) -> None:
    document.problems.append(Problem(message, format_path(path), *place, hint=hint))


def format_path(path: Path) -> str:
    """`("steps", 1, "clip")` -> `steps[1].clip`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


def dump_yaml(data: Any) -> str:
    """Plain data as YAML text, in the order it has, such that `parse_yaml` with whatever variables gives it back."""
    data = _escaped(data)
    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style = False
    # The writer takes U+0085 and its like for line breaks; then all that is not ASCII is escaped.
    writer.allow_unicode = json.dumps(data, ensure_ascii=False).isprintable()
    writer.width = 2**16  # no folding: an expression stays on its line
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    writer.representer.ignore_aliases = lambda _: True  # a value that stands twice is written twice
    stream = io.StringIO()
    writer.dump(data, stream)
    return stream.getvalue()


def _escaped(data: Any) -> Any:
    if isinstance(data, str):
        return escape(data)
    if isinstance(data, Mapping):
        return {key: _escaped(value) for key, value in data.items()}
    return [_escaped(item) for item in data] if isinstance(data, list | tuple) else data
