"""From a YAML file, or the same data in Python, to a `PipelineSpec`; or to one error that lists everything that is wrong.

Each step and each section is validated on its own, so that one mistake does not hide another."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from gpuflow.errors import ConfigError, Problem
from gpuflow.pipelines.overrides import override
from gpuflow.pipelines.spec import OnSpec, OutputSpec, PipelineSpec, RunSpec, SourceSpec, conflicts
from gpuflow.pipelines.statistics import AnyPipeline, StatisticsPipeline, StatisticsSpec
from gpuflow.pipelines.yaml_text import Document, Path, format_path, parse_yaml
from gpuflow.steps.base import Operation, Step
from gpuflow.steps.parameters import StepError, describe, nearest
from gpuflow.steps.registry import find, known

MAX_FILE_NBYTES = 2**20
_SECTIONS = ("source", "steps", "output", "statistics", "run", "on")

Model = TypeVar("Model", bound=BaseModel)


def load_any(path: str | FilePath, settings: Sequence[str] = ()) -> AnyPipeline:
    """Read a pipeline file, of either kind. settings: see `override`. ConfigError lists all problems with line and column."""
    return any_from_text(_read(FilePath(path)), str(path), settings)


def any_from_text(text: str, file: str | None = None, settings: Sequence[str] = ()) -> AnyPipeline:
    """Read a pipeline from YAML text, with the environment's variables. file: names the text in errors. settings: see `override`."""
    return _Builder(override(parse_yaml(text, file, os.environ), settings), file).build()


def any_from_dict(data: Mapping[str, Any]) -> AnyPipeline:
    """Make a pipeline from plain data, such as `to_dict` gives."""
    return _Builder(Document(data), None).build()


def load_pipeline(path: str | FilePath, settings: Sequence[str] = ()) -> PipelineSpec:
    """`load_any` of a pipeline that writes a dataset."""
    return writing(load_any(path, settings), str(path))


def load_text(text: str, file: str | None = None, settings: Sequence[str] = ()) -> PipelineSpec:
    """`any_from_text` of a pipeline that writes a dataset."""
    return writing(any_from_text(text, file, settings), file)


def from_dict(data: Mapping[str, Any]) -> PipelineSpec:
    """`any_from_dict` of a pipeline that writes a dataset."""
    return writing(any_from_dict(data), None)


def writing(pipeline: AnyPipeline, file: str | None = None) -> PipelineSpec:
    """The pipeline itself if it writes a dataset. ConfigError when it computes statistics."""
    if isinstance(pipeline, PipelineSpec):
        return pipeline
    raise ConfigError(
        [Problem("this pipeline computes statistics, and writes no dataset", "statistics", hint="write `output:`")], file
    )


def _read(path: FilePath) -> str:
    def wrong(message: str, hint: str) -> ConfigError:
        return ConfigError([Problem(message, hint=hint)], str(path))

    try:
        if path.is_dir():
            raise wrong("this is a directory", "name the YAML file in it")
        if not path.exists():
            raise wrong("there is no such file", "check the path")
        if not path.is_file():
            raise wrong("this is not a regular file", "name a YAML file")
        with path.open("rb") as stream:
            raw = stream.read(MAX_FILE_NBYTES + 1)
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise wrong(
            f"it cannot be read: {getattr(error, 'strerror', None) or error}", "check the path and its permissions"
        ) from None
    if len(raw) > MAX_FILE_NBYTES:
        raise wrong("the file is larger than 1 MiB", "a pipeline is a few lines; is this the right file?")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        problem = Problem("this is not UTF-8 text", line=line, hint="is this the right file? Save it as UTF-8")
        raise ConfigError([problem], str(path)) from None


