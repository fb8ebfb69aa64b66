"""Which pipelines can be watched together, and in what order they feed each other. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from gpuflow.errors import ConfigError, Problem
from gpuflow.pipelines.spec import PipelineSpec


def target_of(spec: PipelineSpec) -> str:
    """The dataset that it writes."""
    return spec.output.dataset or spec.source.dataset


def in_order(pipelines: Sequence[tuple[str, PipelineSpec]]) -> list[tuple[str, PipelineSpec]]:
    """(file, pipeline), each after those whose outputs it reads. ConfigError names the files that go round in a circle, that write one
    dataset, or of which one changes in place what another makes."""
    problems: list[Problem] = []
    by_target: dict[str, tuple[str, PipelineSpec]] = {}
    for file, spec in pipelines:
        target = target_of(spec)
        if target in by_target:
            other, first = by_target[target]
            how = "both change" if first.output.in_place and spec.output.in_place else "both write"
            problems.append(Problem(f"{other} and {file} {how} dataset {target!r}", hint="watch one of them"))
        by_target.setdefault(target, (file, spec))
    if problems:
        raise ConfigError(problems)
    done: list[str] = []
    for target in by_target:
        _visit(target, by_target, done, [])
    return [by_target[target] for target in done]


def _visit(target: str, by_target: dict[str, tuple[str, PipelineSpec]], done: list[str], way: list[str]) -> None:
    if target in done:
        return
    if target in way:
        circle = [*way[way.index(target) :], target][::-1]  # as the data flows
        files = ", ".join(by_target[name][0] for name in circle[1:])
        reason = f"the pipelines go round in a circle: {' -> '.join(circle)} ({files})"
        raise ConfigError([Problem(reason, hint="leave one of them out, or let it write another dataset")])
    spec = by_target[target][1]
    if not spec.output.in_place and spec.source.dataset in by_target:
        _visit(spec.source.dataset, by_target, done, [*way, target])
    done.append(target)
