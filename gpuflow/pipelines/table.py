"""The arrays of a pipeline from step to step: a table of flows by name, which each step changes.

Pure. Collects what is wrong with any step and array, and goes on with the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gpuflow.errors import ConfigError, Problem
from gpuflow.pipelines.flow import Flow
from gpuflow.steps.base import ArraySpec, Join, Operation, Step, StepError
from gpuflow.steps.crop import Crop
from gpuflow.steps.parameters import suggestion
from gpuflow.steps.pick import Pick

Table = Mapping[str, Flow]


class Tables:
    """What `steps` make of the arrays `selected` of a source with the arrays `sources`. Steps are bound on the way."""

    def __init__(
        self,
        sources: Mapping[str, ArraySpec],
        selected: Sequence[str],
        others: Sequence[str],
        crops: Mapping[str, Crop] | None = None,
    ) -> None:
        """others: names of the source's arrays that are not selected: no step may make an array of the same name. crops: of arrays that are
        read in part."""
        crops = crops or {}
        self._sources = sources
        self._others = set(others)
        self._flows = {path: Flow.chain(path, [crops[path]] if path in crops else []) for path in selected}
        self._specs = {path: crops[path].check(sources[path]) if path in crops else sources[path] for path in selected}
        self._failed: set[str] = set()
        self.problems: list[tuple[int, Problem]] = []  # by the place of their array among the source's

    def apply(self, steps: Sequence[Operation]) -> Table:
        """The table after all steps. ConfigError, listing everything, when some cannot be applied."""
        for number, step in enumerate(steps):
            where = f"steps[{number}].{step.kind}"
            if isinstance(step, Step):
                chosen = [path for path in self._flows if step.is_for(path)]
                if not chosen and not self._failed:
                    known = ", ".join(self._flows)
                    self._note("", f"there is no array {list(step.only or ())} here", f"{where}.only", f"there are {known}")
                for path in chosen:
                    self._step(step, path, where)
            elif isinstance(step, Join):
                self._join(step, where)
            elif isinstance(step, Pick):
                self._pick(step, where)
        if not self._flows and not self.problems:
            self._note("", "no array is left", "steps", "drop fewer of them")
        if self.problems:
            raise ConfigError([problem for _, problem in sorted(self.problems, key=lambda one: one[0])])
        return self._flows

    def _step(self, step: Step, path: str, where: str) -> None:
        try:
            after = step.check(self._specs[path])
            self._flows[path] = self._flows[path].then(step.bind(self._specs[path]))
            self._specs[path] = after
        except StepError as error:
            self._note(path, f"cannot be applied to array {path!r}: {error.message}", where, error.hint)
            del self._flows[path], self._specs[path]
            self._failed.add(path)

    def _join(self, join: Join, where: str) -> None:
        made = join.made()
        for name, inputs in made.items():
            if any(path in self._failed for path in inputs):
                self._failed.add(name)
            elif missing := [path for path in inputs if path not in self._flows]:
                for path in missing:
                    known = ", ".join(self._flows)
                    self._note(
                        path, f"there is no array {path!r} here", where, suggestion(path, self._flows) or f"there are {known}"
                    )
                self._failed.add(name)
            else:
                self._make(join, name, inputs, where)
        if join.consumes:
            for path in {path for inputs in made.values() for path in inputs} - made.keys():
                self._flows.pop(path, None)
                self._specs.pop(path, None)

    def _make(self, join: Join, name: str, inputs: Sequence[str], where: str) -> None:
        if name in self._others:
            self._note(name, f"the source has an array {name!r} already", where, "choose another name")
            return
        try:
            spec = join.check(name, [self._specs[path] for path in inputs])
        except StepError as error:
            self._note(name, f"array {name!r} cannot be made: {error.message}", where, error.hint)
            self._failed.add(name)
            return
        self._flows[name] = Flow.joined(join, name, [self._flows[path] for path in inputs])
        self._specs[name] = spec

    def _pick(self, pick: Pick, where: str) -> None:
        known = [*self._flows, *self._failed]
        for pattern in pick.unmatched(known):
            self._note(pattern, f"there is no array {pattern!r} here", where, f"there are {', '.join(known)}")
        for path in [path for path in self._flows if not pick.keeps(path)]:
            del self._flows[path], self._specs[path]

    def _note(self, path: str, message: str, where: str, hint: str) -> None:
        places = list(self._sources)
        place = places.index(path) if path in places else len(places)
        self.problems.append((place, Problem(message, where, hint=hint)))