class _Builder:
    """Collects problems while it turns one document into a spec."""

    def __init__(self, document: Document, file: str | None) -> None:
        self.document, self.file = document, file
        self.folder = FilePath(file).absolute().parent if file is not None else None
        self.problems = list(document.problems)

    def build(self) -> AnyPipeline:
        data = self.document.data
        if not isinstance(data, Mapping):
            self._note(f"a pipeline is a mapping, not {describe(data)}", (), "write source:, steps: and output:")
            raise self._error()
        for key in data:
            if key not in _SECTIONS:
                self._note(f"unknown key `{key}`", (key,), _known(str(key), _SECTIONS), key=True)
        source = self._section(data, "source", SourceSpec)
        steps = self._steps(data.get("steps"))
        if "statistics" in data:
            return self._measuring(data, source, steps)
        output, run = self._section(data, "output", OutputSpec), self._run(data)
        on = self._section(data, "on", OnSpec) if "on" in data else None
        if source is not None and output is not None:
            listed = data.get("steps")
            for problem in conflicts(source, len(listed) if isinstance(listed, list | tuple) else 1 if listed else 0, output, on):
                section, *rest = problem.path.split(".")
                self._note(problem.message, (section, *rest), problem.hint)
        if self.problems or source is None or output is None or run is None:
            raise self._error()
        return PipelineSpec(source=source, steps=tuple(steps), output=output, run=run, on=on)

    def _run(self, data: Mapping[str, Any]) -> RunSpec | None:
        return self._section(data, "run", RunSpec) if data.get("run") is not None else RunSpec()

    def _measuring(self, data: Mapping[str, Any], source: SourceSpec | None, steps: Sequence[Operation]) -> StatisticsPipeline:
        if "output" in data:
            self._note("a pipeline has `output` or `statistics`, not both", ("output",), "write two files", key=True)
        if "on" in data:
            hint = "leave `on` out, or write a pipeline that makes a dataset"
            self._note("only a pipeline that writes a dataset can be watched", ("on",), hint, key=True)
        value = {} if data["statistics"] is None else data["statistics"]
        statistics = self._section({**data, "statistics": value}, "statistics", StatisticsSpec)
        run = self._run(data)
        if self.problems or source is None or statistics is None or run is None:
            raise self._error()
        return StatisticsPipeline(source=source, steps=tuple(steps), statistics=statistics, run=run)

    def _section(self, data: Mapping[str, Any], name: str, model: type[Model]) -> Model | None:
        value, path = data.get(name), (name,)
        if value is None:
            what = "is empty" if name in data else "is missing"
            self._note(f"`{name}` {what}", path if name in data else (), f"write `{name}: <name of a dataset>`")
            return None
        if isinstance(value, str) and "dataset" in model.model_fields:
            value = {"dataset": value}
        if not isinstance(value, Mapping):
            wanted = "the name of a dataset or a mapping" if "dataset" in model.model_fields else "a mapping"
            self._note(f"must be {wanted}, not {describe(value)}", path, f"its keys are {', '.join(model.model_fields)}")
            return None
        return self._validate(model, value, path)

    def _steps(self, listed: Any) -> list[Operation]:
        if listed is None:
            return []
        if not isinstance(listed, list | tuple):
            self._note(
                f"must be a list of steps, not {describe(listed)}", ("steps",), "begin each step with a dash: `- clip: [0, 1]`"
            )
            return []
        steps = [self._step(item, ("steps", position)) for position, item in enumerate(listed)]
        return [step for step in steps if step is not None]

    def _step(self, item: Any, path: Path) -> Operation | None:
        if isinstance(item, str):
            item = {item: None}
        if not isinstance(item, Mapping) or not item:
            what = "an empty mapping" if isinstance(item, Mapping) else describe(item)
            self._note(f"a step is its name with its parameters, not {what}", path, f"known steps: {', '.join(known())}")
            return None
        kind, *others = item
        below = (*path, kind)
        try:
            step = find(str(kind)).form_of(item[kind])
        except StepError as error:
            self._note(error.message, below, error.hint, key=True)
            return None
        if others:
            is_parameter = all(other in step.model_fields for other in others)
            hint = f"indent the parameters further than `{kind}`" if is_parameter else "begin each step with its own dash"
            self._note(f"one entry of the list has several keys: {', '.join(map(str, item))}", path, hint)
            return None
        params = self._params(step, item[kind], below)
        return None if params is None else self._validate(step, params, below)

    def _params(self, step: type[Operation], value: Any, path: Path) -> Mapping[str, Any] | None:
        """A step's parameters by name, from its shorthand too."""
        if value is None:
            return {}
        if isinstance(value, Mapping):
            return value
        if len(step.shorthand) == 1:
            return {step.shorthand[0]: value}
        if isinstance(value, list | tuple) and len(value) == len(step.shorthand) > 0:
            places = self.document.values
            places.update({(*path, name): places[*path, i] for i, name in enumerate(step.shorthand) if (*path, i) in places})
            return dict(zip(step.shorthand, value, strict=True))
        self._note(
            f"must be [{', '.join(step.shorthand)}] or a mapping, not {_length(value)}", path, f"as in `{step.kind}: [0, 1]`"
        )
        return None

    def _validate(self, model: type[Model], value: Mapping[str, Any], path: Path) -> Model | None:
        try:
            return model.model_validate(dict(value), context={"folder": self.folder})
        except ValidationError as error:
            for detail in error.errors(include_url=False):
                self._explain(model, detail, path)
            return None

    def _explain(self, model: type[BaseModel], detail: Any, path: Path) -> None:
        """One of pydantic's errors in plain words."""
        where = (*path, *(part for part in detail["loc"] if isinstance(part, str | int)))
        cause = detail.get("ctx", {}).get("error")
        if isinstance(cause, ConfigError):
            for problem in cause.problems:
                self._note(problem.message, (*where, *filter(None, [problem.path])), problem.hint)
        elif isinstance(cause, StepError):
            self._note(cause.message, where, cause.hint)
        elif isinstance(cause, Exception):
            self._note(str(cause), where)
        elif detail["type"] == "extra_forbidden":
            self._note(
                f"unknown key `{where[-1]}`", where, _known(str(where[-1]), _own_first(_within(model, detail["loc"]))), key=True
            )
        elif detail["type"] == "missing":
            self._note(f"`{where[-1]}` is missing", where[:-1], f"write `{where[-1]}: ...`")
        else:
            self._note(*_plain_words(detail, where))

    def _note(self, message: str, path: Path, hint: str = "", *, key: bool = False) -> None:
        line, column = self.document.place(path, key=key)
        if (line, column) in self.document.unset:
            return  # that it stands for nothing has been said
        self.problems.append(Problem(message, format_path(path), line, column, hint))

    def _error(self) -> ConfigError:
        return ConfigError(sorted(self.problems, key=lambda problem: (problem.line or 0, problem.column or 0)), self.file)


