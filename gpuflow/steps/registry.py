"""The steps by the names they have in YAML: gpuflow's own, and those of installed distributions.

A distribution adds steps by the entry-point group `gpuflow.steps`: the name is the step's `kind`, the object its class. It has to be
installed where pipelines are started and on every worker. gpuflow's own names cannot be taken."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points

from gpuflow.steps.base import Join, Operation, Step
from gpuflow.steps.parameters import StepError, suggestion

GROUP = "gpuflow.steps"

_CLASSES = "apply.Apply cast.Cast clip.Clip crop.Crop exec.Exec fill_nan.FillNan gaussian.Gaussian map.Map normalize.Normalize"
_CLASSES += " one_hot.OneHot pad.Pad pick.Drop pick.Select rank.Maximum rank.Median rank.Minimum resize.Resize stack.Stack"
_CLASSES += " standardize.Standardize transpose.Transpose unpack.Unpack where.Mask where.Where windows.Difference windows.Rolling"


class _Own(Mapping[str, type[Operation]]):
    """By name; a step is imported when it is asked for, since all of them take longer than to check a file."""

    def __init__(self) -> None:
        # The class of `one_hot` is OneHot.
        places = (place.split(".") for place in _CLASSES.split())
        self._places = dict(sorted((_kind(name), (module, name)) for module, name in places))

    def __getitem__(self, kind: str) -> type[Operation]:
        module, name = self._places[kind]
        found: type[Operation] = getattr(import_module(f"gpuflow.steps.{module}"), name)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _kind(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).removeprefix("_")


STEPS: Mapping[str, type[Operation]] = _Own()
"""gpuflow's own."""


def find(kind: str) -> type[Operation]:
    """The class of a step. StepError naming the nearest known step, or the distribution whose step cannot be loaded."""
    if kind in STEPS:
        return STEPS[kind]
    found = _installed().get(kind)
    if not found:
        raise StepError(f"unknown step `{kind[:40]}`", suggestion(kind, known()))
    if len(found) > 1:
        names = " and ".join(sorted(_distribution(one) for one in found))
        raise StepError(f"the step `{kind}` is in {names}", "uninstall all but one of them")
    return _load(found[0])


def known() -> list[str]:
    """The names of all steps."""
    return sorted({*STEPS, *_installed()})


@lru_cache(maxsize=1)
def _installed() -> dict[str, tuple[EntryPoint, ...]]:
    """Entry points by name, not loaded. An editable install may be listed twice: equal ones count once."""
    found: dict[str, dict[str, EntryPoint]] = {}
    for one in entry_points(group=GROUP):
        if one.name not in STEPS:
            found.setdefault(one.name, {})[one.value] = one
    return {name: tuple(ones.values()) for name, ones in found.items()}


@lru_cache(maxsize=64)
def _load(one: EntryPoint) -> type[Operation]:
    try:
        step = one.load()
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise StepError(
            f"the step `{one.name}` of {_distribution(one)} cannot be loaded: {reason}", "mend or uninstall it"
        ) from error
    if not (isinstance(step, type) and issubclass(step, Step | Join)) or step.kind != one.name:
        reason = f"{one.value} is no gpuflow.steps.base.Step or Join of that kind"
        raise StepError(f"the step `{one.name}` of {_distribution(one)} cannot be used: {reason}", "mend or uninstall it")
    return step


def _distribution(one: EntryPoint) -> str:
    return f"{one.dist.name} {one.dist.version}" if one.dist else one.value