def _plain_words(detail: Any, where: Path) -> tuple[str, Path, str]:
    """Message, path and hint for an error that pydantic found by type."""
    context, given = detail.get("ctx", {}), describe(detail["input"])
    wanted = {
        "string_type": "text",
        "int_type": "a whole number",
        "float_type": "a number",
        "bool_type": "true or false",
        "tuple_type": "a list",
        "string_unicode": "valid Unicode text",
    }.get(detail["type"])
    if wanted is not None:
        return (
            f"must be {wanted}, not {given}",
            where,
            'put it in quotes: "..."' if wanted == "text" and "number" in given else "",
        )
    if detail["type"] == "greater_than_equal":
        return f"must be at least {context['ge']}, not {detail['input']}", where, ""
    if detail["type"] == "less_than_equal":
        return f"must be at most {context['le']:g}, not {detail['input']}", where, ""
    if detail["type"] == "literal_error":
        known = [word.strip("'") for word in context["expected"].replace(" or ", ", ").split(", ")]
        return f"must not be {given}", where, _known(str(detail["input"]), known)
    return str(detail["msg"]), where, ""


def _within(model: type[BaseModel], path: Sequence[Any]) -> type[BaseModel]:
    """The section below `model` that the last part of `path` is in."""
    for part in path[:-1]:
        annotation = model.model_fields[part].annotation
        kinds = [one for one in (annotation, *get_args(annotation)) if isinstance(one, type)]
        model = next(one for one in kinds if issubclass(one, BaseModel))
    return model


def _own_first(model: type[BaseModel]) -> list[str]:
    """The keys of a section or step, those that all steps have last."""
    return sorted(model.model_fields, key=Step.model_fields.__contains__)


def _known(word: str, known: Iterable[str]) -> str:
    near = nearest(word, known := list(known))
    return (f"did you mean `{near}`? " if near else "") + f"known: {', '.join(known)}"


def _length(value: Any) -> str:
    return f"a list of {len(value)}" if isinstance(value, list | tuple) else describe(value)
